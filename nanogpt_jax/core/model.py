"""The model, as a linen module with GPT-2's parameter names: `GPT`, and the blocks it is made of.

Design choices: pre-norm blocks, one matrix for queries, keys and values, float32 parameters with matrix products in
`dtype`, and a float32 residual stream. Positions, norm, heads and MLP are as `GPTConfig` says, by default GPT-2's.
Activations lie flat, (B*T, n_embd), between the embedding and the head, because XLA multiplies matrices fastest as
matrices; only attention needs to know T.

The module is a pure function of (parameters, tokens). How it is trained is in `train_step.py`, how text is drawn
from it in `sampling.py`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nanogpt_jax.core import ops, sharding
from nanogpt_jax.core.attention import Position, cached_attention, causal_attention
from nanogpt_jax.core.decoding_weights import ROWS, Rows, times
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.fused_loss import fused_cross_entropy
from nanogpt_jax.core.layers import INIT_STD, Dropout, Linear, Norm, Text, TokenShift, require_text
from nanogpt_jax.core.rope import frequencies, rotated
from nanogpt_jax.core.shape import GPTConfig

# From this vocabulary on, the logits of a batch are worth not keeping whole.
FUSED_LOSS_FROM = 4096

_ACTIVATIONS = {
    "gelu": ops.gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "relu2": ops.relu2,
}

# Gated MLPs (Shazeer, 2020): a second matrix, bent by this, scales the hidden units.
_GATES = {"swiglu": jax.nn.silu, "geglu": ops.gelu}


Rate = float | Float[Array, ""]
"""A probability, in [0, 1)."""

Segments = Int[ops.AnyArray, "B T"] | None
"""The number of each token's text, rising along a row, where a row holds several; a token sees its own text alone."""


class KeyValues(NamedTuple):
    """What one layer remembers of the positions it has read: keys and values of each sequence's each key head."""

    k: Float[Array, "B*K S D"]
    v: Float[Array, "B*K S D"]


Cache = tuple[KeyValues, ...]
"""A `KeyValues` for each layer."""


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention."""

    config: GPTConfig
    dtype: Any = jnp.float32
    kernel: str = "xla"
    dropout: Rate = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N C"],
        batch: int,
        train: bool,
        cache: KeyValues | None,
        position: Position,
        segments: Segments = None,
        only: Position | None = None,
    ) -> tuple[Float[Array, "M C"], KeyValues | None]:
        cfg = self.config
        heads = cfg.n_head, cfg.kv_heads
        width = (cfg.n_head + 2 * cfg.kv_heads) * cfg.head_width
        qkv = Linear(width, cfg.has_qkv_bias, dtype=self.dtype, heads=heads, name="c_attn")(x)
        q, k, v = sharding.split_heads(qkv, batch, *heads)
        if cfg.qk_norm:
            q, k = (Norm("rms", cfg.norm_epsilon, name=f"{name}_norm")(x) for name, x in (("q", q), ("k", k)))
        if cfg.position == "rope":
            turns = frequencies(cfg.head_width, cfg.rope_theta, cfg.rope_scaling)
            q, k = (rotated(x, turns, position) for x in (q, k))
        q, k = q.astype(self.dtype), k.astype(self.dtype)
        self.sow("intermediates", "queries_and_keys", (q, k))  # for who asks to see them
        if only is not None:
            y = cached_attention(_at(q, only), _flat(k), _flat(v), only)
        elif cache is None:
            key = self.make_rng("dropout") if train and cfg.dropout > 0 else None
            y = causal_attention(q, k, v, kernel=self.kernel, dropout=self.dropout, key=key, segments=segments)
        else:
            cache = KeyValues(*(_write(old, new, position) for old, new in zip(cache, (k, v), strict=True)))
            y = cached_attention(q, *cache, position)
        y = Linear(cfg.n_embd, cfg.bias, _residual_std(cfg), self.dtype, name="c_proj")(ops.merge_heads(y))
        return Dropout(self.dropout)(y, train and cfg.dropout > 0), cache


class MLP(nn.Module):
    """Each position thinks for itself: widen, bend, narrow again."""

    config: GPTConfig
    dtype: Any = jnp.float32
    dropout: Rate = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "N C"], train: bool) -> Float[Array, "N C"]:
        cfg = self.config
        h = Linear(cfg.mlp_width, cfg.bias, dtype=self.dtype, name="c_fc")(x)
        if cfg.activation in _GATES:
            h *= _GATES[cfg.activation](Linear(cfg.mlp_width, cfg.bias, dtype=self.dtype, name="c_gate")(x))
        else:
            h = _ACTIVATIONS[cfg.activation](h)
        y = Linear(cfg.n_embd, cfg.bias, _residual_std(cfg), self.dtype, name="c_proj")(h)
        return Dropout(self.dropout)(y, train and cfg.dropout > 0)


class Block(nn.Module):
    """Attention, then MLP, each reading the residual stream through a norm and adding to it."""

    config: GPTConfig
    dtype: Any = jnp.float32
    kernel: str = "xla"
    dropout: Rate = 0.0

    def setup(self) -> None:
        self.ln_1 = _norm(self.config)
        self.attn = CausalSelfAttention(self.config, self.dtype, self.kernel, self.dropout)
        self.ln_2 = _norm(self.config)
        self.mlp = MLP(self.config, self.dtype, self.dropout)

    def __call__(
        self,
        x: Float[Array, "N C"],
        batch: int,
        train: bool,
        cache: KeyValues | None,
        position: Position,
        segments: Segments = None,
        only: Position | None = None,
    ) -> tuple[Float[Array, "M C"], KeyValues | None]:
        y, cache = self.attn(self.ln_1(x), batch, train, cache, position, segments, only)
        if only is not None:
            x = _at(x.reshape(batch, -1, x.shape[-1]), only).reshape(y.shape)
        x = x + y
        return x + self.mlp(self.ln_2(x), train), cache


class GPT(nn.Module):
    """A decoder-only transformer: token and position embeddings, `n_layer` blocks, a last norm and a head.

    GPT-2 (Radford et al., 2019) by default; with rotary positions there is no position embedding (Llama: Touvron et
    al., 2023). ``model.apply({"params": params}, idx)`` calls it.

    Attributes:
        config: the shape.
        dtype: the type of matrix products; parameters, layer norms, softmax and logits are float32 whatever it is.
        kernel: which attention kernel to use over whole sequences, as `attention.choose_kernel` names it.
        remat: keep of each block only what goes in, and compute the rest again on the way back: about a third more
            work, for a fraction of the memory.
        dropout: its rate, where the config has one at all and this is another, which may be traced; None: the config's.
    """

    config: GPTConfig
    dtype: Any = jnp.float32
    kernel: str = "xla"
    remat: bool = False
    dropout: Rate | None = None

    def setup(self) -> None:
        cfg = self.config
        normal = nn.initializers.normal(INIT_STD)
        self.wte = nn.Embed(cfg.vocab_size, cfg.n_embd, embedding_init=normal)
        if cfg.position == "learned":
            self.wpe = nn.Embed(cfg.block_size, cfg.n_embd, embedding_init=normal)
        if cfg.token_shift:
            self.shift = TokenShift()
        rate = cfg.dropout if self.dropout is None else self.dropout
        self.drop = Dropout(rate)
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block  # static: batch, train
        self.h = [block(cfg, self.dtype, self.kernel, rate) for _ in range(cfg.n_layer)]
        self.ln_f = _norm(cfg)
        if not cfg.tie_word_embeddings:
            self.lm_head = Linear(cfg.vocab_size, cfg.lm_head_bias, dtype=self.dtype)

    def __call__(self, idx: Text, *, train: bool = False) -> Float[Array, "B T V"]:
        """Logits of the token after each position, in float32. With `train`, dropout draws from the ``dropout`` rng.

        T is at most `block_size`.
        """
        return self.head(self.hidden(idx, train=train))

    def hidden(self, idx: Text, segments: Segments = None, *, train: bool = False) -> Float[Array, "B T C"]:
        """The residual stream after the last norm: what the head reads."""
        return self._blocks(idx, None, 0, train, segments)[0]

    def loss(
        self,
        idx: Text,
        targets: Int[ops.AnyArray, "B T"],
        weights: Float[ops.AnyArray, "B T"],
        segments: Segments = None,
        *,
        train: bool = False,
    ) -> Float[Array, ""]:
        """The weighted sum of the targets' cross-entropies, in nats."""
        x, targets, weights = self.hidden(idx, segments, train=train), jnp.asarray(targets), jnp.asarray(weights)
        if self.config.vocab_size >= FUSED_LOSS_FROM and not self.config.lm_head_bias:
            fused = sharding.sum_over_rows(lambda *arrays: fused_cross_entropy(*arrays, self.config.logit_softcap))
            return fused(x.astype(self.dtype), self._head_table(), targets, weights)
        return ops.weighted_cross_entropy(self.head(x), targets, weights)

    def logits_at(self, idx: Text, index: Int[Array, ""] | int) -> Float[Array, "B V"]:
        """Logits of the token after the one at `index` of the T.

        The head reads no other position, and in the last block no other looks back or thinks for itself.
        """
        return self.head(self._blocks(idx, None, 0, train=False, only=index)[0][:, 0])

    def decode(
        self, idx: Text, cache: Cache, position: Position, before: Text | None = None
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Read T tokens that stand at `position`, ... after those in `cache`, of which `before` (B, 1) is the last.

        Gives the logits after the last of them, and the cache with all of them in it. With a prompt at position 0 this
        is the prefill; with one token it is a step of decoding. Attention reads all of the cache, however much of it is
        filled. `before` is looked at from position 1 on, where there is a token shift.
        """
        x, cache = self._blocks(idx, cache, position, train=False, before=before)
        return self.head(x[:, -1]), cache

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` sequences of up to `length` tokens, which are at most `block_size`."""
        cfg = self.config
        shape = (batch * cfg.kv_heads, length, cfg.head_width)
        # Arrays of their own, each: the generation loop takes over their memory.
        return tuple(KeyValues(*(jnp.zeros(shape, self.dtype) for _ in "kv")) for _ in range(cfg.n_layer))

    def head(self, x: Float[Array, "*N C"]) -> Float[Array, "*N V"]:
        """Logits in float32 from what the last norm gave."""
        flat = x.reshape(-1, x.shape[-1])
        if self.has_variable(ROWS, "head"):
            logits = times(flat, self.get_variable(ROWS, "head"))
        elif self.config.tie_word_embeddings:
            logits = times(flat, Rows(self._head_table()))
        else:
            logits = self.lm_head(flat).astype(jnp.float32)
        return ops.softcapped(logits, self.config.logit_softcap).reshape(*x.shape[:-1], -1)

    def _head_table(self) -> Float[Array, "V C"]:
        if self.config.tie_word_embeddings:
            return sharding.gathered(self.wte.embedding.astype(self.dtype), "wte")
        kernel: Array = self.lm_head.get_variable("params", "kernel")
        return sharding.gathered(kernel.astype(self.dtype), "lm_head").T

    def _embedded(self, idx: Text) -> Float[Array, "B T C"]:
        return ops.embedding(sharding.gathered(self.wte.embedding, "wte"), jnp.asarray(idx)).astype(jnp.float32)

    def _positions(self, position: Position, length: int) -> Float[Array, "{length} C"]:
        return jax.lax.dynamic_slice_in_dim(sharding.gathered(self.wpe.embedding, "wpe"), position, length)

    def _blocks(
        self,
        idx: Text,
        cache: Cache | None,
        position: Position,
        train: bool,
        segments: Segments = None,
        only: Position | None = None,
        before: Text | None = None,
    ) -> tuple[Float[Array, "B S C"], Cache]:
        """The residual stream, and the cache with these positions in it; ``()`` where there is none.

        Of all T positions or, as the one of `S`, of the `only` one, where there is no cache.
        """
        B, T = require_text(idx, self.config.vocab_size)
        if self.config.block_size < T:
            raise UserError(
                f"a text of {T} tokens does not fit block_size={self.config.block_size}; give its last "
                f"{self.config.block_size}, as in idx[:, -{self.config.block_size}:]"
            )
        segments = None if segments is None else jnp.asarray(segments)
        x = self._embedded(idx)
        if self.config.token_shift:
            first = jnp.zeros_like(x[:, :1]) if before is None else jnp.where(position > 0, self._embedded(before), 0)
            previous = jnp.concatenate([first, x[:, :-1]], axis=1)
            x = self.shift(x, previous if segments is None else jnp.where(_begins(segments)[..., None], 0, previous))
        if self.config.position == "learned" and segments is not None:
            x += ops.embedding(sharding.gathered(self.wpe.embedding, "wpe"), _places(segments))
        elif self.config.position == "learned":  # rotary ones are the same from wherever they are counted
            x += ops.to_every_row(self._positions(position, T), B)
        x = self.drop(x.reshape(B * T, -1), train and self.config.dropout > 0)
        new: list[KeyValues] = []
        for i, (block, old) in enumerate(zip(self.h, cache or [None] * len(self.h), strict=True)):
            at_end = only if i == len(self.h) - 1 else None
            x, kept = block(sharding.split_by_rows(x), B, train, old, position, segments, at_end)
            if kept is not None:
                new.append(kept)
        return self.ln_f(x).reshape(B, -1, self.config.n_embd), tuple(new)


def _places(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The position of each token in its own text."""
    here = jnp.arange(segments.shape[1], dtype=jnp.int32)
    return here - jax.lax.cummax(jnp.where(_begins(segments), here, 0), axis=1)


def _begins(segments: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Where a token is of another text than the one before it; the first of a row needs no such word."""
    return jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))


def _at(x: Float[Array, "*N T C"], position: Position) -> Float[Array, "*N 1 C"]:
    return jax.lax.dynamic_slice_in_dim(x, position, 1, axis=-2)


def _norm(config: GPTConfig) -> Norm:
    return Norm(config.norm, config.norm_epsilon, config.bias)


def _residual_std(config: GPTConfig) -> float:
    """GPT-2 scales what writes to the residual stream by 1/sqrt(number of writers), two in each block."""
    return config.proj_init_scale * INIT_STD / math.sqrt(2 * config.n_layer)


def _write(old: Float[Array, "N S D"], new: Float[Array, "B H T D"], position: Position) -> Float[Array, "N S D"]:
    # With heads and sequences on one axis, as products over them want it, XLA updates the cache in its place; with an
    # axis for each, it copies the whole cache for every token. A cache that is full is written from its start again.
    return jax.lax.dynamic_update_slice_in_dim(old, _flat(new).astype(old.dtype), position % old.shape[1], axis=1)


def _flat(x: Float[Array, "B H T D"]) -> Float[Array, "B*H T D"]:
    return x.reshape(-1, *x.shape[2:])
