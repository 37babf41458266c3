"""The arithmetic of a training step, written so that XLA needs few passes over memory: pure functions of arrays.

Each function means what its one-line formula says; the plain twin that says the same without regard for speed is in
`tests/core/test_ops.py`. Where the gradient that autodiff would derive reads or copies more than it must, the function
carries its own backward rule, and forward mode follows the function as it is written (`both_ways.py`). Nothing here
depends on the platform: what is written for the CPU's matrix products is right, and no slower, on a GPU or TPU.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nanogpt_jax.core.both_ways import both_ways

AnyArray = Array | np.ndarray
"""What JAX computes with: its own arrays, traced or not, and numpy's."""

# Up to this many rows a table's gradient is a product with one-hot rows; above it, a scatter.
ONE_HOT_ROWS = 1024


@both_ways
def linear(x: Float[Array, "N K"], kernel: Float[Array, "K M"]) -> Float[Array, "N M"]:
    """x @ kernel. Its gradients are dx = dy @ kernel^T and dkernel = x^T @ dy."""
    return x @ kernel


def _linear_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _linear_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = _dot(dy, kernel, 1, 1)
    # The left operand of a product over rows is the one that XLA:CPU transposes: let it be the narrower one. The
    # barrier keeps XLA from turning the second form back into the first.
    if x.shape[1] <= dy.shape[1]:
        return dx, _dot(x, dy, 0, 0)
    return dx, jax.lax.optimization_barrier(_dot(dy, x, 0, 0)).T


linear.defvjp(_linear_forward, _linear_backward)


@partial(both_ways, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "N C"], scale: Float[Array, " C"], bias: Float[Array, " C"] | None, epsilon: float
) -> Float[Array, "N C"]:
    """(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias over each row (Ba et al., 2016), in float32."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(
    x: Array, scale: Array, bias: Array | None, epsilon: float
) -> tuple[Array, tuple[Array, Array, Array, Array | None]]:
    normal, rstd = _normalized(x, epsilon)
    y = normal * scale
    return y if bias is None else y + bias, (x, rstd, scale, bias)


def _layer_norm_backward(
    epsilon: float, saved: tuple[Array, Array, Array, Array | None], dy: Array
) -> tuple[Array, Array, Array | None]:
    x, rstd, scale, bias = saved
    normal, _ = _normalized(x, epsilon)  # as the forward pass has it: XLA computes it once
    dnormal = dy * scale
    along = jnp.mean(dnormal * normal, axis=-1, keepdims=True)
    dx = rstd * (dnormal - jnp.mean(dnormal, axis=-1, keepdims=True) - normal * along)
    dbias = None if bias is None else jnp.sum(dy, axis=0)
    return dx.astype(x.dtype), jnp.sum(dy * normal, axis=0), dbias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@partial(both_ways, nondiff_argnums=(2,))
def rms_norm(x: Float[Array, "*N C"], scale: Float[Array, " C"], epsilon: float) -> Float[Array, "*N C"]:
    """x / sqrt(mean(x^2) + epsilon) * scale over each row (Zhang and Sennrich, 2019), in float32."""
    return _rms_norm_forward(x, scale, epsilon)[0]


def _rms_norm_forward(x: Array, scale: Array, epsilon: float) -> tuple[Array, tuple[Array, Array, Array]]:
    wide = x.astype(jnp.float32)
    rstd = _rstd(wide, epsilon)
    return wide * rstd * scale, (x, rstd, scale)


def _rms_norm_backward(epsilon: float, saved: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array]:
    x, rstd, scale = saved
    normal, dnormal = x.astype(jnp.float32) * rstd, dy * scale
    dx = rstd * (dnormal - normal * jnp.mean(dnormal * normal, axis=-1, keepdims=True))
    return dx.astype(x.dtype), jnp.sum(dy * normal, axis=tuple(range(x.ndim - 1)))


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def relu2(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """max(x, 0)^2 (So et al., 2021)."""
    return jnp.square(jax.nn.relu(x))


def softcapped(logits: Float[Array, "*N V"], cap: float | None) -> Float[Array, "*N V"]:
    """cap tanh(logits / cap), which is within (-cap, cap) (Gemma 2, 2024); None leaves them as they are."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def gelu(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """x Phi(x), Phi the normal distribution's (Hendrycks and Gimpel, 2016), in float32.

    Phi is written with erf: `jax.nn.gelu` writes it with erfc, which is exact in the far tail, where x Phi(x) is
    nothing to anyone, and several times slower.
    """
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


@both_ways
def embedding(table: Float[Array, "V C"], idx: Int[Array, "B T"]) -> Float[Array, "B T C"]:
    """table[idx]; an index outside the table reads its nearest row."""
    return jnp.take(table, idx, axis=0, mode="clip")


def _embedding_forward(table: Array, idx: Array) -> tuple[Array, tuple[Array, Array]]:
    return embedding(table, idx), (table, idx)


def _embedding_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, None]:
    table, idx = saved
    rows, idx = dy.reshape(-1, dy.shape[-1]), jnp.clip(idx.reshape(-1), 0, len(table) - 1)
    if len(table) > ONE_HOT_ROWS:
        return jnp.zeros_like(table).at[idx].add(rows.astype(table.dtype)), None
    hot = (idx[:, None] == jnp.arange(len(table))).astype(rows.dtype)
    return _dot(hot, rows, 0, 0, precision=jax.lax.Precision.HIGHEST).astype(table.dtype), None


embedding.defvjp(_embedding_forward, _embedding_backward)


@partial(both_ways, nondiff_argnums=(1,))
def to_every_row(table: Float[Array, "T C"], batch: int) -> Float[Array, "{batch} T C"]:
    """The same rows for each of `batch` sequences. Their gradient, a sum over sequences, is a product with ones."""
    return jnp.broadcast_to(table, (batch, *table.shape))


def _to_every_row_forward(table: Array, batch: int) -> tuple[Array, None]:
    return to_every_row(table, batch), None


def _to_every_row_backward(batch: int, _: None, dy: Array) -> tuple[Array]:
    return (jnp.einsum("b,btc->tc", jnp.ones(batch, dy.dtype), dy, precision=jax.lax.Precision.HIGHEST),)


to_every_row.defvjp(_to_every_row_forward, _to_every_row_backward)


@partial(both_ways, nondiff_argnums=(1, 2, 3))
def split_heads(
    qkv: Float[Array, "N QKV"], batch: int, heads: int, key_heads: int
) -> tuple[
    Float[Array, "{batch} {heads} T D"],
    Float[Array, "{batch} {key_heads} T D"],
    Float[Array, "{batch} {key_heads} T D"],
]:
    """Queries, keys and values of each head from rows that hold the heads of all three side by side."""
    all_heads = heads + 2 * key_heads
    qkv = qkv.reshape(batch, -1, all_heads, qkv.shape[1] // all_heads).swapaxes(1, 2)
    return qkv[:, :heads], qkv[:, heads : heads + key_heads], qkv[:, heads + key_heads :]


def _split_heads_forward(qkv: Array, *static: int) -> tuple[tuple[Array, Array, Array], None]:
    return split_heads(qkv, *static), None


def _split_heads_backward(batch: int, heads: int, key_heads: int, _: None, d: tuple[Array, ...]) -> tuple[Array]:
    return (jnp.concatenate([merge_heads(y) for y in d], axis=1),)


split_heads.defvjp(_split_heads_forward, _split_heads_backward)


def merge_heads(y: Float[Array, "B H T D"]) -> Float[Array, "B*T H*D"]:
    """The heads of each position side by side."""
    return y.swapaxes(1, 2).reshape(y.shape[0] * y.shape[2], -1)


def cross_entropy(logits: Float[Array, "N V"], targets: Int[Array, " N"]) -> Float[Array, " N"]:
    """-log softmax(logits)[target] of each row, in float32.

    The target's logit is picked by comparison, so that its gradient is a comparison too and not a scatter.
    """
    logits = logits.astype(jnp.float32)
    hot = targets[:, None] == jnp.arange(logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hot, logits, 0.0), axis=-1)


def weighted_cross_entropy(
    logits: Float[Array, "B T V"], targets: Int[AnyArray, "B T"], weights: Float[AnyArray, "B T"]
) -> Float[Array, ""]:
    """The sum of the targets' `cross_entropy`, each times its weight."""
    losses = cross_entropy(logits.reshape(-1, logits.shape[-1]), jnp.asarray(targets).reshape(-1))
    return jnp.sum(losses * jnp.asarray(weights).reshape(-1))


def _normalized(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Rows of `x` with mean 0 and variance 1, and 1 over the standard deviations they had."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    rstd = _rstd(centred, epsilon)
    return centred * rstd, rstd


def _rstd(x: Array, epsilon: float) -> Array:
    return jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


def _dot(a: Array, b: Array, over_a: int, over_b: int, precision: jax.lax.Precision | None = None) -> Array:
    """The product of two matrices summed over one axis of each."""
    return jax.lax.dot_general(a, b, (((over_a,), (over_b,)), ((), ())), precision=precision)
