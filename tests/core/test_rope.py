"""Rotary positions: a rotation of each pair, products that depend on distance alone, and Llama 3's scaling of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.rope import frequencies, rotated
from nanogpt_jax.core.shape import Llama3Scaling, rope_scaling
from tests.helpers.twins import assert_close_in_bfloat16, assert_same, normal


def plain_rotated(x, turns, position):
    """Each pair as a complex number, multiplied by e^(i angle)."""
    half = x.shape[-1] // 2
    angles = jnp.outer(position + jnp.arange(x.shape[2]), turns)
    turned = (x[..., :half] + 1j * x[..., half:]) * jnp.exp(1j * angles)
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize("position", [0, 5])
def test_pairs_are_turned_by_their_angles(position):
    turns = frequencies(6, 100.0)
    assert_same(
        lambda x: rotated(x, turns, position), lambda x: plain_rotated(x, turns, position), normal(0, 2, 3, 4, 6)
    )


def test_products_depend_on_the_distance_alone():
    turns = frequencies(8, 10_000.0)
    q, k = normal(0, 1, 1, 1, 8), normal(1, 1, 1, 1, 8)
    products = [float(jnp.sum(rotated(q, turns, at + 3) * rotated(k, turns, at))) for at in (0, 1, 40)]
    np.testing.assert_allclose(products, products[0], atol=1e-5)
    assert abs(products[0] - float(jnp.sum(q * k))) > 1e-2


def test_a_position_may_be_traced_and_the_type_stays():
    x, turns = normal(0, 1, 2, 5, 4), frequencies(4, 10_000.0)
    np.testing.assert_allclose(jax.jit(lambda p: rotated(x, turns, p))(7), rotated(x, turns, 7), atol=1e-6)
    assert_close_in_bfloat16(lambda x: rotated(x, turns, 7), x)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(("theirs", "ours"), [({"rope_type": "default"}, None), (LLAMA3, "llama3:4,1,4,64")])
def test_queries_are_turned_as_transformers_turns_them(theirs, ours):
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, rope_theta=500.0, rope_parameters={"rope_theta": 500.0, **theirs},
        rope_scaling=None if ours is None else theirs, max_position_embeddings=256,
    )  # fmt: skip
    if ours is not None or hasattr(config, "rope_parameters"):
        config.rope_parameters = {"rope_theta": 500.0, **theirs}
    x = normal(0, 1, 2, 200, 32)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(200)[None])
    want, _ = apply_rotary_pos_emb(*[torch.tensor(np.asarray(x))] * 2, cos, sin)
    np.testing.assert_allclose(rotated(x, frequencies(32, 500.0, ours), 0), want.numpy(), atol=1e-4)


def test_a_scaling_is_read_or_refused():
    assert rope_scaling("llama3:32,1,4,8192") == Llama3Scaling(32, 1, 4, 8192)
    for text in ("", "llama3", "llama3:", "llama3:1,2,3", "llama3:8,4,1,8192", "llama3:nan,1,4,8", "yarn:8,1,4,8192"):
        with pytest.raises(UserError, match="is no scaling of rotary frequencies; give llama3:FACTOR"):
            rope_scaling(text)
