"""Attention by blocks against the softmax written out: values and gradients, float32 within 1e-5."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array

from nanogpt_jax.core.softmax_attention import LONG, ROWS, softmax_attention
from tests.helpers.twins import assert_close_in_bfloat16, assert_same, normal


def plain_attention(q: Array, k: Array, v: Array, keep: Array | None = None) -> Array:
    T = q.shape[-2]
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf))
    return (weights if keep is None else weights * keep) @ v


def qkv(T: int, batch: int = 1, heads: int = 2, size: int = 4) -> list[Array]:
    return [normal(i, batch, heads, T, size) for i in range(3)]


LENGTHS = [1, 2, ROWS, ROWS + 1, LONG - 5, LONG + 1, LONG + 3 * ROWS + 7, 2 * LONG]


@pytest.mark.parametrize("T", LENGTHS)
def test_softmax_attention(T: int) -> None:
    assert_same(softmax_attention, plain_attention, *qkv(T, batch=2))


@pytest.mark.parametrize("T", [3, ROWS + 9, LONG + 2])
def test_under_dropout(T: int) -> None:
    keep = jnp.where(normal(3, 1, 2, T, T) > 0, 1.25, 0.0)
    assert_same(
        lambda q, k, v: softmax_attention(q, k, v, keep), lambda q, k, v: plain_attention(q, k, v, keep), *qkv(T)
    )


def test_with_large_scores() -> None:
    q, k, v = qkv(8, heads=1)
    # A score near 1000 has a rounding error of 1e-4 in either form, which its exponential passes on.
    assert_same(softmax_attention, plain_attention, 40 * q, 40 * k, v, within=1e-4)


@pytest.mark.parametrize("T", [9, LONG + 1])
def test_bfloat16_stays_close_and_keeps_its_type(T: int) -> None:
    assert_close_in_bfloat16(jax.jit(softmax_attention), *qkv(T, size=8))


def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    def bytes_at(T: int) -> int:
        def loss(q: Array, k: Array, v: Array) -> Array:
            return softmax_attention(q, k, v).sum()

        shapes = [jax.ShapeDtypeStruct((1, 4, T, 16), jnp.float32)] * 3
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert bytes_at(8 * LONG) < 2.5 * bytes_at(4 * LONG)
