"""Causal softmax attention in plain XLA, with a backward rule of its own: few passes over memory, never a whole T x T.

Queries are taken in blocks of `ROWS`, and a block looks only at the keys that it may see: about half of the T x T
weights are never computed. Up to `LONG` positions a block's weights are kept for the backward pass; above, they are
made anew from the log of each row's sum, one block after the other, so that memory grows with T and not with its square
(FlashAttention: Dao et al., 2022, algorithms 1 and 4). The plain twin is in `tests/core/test_softmax_attention.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nanogpt_jax.core.both_ways import both_ways
from nanogpt_jax.core.ops import AnyArray

# Where a score must not be seen. Finite, so that its exponential is 0 and never NaN.
MASKED = -1e30

ROWS = 128
LONG = 512

# Above LONG the queries are cut into this many spans; the blocks of one span look at the same keys, in one loop.
_SPANS = 4


def softmax_attention(
    q: Float[Array, "B H T D"],
    k: Float[Array, "B H T D"],
    v: Float[Array, "B H T D"],
    keep: Float[Array, "B H T T"] | None = None,
    segments: Int[AnyArray, "B T"] | None = None,
) -> Float[Array, "B H T D"]:
    """(keep * softmax(q k^T / sqrt(D) + causal mask)) v (Vaswani et al., 2017, equation 1), softmax in float32.

    With `segments`, a position sees those of its own number alone. `keep` is dropout's factor of each weight, 0 or
    1 / (1 - rate), which no gradient goes through; with it, memory is quadratic in T as `keep` is.
    """
    if q.shape[2] > LONG and keep is None:
        return _long_attention(q, k, v, segments)[0]
    return _short_attention(q, k, v, None if keep is None else jax.lax.stop_gradient(keep), segments)


@both_ways
def _short_attention(q: Array, k: Array, v: Array, keep: Array | None, segments: Array | None) -> Array:
    return _short_forward(q, k, v, keep, segments)[0]


def _short_forward(
    q: Array, k: Array, v: Array, keep: Array | None, segments: Array | None
) -> tuple[Array, tuple[Any, ...]]:
    blocks = []
    for start, stop in _blocks(q.shape[2]):
        rows = slice(start, stop)
        kept = None if keep is None else keep[:, :, rows, :stop]
        blocks.append(_block_forward(q[:, :, rows], k[:, :, :stop], v[:, :, :stop], kept, start, segments))
    y = _joined([y for y, _, _ in blocks], axis=2)
    return y, (q, k, v, keep, y, [(weights, scale) for _, weights, scale in blocks])


def _short_backward(saved: tuple[Any, ...], dy: Array) -> tuple[Array, Array, Array, None, None]:
    q, k, v, keep, y, made = saved
    blocks = _blocks(q.shape[2])
    parts = []
    for (start, stop), (weights, scale) in zip(blocks, made, strict=True):
        rows = slice(start, stop)
        kept = None if keep is None else keep[:, :, rows, :stop]
        seen = k[:, :, :stop], v[:, :, :stop]
        parts.append(_block_backward(q[:, :, rows], *seen, kept, weights, scale, y[:, :, rows], dy[:, :, rows]))
    dq, dk_t, dv_t = zip(*parts, strict=True)
    return _joined(dq, axis=2), _summed(dk_t, blocks).astype(k.dtype), _summed(dv_t, blocks).astype(v.dtype), None, None


_short_attention.defvjp(_short_forward, _short_backward)


def _block_forward(
    q: Float[Array, "B H R D"], k: Array, v: Array, keep: Array | None, first: int, segments: Array | None
) -> tuple[Float[Array, "B H R D"], Float[Array, "B H R S"], Float[Array, "B H R 1"]]:
    """Output of R queries from position `first` on over the S keys given, their weights, and 1 over the rows' sums.

    The weights are left undivided: the sums divide the output, which is narrower, and on the way back its gradient.
    """
    scores = _scores(q, k, first, segments)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    scale = 1 / weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(v.dtype)
    return (_einsum("bhts,bhsd->bhtd", _dropped(weights, keep), v) * scale).astype(v.dtype), weights, scale


def _block_backward(
    q: Array,
    k: Array,
    v: Array,
    keep: Array | None,
    weights: Array,
    scale: Array | float,
    y: Array,
    dy: Array,
    dlog_sums: Array | float = 0.0,
) -> tuple[Float[Array, "B H R D"], Float[Array, "B H D S"], Float[Array, "B H D S"]]:
    """Gradients of a block's queries, and what it adds to those of its keys and values, these transposed.

    Transposed, because XLA:CPU is faster at (D, R) x (R, S) than at (S, R) x (R, D).
    """
    root = 1 / math.sqrt(q.shape[-1])
    dy = (dy * scale).astype(v.dtype)
    along = jnp.sum(dy.astype(jnp.float32) * y, axis=-1, keepdims=True) - dlog_sums
    dv_t = _einsum("bhtd,bhts->bhds", dy, _dropped(weights, keep))
    dweights = _dropped(_einsum("bhtd,bhsd->bhts", dy, v), keep)
    dscores = (weights * (dweights - along)).astype(q.dtype)
    dq = _einsum("bhts,bhsd->bhtd", dscores, k) * root
    dk_t = _einsum("bhtd,bhts->bhds", q, dscores) * root
    return dq.astype(q.dtype), dk_t, dv_t


@both_ways
def _long_attention(q: Array, k: Array, v: Array, segments: Array | None) -> tuple[Array, Float[Array, "B H T 1"]]:
    """The output, and the log of the sum of each row's exponentials, one block of queries after the other."""

    def block(start: Any, size: int, stop: int, out: tuple[Array, Array]) -> tuple[Array, Array]:
        seen = k[:, :, :stop], v[:, :, :stop]
        scores = _scores(_rows(q, start, size), seen[0], start, segments)
        log_sums = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - log_sums).astype(v.dtype)
        y = _einsum("bhts,bhsd->bhtd", weights, seen[1]).astype(v.dtype)
        return _put(out[0], y, start), _put(out[1], log_sums, start)

    return _one_by_one(block, q.shape[2], (jnp.zeros_like(q), jnp.zeros((*q.shape[:3], 1), jnp.float32)))


def _long_plain(q: Array, k: Array, v: Array, segments: Array | None) -> tuple[Array, Array]:
    """The same written out: what tangents follow, since JAX has no derivative in reverse of a `while_loop`."""
    scores = _scores(q, k, 0, segments)
    log_sums = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    return _einsum("bhts,bhsd->bhtd", jnp.exp(scores - log_sums).astype(v.dtype), v).astype(v.dtype), log_sums


def _long_forward(*given: Any) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    made = _long_attention(*given)
    return made, (*given, *made)


def _long_backward(saved: tuple[Any, ...], d: tuple[Array, Array]) -> tuple[Array, Array, Array, None]:
    q, k, v, segments, y, log_sums = saved

    def block(start: Any, size: int, stop: int, out: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rows, log_sums_rows, y_rows, dy, dlog_sums = (_rows(x, start, size) for x in (q, log_sums, y, *d))
        seen = k[:, :, :stop], v[:, :, :stop]
        weights = jnp.exp(_scores(rows, seen[0], start, segments) - log_sums_rows).astype(v.dtype)
        dq, dk_t, dv_t = _block_backward(rows, *seen, None, weights, 1.0, y_rows, dy, dlog_sums)
        return _put(out[0], dq, start), out[1].at[..., :stop].add(dk_t), out[2].at[..., :stop].add(dv_t)

    empty = jnp.zeros((*q.shape[:2], q.shape[3], q.shape[2]), jnp.float32)
    dq, dk_t, dv_t = _one_by_one(block, q.shape[2], (jnp.zeros_like(q), empty, empty))
    return dq, dk_t.swapaxes(2, 3).astype(k.dtype), dv_t.swapaxes(2, 3).astype(v.dtype), None


_long_attention.defvjp(_long_forward, _long_backward, plain=_long_plain)


def _one_by_one(block: Callable[..., Any], length: int, out: Any) -> Any:
    """`out` after ``block(start, size, stop, out)`` for all queries, where a block may see the keys before `stop`.

    A loop, so that one block's weights take the place of the last one's; a `while_loop`, because sampling past
    `block_size` runs through here and is to be free of `lax.scan`.
    """
    span = length // (_SPANS * ROWS) * ROWS

    def over_span(first: int, stop: int, out: Any) -> Any:
        def body(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            start, out = carry
            return start + ROWS, block(start, ROWS, stop, out)

        return jax.lax.while_loop(lambda carry: carry[0] < stop, body, (jnp.asarray(first), out))[1]

    for index in range(_SPANS):
        out = over_span(index * span, (index + 1) * span, out)
    for start, stop in _blocks(length, _SPANS * span):
        out = block(start, stop - start, stop, out)
    return out


def _blocks(length: int, first: int = 0) -> list[tuple[int, int]]:
    """Where the blocks of queries start and stop, from `first` on."""
    return [(start, min(start + ROWS, length)) for start in range(first, length, ROWS)]


def _scores(q: Array, k: Array, first: Int[Array, ""] | int, segments: Array | None) -> Float[Array, "B H R S"]:
    """Scores of the queries at `first`, `first` + 1, ..., with `MASKED` added where a key lies in their future.

    So it is where a key is of another segment. Adding the mask lets XLA:CPU fuse it with what follows; a select would
    be a pass of its own.
    """
    R, S = q.shape[2], k.shape[2]
    unseen = jnp.arange(S) > first + jnp.arange(R)[:, None]
    if segments is not None:
        own = jax.lax.dynamic_slice_in_dim(segments, first, R, axis=1)
        unseen = (unseen | (own[:, :, None] != segments[:, None, :S]))[:, None]
    return _einsum("bhtd,bhsd->bhts", q, k) * (1 / math.sqrt(q.shape[-1])) + jnp.where(unseen, MASKED, 0.0)


def _summed(parts: tuple[Array, ...], blocks: list[tuple[int, int]]) -> Float[Array, "B H T D"]:
    """The sum of what each block gives the keys it sees, (B, H, D, stop); a key is seen by its own block and later."""
    columns = []
    for i, (start, stop) in enumerate(blocks):
        columns.append(sum(part[..., start:stop] for part in parts[i:]))
    # The barrier keeps XLA from turning the products back into the slower form.
    return jax.lax.optimization_barrier(_joined(columns, axis=3)).swapaxes(2, 3)


def _joined(parts: Any, axis: int) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _rows(x: Array, start: Any, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=2)


def _put(x: Array, rows: Array, start: Any) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, rows.astype(x.dtype), start, axis=2)


def _dropped(weights: Array, keep: Array | None) -> Array:
    return weights if keep is None else weights * keep.astype(weights.dtype)


def _einsum(formula: str, a: Array, b: Array) -> Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)
