"""The weights as decoding reads them: each output's side by side, and with `int8` a quarter of the bytes.

Drawing a token reads every weight once, for a handful of rows of activations, so memory's bandwidth is the limit.
XLA:CPU reads a matrix at that rate where it is the left operand with the summed axis last, (M, K) x (K, rows), and
takes twice as long over (rows, K) x (K, M), which is how training has it.
"""

from __future__ import annotations

import functools
from typing import Any, no_type_check

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from nanogpt_jax.core.sampling_config import Quantize

ROWS = "rows"
"""The linen collection of these weights; where a module finds its own there, it uses them and not its parameters."""

# Up to so many rows the weights are the left operand.
_FEW = 16


@flax.struct.dataclass
class Rows:
    """A matrix by outputs. With `scale`, output m's weights are weight[m] * scale[m]."""

    weight: Float[Array, "M K"] | Int8[Array, "M K"]
    scale: Float[Array, " M"] | None = None


no_type_check(Rows.__init__)  # a tree of this shape may hold anything


@functools.partial(jax.jit, static_argnums=(0, 2))
def decoding_weights(model: nn.Module, params: Any, quantize: Quantize = "none") -> dict[str, Any]:
    """The variables to apply `model` with, from its parameters: every kernel by outputs, in the model's type or int8.

    The token table stays as it is, to look tokens up in; where it is also the head, and of another type there, the head
    is a copy.
    """
    flat = flax.traverse_util.flatten_dict(params)
    make = quantized if quantize == "int8" else lambda weight: Rows(weight.astype(model.dtype))
    kernels = {path: make(p.T) for path, p in flat.items() if path[-1] == "kernel"}
    rest = {path: p for path, p in flat.items() if path not in kernels}
    other_type = quantize == "int8" or model.dtype != jnp.float32
    if kernels and other_type and model.config.tie_word_embeddings:
        kernels["head",] = make(flat["wte", "embedding"])
    return {"params": flax.traverse_util.unflatten_dict(rest), ROWS: flax.traverse_util.unflatten_dict(kernels)}


def quantized(weight: Float[Array, "M K"]) -> Rows:
    """The nearest int8 matrix, with a scale for each output (symmetric, per channel: largest magnitude to 127)."""
    levels, scale = _to_int8(weight)
    return Rows(levels, scale)


def dequantized(rows: Rows) -> Float[Array, "K M"]:
    """The matrix that int8 weights stand for, by inputs, in float32."""
    assert rows.scale is not None
    return (rows.weight * rows.scale[:, None]).T


def times(x: Float[Array, "N K"], rows: Rows) -> Float[Array, "N M"]:
    """x @ weight^T in float32. With int8 weights, x is taken to int8 too, each row by its own scale."""
    if rows.scale is None:
        return _product(x.astype(rows.weight.dtype), rows.weight, jnp.float32)
    levels, scale = _to_int8(x)
    few = jnp.pad(levels, ((0, 1), (0, 0))) if len(x) == 1 else levels  # XLA:CPU has no fast int8 product with a vector
    return _product(few, rows.weight, jnp.int32)[: len(x)] * scale[:, None] * rows.scale


def _product(x: Array, weight: Array, dtype: Any) -> Array:
    def summed_last(a: Array, b: Array) -> Array:
        return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=dtype)

    if len(x) > _FEW:
        return summed_last(x, weight)
    # The barrier keeps XLA from turning this back into the slower order.
    return jax.lax.optimization_barrier(summed_last(weight, x)).T


def _to_int8(x: Float[Array, "N K"]) -> tuple[Int8[Array, "N K"], Float[Array, " N"]]:
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    levels = jnp.round(x / jnp.where(scale == 0, 1, scale)[:, None])
    return levels.astype(jnp.int8), scale.astype(jnp.float32)
