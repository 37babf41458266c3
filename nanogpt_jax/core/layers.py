"""The smallest modules, which every model is made of, and what a model asks of the tokens it is given."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from nanogpt_jax.core import ops, sharding
from nanogpt_jax.core.decoding_weights import ROWS, dequantized, times
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.lora import INT8, LORA, products

INIT_STD = 0.02

Text = Int[ops.AnyArray, "B T"] | Shaped[ops.AnyArray, "..."]
"""Tokens that a model is given to read: integers (B, T). It may be given any array: `UserError` says what is wrong."""


class Linear(nn.Module):
    """x @ kernel + bias, with the kernel drawn from N(0, std^2) and the bias at zero, as GPT-2 starts them.

    `heads` are the numbers of query heads and of key heads where the outputs are queries, keys and values. Where the
    collections of `lora.py` have something for the layer, the kernel is theirs, or has a delta.
    """

    features: int
    use_bias: bool
    std: float = INIT_STD
    dtype: Any = jnp.float32
    heads: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "N K"]) -> Float[Array, "N M"]:
        if self.has_variable(ROWS, "kernel"):
            y = times(x, self.get_variable(ROWS, "kernel")).astype(self.dtype)
        elif self.has_variable(INT8, "kernel"):
            kernel = dequantized(self.get_variable(INT8, "kernel"))
            y = ops.linear(x.astype(self.dtype), self._gathered(kernel))
        else:
            kernel = self.param("kernel", nn.initializers.normal(self.std), (x.shape[-1], self.features), jnp.float32)
            y = ops.linear(x.astype(self.dtype), self._gathered(kernel))
        if own := self.variables.get(LORA):
            wide = x.astype(self.dtype)
            added = products(own, lambda a, b: wide @ a.astype(self.dtype) @ b.astype(self.dtype), self.features)
            y += added if self.heads is None else sharding.dealt_out(added, *self.heads)
        if self.use_bias:
            y += self._gathered(self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32))
        return y

    def _gathered(self, p: Float[Array, "*K M"]) -> Float[Array, "*K M"]:
        return sharding.gathered(p.astype(self.dtype), self.name or "", self.heads)


class Norm(nn.Module):
    """Layer norm of the last axis or, where `kind` is ``rms``, RMS norm, which has no bias."""

    kind: str
    epsilon: float
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*N C"]) -> Float[Array, "*N C"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        if self.kind == "rms":
            return ops.rms_norm(x, scale, self.epsilon)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32) if self.use_bias else None
        return ops.layer_norm(x, scale, bias, self.epsilon)


class TokenShift(nn.Module):
    """x_t + share * x_(t-1), a share of each channel, learned from zero: a token knows which it comes after.

    After the token shift of RWKV (Peng et al., 2023), at the embedding alone.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], before: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        return x + self.param("share", nn.initializers.zeros, x.shape[-1:], jnp.float32) * before


class Dropout(nn.Module):
    """Each number dropped with probability `rate` and the rest scaled up to keep the mean (Srivastava et al., 2014).

    Linen's own, but for a rate that may be traced.
    """

    rate: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*N C"], drops: bool) -> Float[Array, "*N C"]:
        if not drops:
            return x
        kept = jax.random.bernoulli(self.make_rng("dropout"), jnp.float32(1 - self.rate), x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0.0)


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


def require_text(idx: Text, vocab_size: int) -> tuple[int, int]:
    """The B and T of tokens (B, T); `UserError` for anything else."""
    if idx.ndim != 2:
        raise UserError(
            f"tokens of shape {idx.shape} are not (B, T), texts side by side; give one text as tokens[None]"
        )
    require_tokens("tokens", idx, vocab_size)
    return idx.shape[0], idx.shape[1]
