"""Every fast path of `nanogpt_jax.core.ops` against its plain twin: values and gradients, float32 within 1e-5."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Array, TypeCheckError

from nanogpt_jax.core import ops
from tests.helpers.twins import assert_close_in_bfloat16, assert_same, normal

sizes = st.sampled_from([1, 2, 7])  # few distinct sizes: every new shape is a compilation
few = settings(max_examples=6, deadline=None)


def plain_layer_norm(x: Array, scale: Array, bias: Array | None) -> Array:
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale
    return y if bias is None else y + bias


def plain_split_heads(qkv: Array, batch: int, heads: int, key_heads: int) -> list[Array]:
    size = qkv.shape[1] // (heads + 2 * key_heads)
    parts = jnp.split(qkv, [heads * size, (heads + key_heads) * size], axis=1)
    return [part.reshape(batch, -1, part.shape[1] // size, size).swapaxes(1, 2) for part in parts]


@few
@given(sizes, sizes, sizes)
def test_linear(n: int, k: int, m: int) -> None:
    assert_same(ops.linear, lambda x, w: x @ w, normal(0, n, k), normal(1, k, m))


@few
@given(sizes, st.sampled_from([2, 33]), st.booleans())
def test_layer_norm(n: int, c: int, has_bias: bool) -> None:
    args = (normal(0, n, c) * 3 + 1, normal(1, c)) + ((normal(2, c),) if has_bias else ())
    assert_same(
        lambda x, scale, bias=None: ops.layer_norm(x, scale, bias, 1e-5),
        lambda x, scale, bias=None: plain_layer_norm(x, scale, bias),
        *args,
    )


def test_layer_norm_keeps_its_digits_far_from_zero() -> None:
    x = normal(0, 4, 64) + 300
    want = plain_layer_norm(np.asarray(x, np.float64), 1.0, None)
    np.testing.assert_allclose(ops.layer_norm(x, jnp.ones(64), None, 1e-5), want, atol=1e-4)


@few
@given(st.sampled_from([(1, 2), (7, 33), (2, 3, 4, 6)]), st.sampled_from([1e-6, 1e-2]))
def test_rms_norm(shape: tuple[int, ...], epsilon: float) -> None:
    assert_same(
        lambda x, scale: ops.rms_norm(x, scale, epsilon),
        lambda x, scale: x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + epsilon) * scale,
        normal(0, *shape) * 3 + 1,
        normal(1, shape[-1]),
    )


@pytest.mark.parametrize("cap", [None, 3.0])
def test_softcapped(cap: float | None) -> None:
    plain = {None: lambda x: x, 3.0: lambda x: 3 * jnp.tanh(x / 3)}[cap]
    assert_same(lambda x: ops.softcapped(x, cap), plain, normal(0, 5, 7) * 4)


def test_gelu() -> None:
    assert_same(ops.gelu, lambda x: jax.nn.gelu(x, approximate=False), jnp.linspace(-12, 12, 4001))


@pytest.mark.parametrize("rows", [1, 65, ops.ONE_HOT_ROWS + 1])
def test_embedding(rows: int) -> None:
    idx = jnp.asarray(np.random.default_rng(0).integers(0, rows, (3, 5)))
    assert_same(lambda table: ops.embedding(table, idx), lambda table: table[idx], normal(0, rows, 7))


@pytest.mark.parametrize("rows", [65, ops.ONE_HOT_ROWS + 1])
def test_embedding_reads_and_teaches_the_nearest_row(rows: int) -> None:
    idx = jnp.array([[rows, rows + 9, 3]])
    inside = jnp.array([[rows - 1, rows - 1, 3]])
    assert_same(lambda table: ops.embedding(table, idx), lambda table: table[inside], normal(0, rows, 4))


@few
@given(sizes, sizes, st.sampled_from([(1, 1), (3, 3), (6, 2), (4, 1)]), sizes)
def test_split_heads(batch: int, length: int, heads: tuple[int, int], size: int) -> None:
    qkv = normal(0, batch * length, (heads[0] + 2 * heads[1]) * size)
    assert_same(lambda x: list(ops.split_heads(x, batch, *heads)), lambda x: plain_split_heads(x, batch, *heads), qkv)
    q, k, v = ops.split_heads(qkv, batch, *heads)
    np.testing.assert_array_equal(jnp.concatenate([ops.merge_heads(y) for y in (q, k, v)], 1), qkv)


@few
@given(sizes, st.sampled_from([1, 2, 65]))
def test_cross_entropy(n: int, classes: int) -> None:
    targets = jnp.asarray(np.random.default_rng(n).integers(0, classes, n))
    assert_same(
        lambda x: ops.cross_entropy(x, targets),
        lambda x: -jax.nn.log_softmax(x)[jnp.arange(n), targets],
        normal(0, n, classes) * 4,
    )


@pytest.mark.parametrize("name", ["linear", "gelu"])
def test_bfloat16_stays_close_and_keeps_its_type(name: str) -> None:
    shapes = {"linear": [(6, 8), (8, 5)], "gelu": [(50,)]}[name]
    assert_close_in_bfloat16(getattr(ops, name), *(normal(i, *shape) for i, shape in enumerate(shapes)))


def test_shapes_in_signatures_are_checked_while_the_tests_run():
    with pytest.raises(TypeCheckError, match=r"parameters of nanogpt_jax\.core\.ops\.linear"):
        ops.linear(jnp.ones((2, 3)), jnp.ones((4, 5)))
