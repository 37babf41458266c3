"""Causal attention as functions of arrays: over a whole sequence, and over a key/value cache.

The scores are softmax(q k^T / sqrt(head_size)) with the future masked out (Vaswani et al., 2017, equation 1). Which
kernel computes them is a choice of speed, made by `choose_kernel`, and never of meaning.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.ops import AnyArray
from nanogpt_jax.core.sharding import on_own_heads
from nanogpt_jax.core.softmax_attention import MASKED, softmax_attention

Position = Int[Array, ""] | int
"""Of the first of some tokens, counted from 0."""

# Splash attention reads so many positions at a time; sequences of other lengths take the plain kernel.
SPLASH_BLOCK = 128
# The compute capability from which on GPUs multiply in bfloat16, and cuDNN has flash attention for them.
AMPERE = 8.0


def choose_kernel(
    requested: str, platform: str, head_size: int, dtype: jnp.dtype, dropout: float, capability: float | None = None
) -> str:
    """The name of the kernel to use: `requested`, or for ``auto`` the fastest that `platform` has for these shapes.

    `platform` is ``cpu``, ``gpu`` or ``tpu``, `capability` an NVIDIA GPU's compute capability, where it is known.
    cuDNN's flash attention needs 8.0 (Ampere) of that, and takes 16-bit inputs and heads of up to 128 in multiples of
    8; TPU splash attention takes heads in multiples of 64 here; neither drops attention weights out.

    Raises `UserError` when a kernel is requested that cannot run.
    """
    able = platform == "gpu" and (capability is None or capability >= AMPERE)
    cudnn = able and dtype.itemsize == 2 and head_size % 8 == 0 and head_size <= 128 and dropout == 0
    splash = platform == "tpu" and head_size % 64 == 0 and dropout == 0
    if requested == "auto":
        return "cudnn" if cudnn else "splash" if splash else "xla"
    if not {"xla": True, "cudnn": cudnn, "splash": splash}[requested]:
        of = "" if capability is None else f" of compute capability {capability}"
        raise UserError(
            f"attention={requested} does not run on {platform}{of} with dtype={dtype.name}, heads of {head_size} and "
            f"dropout={dropout}; use attention=auto"
        )
    return requested


def causal_attention(
    q: Float[Array, "B H T D"],
    k: Float[Array, "B K T D"],
    v: Float[Array, "B K T D"],
    *,
    kernel: str = "xla",
    dropout: float | Float[Array, ""] = 0.0,
    key: PRNGKeyArray | None = None,
    segments: Int[AnyArray, "B T"] | None = None,
) -> Float[Array, "B H T D"]:
    """Every position attends to itself and to what came before it; with `segments`, to that of its own number.

    K divides H: each key head is read by H / K query heads, which lie side by side (GQA: Ainslie et al., 2023).

    With a `key`, each attention weight is dropped with probability `dropout` and the rest scaled up to keep the mean.
    Segments are known to ``xla`` alone, which then takes the place of the others.
    """
    if segments is not None:
        kernel = "xla"
    if kernel == "cudnn":
        return on_own_heads(_cudnn_attention)(q, k, v)
    if kernel == "splash" and q.shape[-2] % SPLASH_BLOCK == 0:
        return on_own_heads(_splash_attention)(q, k, v)
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    keep = None
    if key is not None:
        shape = (*q.shape[:-1], k.shape[-2])
        kept = jax.random.bernoulli(key, jnp.float32(1 - dropout), shape)
        keep = jnp.where(kept, 1 / (1 - dropout), 0.0).astype(jnp.float32)
    return softmax_attention(q, k, v, keep, segments)


def cached_attention(
    q: Float[Array, "B H T D"],
    k: Float[Array, "BK S D"],
    v: Float[Array, "BK S D"],
    position: Position,
) -> Float[Array, "B H T D"]:
    """T new positions, the first of which is `position`, attend to a cache that already holds their own keys.

    Entries of the cache past a query's own position are not seen, whatever they hold. From position S on all are seen:
    the cache has gone round, and holds the last S.
    """
    S = k.shape[1]
    rows = q.reshape(len(k), -1, q.shape[3])  # the queries of all heads that read one key head
    at = position + jnp.arange(rows.shape[1]) % q.shape[2]
    scores = jnp.einsum("ntd,nsd->nts", rows, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[3])
    weights = jax.nn.softmax(jnp.where(jnp.arange(S) <= at[:, None], scores, MASKED), axis=-1)
    return jnp.einsum("nts,nsd->ntd", weights.astype(v.dtype), v).reshape(q.shape)


def _cudnn_attention(q: Array, k: Array, v: Array) -> Array:
    """FlashAttention (Dao et al., 2022) as cuDNN has it: memory linear in T. NVIDIA GPUs only."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # (B, T, H, D) is its layout
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn").swapaxes(1, 2)


def _splash_attention(q: Array, k: Array, v: Array) -> Array:
    """Splash attention, JAX's block-sparse flash kernel for TPU: memory linear in T."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    heads, T = q.shape[1:3]
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((T, T))] * heads)
    attend = splash_attention_kernel.make_splash_mha_single_device(mask=mask)
    return jax.vmap(attend)(q / math.sqrt(q.shape[-1]), k, v)
