"""A GPT as the formulas are written, one sequence, one head and one position's rotation at a time: the plain twin."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nanogpt_jax.core.rope import frequencies
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import Params

BENT = {
    "gelu": lambda x: 0.5 * x * (1 + jax.scipy.special.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: jnp.maximum(x, 0),
    "relu2": lambda x: jnp.maximum(x, 0) ** 2,
}
GATED = {"swiglu": lambda x: x / (1 + jnp.exp(-x)), "geglu": BENT["gelu"]}


def plain_gpt(params: Params, cfg: GPTConfig, idx: Array, window: int | None = None) -> Array:
    """Logits (T, V) of tokens (T,); with a `window`, each position looks at the last so many, its own among them."""

    def norm(x: Array, p: Params, kind: str = cfg.norm) -> Array:
        centred = x if kind == "rms" else x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + cfg.norm_epsilon) * p["scale"] + p.get(
            "bias", 0
        )

    def linear(x: Array, p: Params) -> Array:
        return x @ p["kernel"] + p.get("bias", 0)

    seen = jnp.tri(len(idx), dtype=bool) & ~jnp.tri(len(idx), k=-(window or len(idx)), dtype=bool)
    T, D, H, K = len(idx), cfg.head_width, cfg.n_head, cfg.kv_heads

    def turned(x: Array) -> Array:
        if cfg.position == "learned":
            return x
        angles = jnp.outer(jnp.arange(T), frequencies(D, cfg.rope_theta, cfg.rope_scaling))
        a, b = x[:, : D // 2], x[:, D // 2 :]
        return jnp.concatenate(
            [a * jnp.cos(angles) - b * jnp.sin(angles), b * jnp.cos(angles) + a * jnp.sin(angles)], 1
        )

    def head(qkv: Array, p: Params, h: int) -> Array:
        at = h, H + h // (H // K), H + K + h // (H // K)
        q, k, v = (qkv[:, i * D : (i + 1) * D] for i in at)
        if cfg.qk_norm:
            q, k = norm(q, p["q_norm"], "rms"), norm(k, p["k_norm"], "rms")
        scores = jnp.where(seen, turned(q) @ turned(k).T / math.sqrt(D), -jnp.inf)
        return jax.nn.softmax(scores, axis=-1) @ v

    x = jnp.asarray(params["wte"]["embedding"])[idx]
    if cfg.token_shift:
        x = x + params["shift"]["share"] * jnp.pad(x[:-1], ((1, 0), (0, 0)))
    if cfg.position == "learned":
        x = x + params["wpe"]["embedding"][:T]
    for layer in range(cfg.n_layer):
        p = params[f"h_{layer}"]
        qkv = linear(norm(x, p["ln_1"]), p["attn"]["c_attn"])
        x = x + linear(jnp.concatenate([head(qkv, p["attn"], h) for h in range(H)], -1), p["attn"]["c_proj"])
        read, mlp = norm(x, p["ln_2"]), p["mlp"]
        if cfg.activation in GATED:
            hidden = GATED[cfg.activation](linear(read, mlp["c_gate"])) * linear(read, mlp["c_fc"])
        else:
            hidden = BENT[cfg.activation](linear(read, mlp["c_fc"]))
        x = x + linear(hidden, mlp["c_proj"])
    x = norm(x, params["ln_f"])
    logits = x @ params["wte"]["embedding"].T if cfg.tie_word_embeddings else linear(x, params["lm_head"])
    return logits if cfg.logit_softcap is None else cfg.logit_softcap * jnp.tanh(logits / cfg.logit_softcap)
