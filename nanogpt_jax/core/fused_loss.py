"""The head and its cross-entropy in one, a few positions at a time: the logits of all positions never exist whole.

With GPT-2's vocabulary the float32 logits of a batch, and their gradient, are the largest arrays of a training step.
Here a chunk's logits give its loss and, as that is a sum whose weights are known, at once its gradients too; so nothing
is computed twice. The plain twin, head and then `ops.cross_entropy`, is in `tests/core/test_fused_loss.py`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nanogpt_jax.core.both_ways import both_ways
from nanogpt_jax.core.ops import softcapped

CHUNKS = 8

Chunk = tuple[Float[Array, "*n B t C"], Int[Array, "*n B t"], Float[Array, "*n B t"]]
"""Some positions' x, targets and weights."""


@partial(both_ways, nondiff_argnums=(4,))
def fused_cross_entropy(
    x: Float[Array, "B T C"],
    table: Float[Array, "V C"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    softcap: float | None = None,
) -> Float[Array, ""]:
    """The sum of weights * -log softmax(x table^T)[targets], logits and loss in float32, the logits softcapped.

    T is cut into `CHUNKS` parts, or the next smaller number that divides it: B, which may be spread over devices, is
    not.
    """
    return jax.lax.map(lambda chunk: _chunk(chunk, table, softcap)[0], _chunks(x, targets, weights)).sum()


def _forward(
    x: Array, table: Array, targets: Array, weights: Array, softcap: float | None
) -> tuple[Array, tuple[Array, Array, Array]]:
    def step(dtable: Array, chunk: Chunk) -> tuple[Array, tuple[Array, Array, Array]]:
        loss, losses, dlogits = _chunk(chunk, table, softcap)
        dlogits = dlogits.astype(x.dtype)
        dx = jnp.einsum("btv,vc->btc", dlogits, table, preferred_element_type=jnp.float32)
        dtable += jnp.einsum("btv,btc->vc", dlogits, chunk[0], preferred_element_type=jnp.float32)
        return dtable, (loss, dx.astype(x.dtype), losses)

    zero = jnp.zeros(table.shape, jnp.float32)
    dtable, (loss, dx, losses) = jax.lax.scan(step, zero, _chunks(x, targets, weights))
    dx, dweights = (jnp.moveaxis(parts, 0, 1) for parts in (dx, losses))
    return loss.sum(), (dx.reshape(x.shape), dtable.astype(table.dtype), dweights.reshape(weights.shape))


def _backward(
    softcap: float | None, gradients: tuple[Array, Array, Array], d: Float[Array, ""]
) -> tuple[Array, Array, None, Array]:
    dx, dtable, dweights = ((gradient * d).astype(gradient.dtype) for gradient in gradients)
    return dx, dtable, None, dweights


fused_cross_entropy.defvjp(_forward, _backward)


def _chunk(
    chunk: Chunk, table: Float[Array, "V C"], softcap: float | None
) -> tuple[Float[Array, ""], Float[Array, "B t"], Float[Array, "B t V"]]:
    """A chunk's weighted loss, each target's own, and the gradient of x table^T: weights * (softmax - one-hot)."""
    x, targets, weights = chunk
    logits = softcapped(jnp.einsum("btc,vc->btv", x, table, preferred_element_type=jnp.float32), softcap)
    log_sums = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    hot = targets[..., None] == jnp.arange(table.shape[0])
    # A product and not a select: JAX takes the select's zeros out of the loop, as an array as large as the logits.
    losses = log_sums[..., 0] - jnp.sum(hot * logits, axis=-1)
    dlogits = weights[..., None] * (jnp.exp(logits - log_sums) - hot)
    if softcap is not None:
        dlogits *= 1 - jnp.square(logits / softcap)
    return jnp.sum(weights * losses), losses, dlogits


def _chunks(x: Float[Array, "B T C"], targets: Int[Array, "B T"], weights: Float[Array, "B T"]) -> Chunk:
    """Each array cut along T, the parts in front: (n, B, t, ...)."""
    B, T = targets.shape
    n = max(n for n in range(1, CHUNKS + 1) if T % n == 0)

    def cut(a: Array) -> Array:
        return jnp.moveaxis(a.reshape(B, n, T // n, *a.shape[2:]), 1, 0)

    return cut(x), cut(targets), cut(weights)
