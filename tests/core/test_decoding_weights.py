"""Weights laid out for decoding: the same numbers as the parameters, and with int8 nearly so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanogpt_jax.core.bigram import Bigram
from nanogpt_jax.core.decoding_weights import ROWS, Rows, decoding_weights, quantized, times
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import init_params
from tests.helpers.twins import normal

TIED = GPTConfig(block_size=8, vocab_size=33, n_layer=2, n_head=2, n_embd=16, bias=True)
UNTIED = GPTConfig(8, 33, 2, 2, 16, tie_word_embeddings=False, lm_head_bias=True)
LLAMA = GPTConfig(
    8, 33, 2, 4, 16, bias=False, tie_word_embeddings=False, position="rope", norm="rms", activation="swiglu",
    n_kv_head=2, head_size=6, mlp_size=20, qk_norm=True,
)  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 16, 40])
def test_times_is_the_product(rows: int) -> None:
    x, weight = normal(0, rows, 12), normal(1, 7, 12)
    np.testing.assert_allclose(times(x, Rows(weight)), x @ weight.T, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 16, 40])
def test_int8_is_off_by_no_more_than_its_rounding(rows: int) -> None:
    x, weight = normal(0, rows, 64), normal(1, 7, 64)
    steps = [jnp.abs(a).max(-1, keepdims=True) / 127 for a in (x, weight)]
    # Each factor is off by half a step at most: |dx| |w| + |x| |dw| + |dx| |dw|.
    bound = steps[0] / 2 * jnp.abs(weight).sum(-1) + jnp.abs(x).sum(-1, keepdims=True) * (steps[1] / 2).T
    bound += 64 * (steps[0] / 2) * (steps[1] / 2).T
    off = jnp.abs(times(x, quantized(weight)) - x @ weight.T)
    assert bool(jnp.all(off <= bound + 1e-5)) and float(off.max()) > 0


def test_a_row_of_zeros_stays_zero() -> None:
    assert not np.any(times(jnp.zeros((2, 4)), quantized(jnp.zeros((3, 4)))))


@pytest.mark.parametrize("config", [TIED, UNTIED, LLAMA])
def test_the_model_says_the_same_with_them(config: GPTConfig) -> None:
    model = GPT(config)
    params = init_params(model, 0)
    idx = np.random.default_rng(0).integers(0, 33, (3, 8))
    logits = jax.jit(lambda variables: model.apply(variables, idx))
    np.testing.assert_allclose(
        logits(decoding_weights(model, params)), logits({"params": params}), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("config", [TIED, UNTIED, LLAMA])
def test_int8_decoding_says_nearly_the_same(config: GPTConfig) -> None:
    model = GPT(config)
    params = init_params(model, 0)
    idx = np.random.default_rng(0).integers(0, 33, (3, 8))
    exact = jax.jit(lambda: model.apply({"params": params}, idx))()
    weights = decoding_weights(model, params, "int8")
    decode = jax.jit(lambda *of: model.apply(weights, *of, method="decode"))
    logits, cache = decode(idx[:, :5], model.init_cache(3, 8), 0)
    drawn = [logits]
    for position in (5, 6, 7):
        logits, cache = decode(idx[:, position : position + 1], cache, position)
        drawn.append(logits)
    off = np.abs(np.stack(drawn, axis=1) - exact[:, 4:]).max() / np.abs(exact).max()
    assert 0 < off < 0.03


@pytest.mark.parametrize("config", [TIED, UNTIED, LLAMA])
def test_int8_weights_hold_no_float_matrix_but_the_tables(config: GPTConfig) -> None:
    weights = decoding_weights(GPT(config), init_params(GPT(config), 0), "int8")
    assert {w.weight.dtype for w in jax.tree.leaves(weights[ROWS], is_leaf=lambda x: isinstance(x, Rows))} == {
        jnp.dtype("int8")
    }
    matrices = [jax.tree_util.keystr(path) for path, p in jax.tree.leaves_with_path(weights["params"]) if p.ndim > 1]
    tables = ("wte",) if config.position == "rope" else ("wpe", "wte")
    assert matrices == [f"['{table}']['embedding']" for table in tables]


def test_a_bigram_has_nothing_to_lay_out() -> None:
    params = init_params(Bigram(TIED), 0)
    weights = decoding_weights(Bigram(TIED), params, "int8")
    assert weights[ROWS] == {}
    np.testing.assert_array_equal(weights["params"]["wte"]["embedding"], params["wte"]["embedding"])
