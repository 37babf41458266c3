"""The models, as linen modules with GPT-2's parameter names: `Bigram`, and `GPT` with the blocks it is made of.

Design choices: learned positions, pre-norm blocks, one matrix for queries, keys and values, a 4x MLP, float32
parameters with matrix products in `dtype`, and a float32 residual stream. Activations lie flat, (B*T, n_embd), between
the embedding and the head, because XLA multiplies matrices fastest as matrices; only attention needs to know T.

A module here is a pure function of (parameters, tokens). How it is trained is in `train_step.py`, how text is drawn
from it in `sampling.py`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from nanogpt_jax.core import ops, sharding
from nanogpt_jax.core.attention import Position, cached_attention, causal_attention
from nanogpt_jax.core.config import GPTConfig
from nanogpt_jax.core.decoding_weights import ROWS, Rows, times
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.fused_loss import fused_cross_entropy

LAYER_NORM_EPSILON = 1e-5
INIT_STD = 0.02

# From this vocabulary on, the logits of a batch are worth not keeping whole.
FUSED_LOSS_FROM = 4096

_ACTIVATIONS = {
    "gelu": ops.gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}

Text = Int[ops.AnyArray, "B T"] | Shaped[ops.AnyArray, "..."]
"""Tokens that a model is given to read: integers (B, T). It may be given any array: `UserError` says what is wrong."""


class KeyValues(NamedTuple):
    """What one layer remembers of the positions it has read: the keys and values of each sequence's each head."""

    k: Float[Array, "B*H S D"]
    v: Float[Array, "B*H S D"]


Cache = tuple[KeyValues, ...]
"""A `KeyValues` for each layer."""


class Linear(nn.Module):
    """x @ kernel + bias, with the kernel drawn from N(0, std^2) and the bias at zero, as GPT-2 starts them."""

    features: int
    use_bias: bool
    std: float = INIT_STD
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N K"]) -> Float[Array, "N M"]:
        if self.has_variable(ROWS, "kernel"):
            y = times(x, self.get_variable(ROWS, "kernel")).astype(self.dtype)
        else:
            kernel = self.param("kernel", nn.initializers.normal(self.std), (x.shape[-1], self.features), jnp.float32)
            y = ops.linear(x.astype(self.dtype), sharding.gathered(kernel.astype(self.dtype), self.name or ""))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
            y += sharding.gathered(bias, self.name or "")
        return y


class LayerNorm(nn.Module):
    """Each row to mean 0 and variance 1, then scaled and, with `use_bias`, shifted."""

    use_bias: bool

    @nn.compact
    def __call__(self, x: Float[Array, "N C"]) -> Float[Array, "N C"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32) if self.use_bias else None
        return ops.layer_norm(x, scale, bias, LAYER_NORM_EPSILON)


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention."""

    config: GPTConfig
    dtype: Any = jnp.float32
    kernel: str = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N C"],
        batch: int,
        train: bool,
        cache: KeyValues | None,
        position: Position,
    ) -> tuple[Float[Array, "N C"], KeyValues | None]:
        cfg = self.config
        qkv = Linear(3 * cfg.n_embd, cfg.has_qkv_bias, dtype=self.dtype, name="c_attn")(x)
        q, k, v = sharding.split_heads(qkv, batch, cfg.n_head)
        if cache is None:
            key = self.make_rng("dropout") if train and cfg.dropout > 0 else None
            y = causal_attention(q, k, v, kernel=self.kernel, dropout=cfg.dropout, key=key)
        else:
            cache = KeyValues(*(_write(old, new, position) for old, new in zip(cache, (k, v), strict=True)))
            y = cached_attention(_of_each_head(q), *cache, position).reshape(q.shape)
        y = Linear(cfg.n_embd, cfg.bias, _residual_std(cfg), self.dtype, name="c_proj")(ops.merge_heads(y))
        return nn.Dropout(cfg.dropout, deterministic=not train)(y), cache


class MLP(nn.Module):
    """Each position thinks for itself: widen four times, bend, narrow again."""

    config: GPTConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N C"], train: bool) -> Float[Array, "N C"]:
        cfg = self.config
        h = _ACTIVATIONS[cfg.activation](Linear(4 * cfg.n_embd, cfg.bias, dtype=self.dtype, name="c_fc")(x))
        y = Linear(cfg.n_embd, cfg.bias, _residual_std(cfg), self.dtype, name="c_proj")(h)
        return nn.Dropout(cfg.dropout, deterministic=not train)(y)


class Block(nn.Module):
    """Attention, then MLP, each reading a layer norm of the residual stream and adding to it."""

    config: GPTConfig
    dtype: Any = jnp.float32
    kernel: str = "xla"

    def setup(self) -> None:
        self.ln_1 = LayerNorm(self.config.bias)
        self.attn = CausalSelfAttention(self.config, self.dtype, self.kernel)
        self.ln_2 = LayerNorm(self.config.bias)
        self.mlp = MLP(self.config, self.dtype)

    def __call__(
        self,
        x: Float[Array, "N C"],
        batch: int,
        train: bool,
        cache: KeyValues | None,
        position: Position,
    ) -> tuple[Float[Array, "N C"], KeyValues | None]:
        y, cache = self.attn(self.ln_1(x), batch, train, cache, position)
        x = x + y
        return x + self.mlp(self.ln_2(x), train), cache


class GPT(nn.Module):
    """A decoder-only transformer: token and position embeddings, `n_layer` blocks, a last layer norm and a head.

    GPT-2's (Radford et al., 2019): pre-norm, learned positions. ``model.apply({"params": params}, idx)`` calls it.

    Attributes:
        config: the shape.
        dtype: the type of matrix products; parameters, layer norms, softmax and logits are float32 whatever it is.
        kernel: which attention kernel to use over whole sequences, as `attention.choose_kernel` names it.
        remat: keep of each block only what goes in, and compute the rest again on the way back: about a third more
            work, for a fraction of the memory.
    """

    config: GPTConfig
    dtype: Any = jnp.float32
    kernel: str = "xla"
    remat: bool = False

    def setup(self) -> None:
        cfg = self.config
        normal = nn.initializers.normal(INIT_STD)
        self.wte = nn.Embed(cfg.vocab_size, cfg.n_embd, embedding_init=normal)
        self.wpe = nn.Embed(cfg.block_size, cfg.n_embd, embedding_init=normal)
        self.drop = nn.Dropout(cfg.dropout)
        block = nn.remat(Block, static_argnums=(2, 3)) if self.remat else Block  # static: batch, train
        self.h = [block(cfg, self.dtype, self.kernel) for _ in range(cfg.n_layer)]
        self.ln_f = LayerNorm(cfg.bias)
        if not cfg.tie_word_embeddings:
            self.lm_head = Linear(cfg.vocab_size, cfg.lm_head_bias, dtype=self.dtype)

    def __call__(self, idx: Text, *, train: bool = False) -> Float[Array, "B T V"]:
        """Logits of the token after each position, in float32. With `train`, dropout draws from the ``dropout`` rng.

        T is at most `block_size`.
        """
        return self.head(self.hidden(idx, train=train))

    def hidden(self, idx: Text, *, train: bool = False) -> Float[Array, "B T C"]:
        """The residual stream after the last layer norm: what the head reads."""
        return self._blocks(idx, None, 0, train)[0]

    def loss(
        self, idx: Text, targets: Int[ops.AnyArray, "B T"], weights: Float[ops.AnyArray, "B T"], *, train: bool = False
    ) -> Float[Array, ""]:
        """The weighted sum of the targets' cross-entropies, in nats."""
        x, targets, weights = self.hidden(idx, train=train), jnp.asarray(targets), jnp.asarray(weights)
        if self.config.tie_word_embeddings and self.config.vocab_size >= FUSED_LOSS_FROM:
            table = sharding.gathered(self.wte.embedding.astype(self.dtype), "wte")
            return sharding.sum_over_rows(fused_cross_entropy)(x.astype(self.dtype), table, targets, weights)
        return _weighted_cross_entropy(self.head(x), targets, weights)

    def logits_at(self, idx: Text, index: Int[Array, ""] | int) -> Float[Array, "B V"]:
        """Logits of the token after the one at `index` of the T; the head reads no other position."""
        return self.head(self.hidden(idx)[:, index])

    def decode(self, idx: Text, cache: Cache, position: Position) -> tuple[Float[Array, "B V"], Cache]:
        """Read T tokens that stand at `position`, ... after those in `cache`.

        Gives the logits after the last of them, and the cache with all of them in it. With a prompt at position 0 this
        is the prefill; with one token it is a step of decoding. Attention reads all of the cache, however much of it is
        filled.
        """
        x, cache = self._blocks(idx, cache, position, train=False)
        return self.head(x[:, -1]), cache

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` sequences of up to `length` tokens, which are at most `block_size`."""
        cfg = self.config
        shape = (batch * cfg.n_head, length, cfg.head_size)
        # Arrays of their own, each: the generation loop takes over their memory.
        return tuple(KeyValues(*(jnp.zeros(shape, self.dtype) for _ in "kv")) for _ in range(cfg.n_layer))

    def head(self, x: Float[Array, "*N C"]) -> Float[Array, "*N V"]:
        """Logits in float32 from what the last layer norm gave."""
        flat = x.reshape(-1, x.shape[-1])
        if self.has_variable(ROWS, "head"):
            logits = times(flat, self.get_variable(ROWS, "head"))
        elif self.config.tie_word_embeddings:
            table = sharding.gathered(self.wte.embedding.astype(self.dtype), "wte")
            logits = times(flat, Rows(table))
        else:
            logits = self.lm_head(flat).astype(jnp.float32)
        return logits.reshape(*x.shape[:-1], -1)

    def _positions(self, position: Position, length: int) -> Float[Array, "{length} C"]:
        return jax.lax.dynamic_slice_in_dim(sharding.gathered(self.wpe.embedding, "wpe"), position, length)

    def _blocks(
        self, idx: Text, cache: Cache | None, position: Position, train: bool
    ) -> tuple[Float[Array, "B T C"], Cache]:
        """The residual stream, and the cache with these positions in it; ``()`` where there is none."""
        B, T = _require_text(idx, self.config.vocab_size)
        if self.config.block_size < T:
            raise UserError(
                f"a text of {T} tokens does not fit block_size={self.config.block_size}; give its last "
                f"{self.config.block_size}, as in idx[:, -{self.config.block_size}:]"
            )
        table = sharding.gathered(self.wte.embedding, "wte")
        x = ops.embedding(table, jnp.asarray(idx)) + ops.to_every_row(self._positions(position, T), B)
        x = self.drop(x.reshape(B * T, -1), deterministic=not train)
        new: list[KeyValues] = []
        for block, old in zip(self.h, cache or [None] * len(self.h), strict=True):
            x, kept = block(sharding.split_by_rows(x), B, train, old, position)
            if kept is not None:
                new.append(kept)
        return self.ln_f(x).reshape(B, T, -1), tuple(new)


class Bigram(nn.Module):
    """The smallest language model: row t of a table (V, V) holds the logits of what follows token t.

    It remembers nothing, so its cache is empty; otherwise it answers to the same calls as `GPT`.
    """

    config: GPTConfig
    dtype: Any = jnp.float32
    kernel: str = "no"

    def setup(self) -> None:
        size = self.config.vocab_size
        # PyTorch's nn.Embedding starts from N(0, 1), and so does the notebook.
        self.wte = nn.Embed(size, size, embedding_init=nn.initializers.normal(1.0))

    def __call__(self, idx: Text, *, train: bool = False) -> Float[Array, "B T V"]:
        """Logits of the token after each position."""
        _require_text(idx, self.config.vocab_size)
        return self.wte(idx)

    def loss(
        self, idx: Text, targets: Int[ops.AnyArray, "B T"], weights: Float[ops.AnyArray, "B T"], *, train: bool = False
    ) -> Float[Array, ""]:
        """As `GPT.loss`."""
        return _weighted_cross_entropy(self(idx), jnp.asarray(targets), jnp.asarray(weights))

    def logits_at(self, idx: Text, index: Int[Array, ""] | int) -> Float[Array, "B V"]:
        """As `GPT.logits_at`."""
        return self.wte(idx[:, index])

    def decode(self, idx: Text, cache: Cache, position: Position) -> tuple[Float[Array, "B V"], Cache]:
        """As `GPT.decode`."""
        return self.wte(idx[:, -1]), cache

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache: there is nothing to remember."""
        return ()


def require_tokens(name: str, values: Any, size: int, least: int = 0) -> None:
    """Raise `UserError` if an array holds anything but whole numbers from `least` to `size` - 1, where it can be seen.

    A traced array has a type and no numbers yet, and one that lies on several hosts is whole on none.
    """
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise UserError(f"{name} are of type {values.dtype}, where whole numbers below {size} belong; give int32")
    if isinstance(values, jax.core.Tracer) or not getattr(values, "is_fully_addressable", True) or not values.size:
        return
    seen = np.asarray(values)
    for value in (int(seen.min()), int(seen.max())):
        if not least <= value < size:
            raise UserError(
                f"{name} hold {value}, outside the vocabulary of {size}; give numbers from {least} to {size - 1}"
            )


def _require_text(idx: Text, vocab_size: int) -> tuple[int, int]:
    """The B and T of tokens (B, T); `UserError` for anything else."""
    if idx.ndim != 2:
        raise UserError(
            f"tokens of shape {idx.shape} are not (B, T), texts side by side; give one text as tokens[None]"
        )
    require_tokens("tokens", idx, vocab_size)
    return idx.shape[0], idx.shape[1]


def _weighted_cross_entropy(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"], weights: Float[Array, "B T"]
) -> Float[Array, ""]:
    losses = ops.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
    return jnp.sum(losses * weights.reshape(-1))


def _residual_std(config: GPTConfig) -> float:
    """GPT-2 scales what writes to the residual stream by 1/sqrt(number of writers), two in each block."""
    return INIT_STD / math.sqrt(2 * config.n_layer)


def _write(old: Float[Array, "N S D"], new: Float[Array, "B H T D"], position: Position) -> Float[Array, "N S D"]:
    # With heads and sequences on one axis, as products over them want it, XLA updates the cache in its place; with an
    # axis for each, it copies the whole cache for every token.
    return jax.lax.dynamic_update_slice_in_dim(old, _of_each_head(new).astype(old.dtype), position, axis=1)


def _of_each_head(x: Float[Array, "B H T D"]) -> Float[Array, "B*H T D"]:
    return x.reshape(-1, *x.shape[2:])
