"""Attention against a twin that loops over queries one at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax.core.attention import cached_attention, causal_attention, choose_kernel
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.softmax_attention import LONG


def naive_attention(q, k, v):
    """softmax(q k^T / sqrt(D)) v, each query over the keys up to its own position, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, h, t in np.ndindex(q.shape[:3]):
        scores = k[b, h, : t + 1] @ q[b, h, t] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, h, t] = weights / weights.sum() @ v[b, h, : t + 1]
    return out


def random_qkv(B, H, T, D, seed=0):
    return jax.random.normal(jax.random.key(seed), (3, B, H, T, D))


attend = jax.jit(causal_attention, static_argnames=("kernel", "dropout"))


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 4, 8]))
def test_matches_the_definition(B, H, T, D):
    q, k, v = random_qkv(B, H, T, D)
    np.testing.assert_allclose(attend(q, k, v), naive_attention(q, k, v), atol=1e-5)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_a_cache_read_piece_by_piece_gives_what_the_whole_sequence_gives(key_heads):
    q, k, v = random_qkv(2, 4, 8, 6)
    k, v = k[:, :key_heads], v[:, :key_heads]
    whole = attend(q, k, v)
    k, v = (np.reshape(x, (-1, 8, 6)) for x in (k, v))
    junk = np.full(k.shape, 1e3)  # what a cache holds past the present must not be seen
    for position, T in ((0, 3), (3, 1), (4, 4)):
        end = position + T
        seen_k, seen_v = (np.concatenate([x[:, :end], junk[:, end:]], axis=1) for x in (k, v))
        part = jax.jit(cached_attention)(q[:, :, position:end], seen_k, seen_v, jnp.asarray(position))
        np.testing.assert_allclose(part, whole[:, :, position:end], atol=1e-6)


@pytest.mark.parametrize("length", [9, LONG + 8])
def test_grouped_queries_read_the_key_head_of_their_group(length):
    q, k, v = random_qkv(1, 6, length, 4)
    grouped = attend(q, k[:, :2], v[:, :2])
    each = attend(q, *(jnp.concatenate([x[:, :1]] * 3 + [x[:, 1:2]] * 3, axis=1) for x in (k, v)))
    np.testing.assert_allclose(grouped, each, atol=1e-6)


def test_dropout_keeps_the_mean():
    q, k, v = random_qkv(1, 1, 6, 4)
    keys = jax.random.split(jax.random.key(1), 3000)
    drawn = jax.jit(jax.vmap(lambda key: causal_attention(q, k, v, dropout=0.3, key=key)))(keys)
    np.testing.assert_allclose(np.mean(drawn, axis=0), attend(q, k, v), atol=0.06)
    assert not np.allclose(drawn[0], drawn[1])


def test_auto_takes_flash_attention_where_it_runs():
    bfloat16, float32 = jnp.dtype("bfloat16"), jnp.dtype("float32")
    assert choose_kernel("auto", "gpu", 64, bfloat16, 0.0) == "cudnn"
    assert choose_kernel("auto", "gpu", 64, float32, 0.0) == "xla"
    assert choose_kernel("auto", "gpu", 64, bfloat16, 0.2) == "xla"
    assert choose_kernel("auto", "tpu", 64, bfloat16, 0.0) == "splash"
    assert choose_kernel("auto", "cpu", 64, float32, 0.0) == "xla"
    with pytest.raises(UserError, match=r"attention=cudnn does not run on cpu .* attention=auto"):
        choose_kernel("cudnn", "cpu", 64, float32, 0.0)


def test_flash_attention_of_gpus_waits_for_ampere():
    bfloat16 = jnp.dtype("bfloat16")
    assert [choose_kernel("auto", "gpu", 64, bfloat16, 0.0, version) for version in (7.5, 8.0, 12.0)] == [
        "xla", "cudnn", "cudnn",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"attention=cudnn does not run on gpu of compute capability 7.5 .*=auto"):
        choose_kernel("cudnn", "gpu", 64, bfloat16, 0.0, 7.5)
