"""The fused head and loss against the head, then the cross-entropy: values and gradients, float32 within 1e-5."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from nanogpt_jax.core.fused_loss import CHUNKS, fused_cross_entropy
from nanogpt_jax.core.ops import cross_entropy
from tests.helpers.twins import assert_same, normal


def plain_loss(x: Array, table: Array, targets: Array, weights: Array) -> Array:
    logits = (x @ table.T).reshape(-1, len(table))
    return jnp.sum(cross_entropy(logits, targets.reshape(-1)) * weights.reshape(-1))


@pytest.mark.parametrize("T", [1, 6, 11, 4 * CHUNKS])
def test_fused_cross_entropy(T: int) -> None:
    B, C, V = 3, 5, 17
    targets = jnp.asarray(np.random.default_rng(T).integers(0, V, (B, T)))
    weights = jnp.abs(normal(2, B, T)) / (B * T)
    assert_same(
        lambda x, table, weights: fused_cross_entropy(x, table, targets, weights),
        lambda x, table, weights: plain_loss(x, table, targets, weights),
        normal(0, B, T, C),
        normal(1, V, C),
        weights,
    )


def test_whole_logits_never_exist() -> None:
    B, T, C, V = 2, 64, 8, 4096
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((B, T, C), (V, C))]

    def bytes_of(loss) -> int:
        targets, weights = jnp.zeros((B, T), jnp.int32), jnp.ones((B, T))
        gradient = jax.jit(jax.grad(lambda x, table: loss(x, table, targets, weights), (0, 1)))
        return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * B * T * V
    assert bytes_of(fused_cross_entropy) < logits < bytes_of(plain_loss)
