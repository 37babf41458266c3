"""The models: their parameters are GPT-2's, and their logits those of a plain numpy twin."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax.core.config import GPTConfig
from nanogpt_jax.core.model import GPT, Bigram
from nanogpt_jax.core.train_step import init_params
from nanogpt_jax.run.presets import preset

NOTEBOOK = preset("gpt_dev").gpt_config(65)
SMALL = GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, bias=True)


def numpy_gpt(params, cfg, idx):
    """The forward pass of one sequence, written as the formulas are, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def layer_norm(x, p):
        normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return normed * p["scale"] + p.get("bias", 0)

    def linear(x, p):
        return x @ p["kernel"] + p.get("bias", 0)

    def bend(x):
        if cfg.activation == "relu":
            return np.maximum(x, 0)
        if cfg.activation == "gelu_new":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    T, D = len(idx), cfg.head_size
    x = params["wte"]["embedding"][idx] + params["wpe"]["embedding"][:T]
    for layer in range(cfg.n_layer):
        p = params[f"h_{layer}"]
        q, k, v = np.split(linear(layer_norm(x, p["ln_1"]), p["attn"]["c_attn"]), 3, axis=-1)
        heads = []
        for h in range(cfg.n_head):
            mine = slice(h * D, (h + 1) * D)
            scores = np.where(np.tri(T, dtype=bool), q[:, mine] @ k[:, mine].T / math.sqrt(D), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, mine])
        x = x + linear(np.concatenate(heads, -1), p["attn"]["c_proj"])
        x = x + linear(bend(linear(layer_norm(x, p["ln_2"]), p["mlp"]["c_fc"])), p["mlp"]["c_proj"])
    x = layer_norm(x, params["ln_f"])
    return x @ params["wte"]["embedding"].T if cfg.tie_word_embeddings else linear(x, params["lm_head"])


def randomized(model):
    """Parameters away from their start, so that biases and scales count too."""
    rng = np.random.default_rng(1)
    start = jax.eval_shape(lambda: init_params(model, 0))
    return jax.tree.map(lambda p: (rng.normal(0.1, 0.3, p.shape) + (p.ndim == 1)).astype(np.float32), start)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, idx):
    return model.apply({"params": params}, idx)


@settings(max_examples=8, deadline=None)
@given(
    bias=st.booleans(),
    qkv_bias=st.sampled_from([None, True, False]),
    tied=st.booleans(),
    activation=st.sampled_from(["gelu", "gelu_new", "relu"]),
    n_head=st.sampled_from([1, 2, 4]),
    T=st.integers(1, 8),
)
def test_logits_are_those_of_the_numpy_twin(bias, qkv_bias, tied, activation, n_head, T):
    cfg = GPTConfig(
        block_size=8, vocab_size=11, n_layer=2, n_head=n_head, n_embd=8, bias=bias, qkv_bias=qkv_bias,
        tie_word_embeddings=tied, lm_head_bias=not tied, activation=activation,
    )  # fmt: skip
    model = GPT(cfg)
    params = randomized(model)
    idx = np.arange(T) * 3 % 11
    logits = forward(model, params, idx[None])[0]
    np.testing.assert_allclose(logits, numpy_gpt(params, cfg, idx), atol=2e-4)


def test_no_position_sees_what_comes_after_it():
    model = GPT(SMALL)
    params = randomized(model)
    before = forward(model, params, np.array([[1, 2, 3, 4, 5]]))
    after = forward(model, params, np.array([[1, 2, 3, 9, 9]]))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.allclose(before[:, 3], after[:, 3])


def test_parameters_have_the_names_and_number_of_gpt2():
    shapes = jax.eval_shape(lambda: init_params(GPT(GPTConfig(vocab_size=50257)), 0))
    assert sum(p.size for p in jax.tree.leaves(shapes)) == 124_439_808
    assert {"wte", "wpe", "ln_f", "h_0", "h_11"} <= set(shapes)
    assert shapes["h_0"]["attn"]["c_attn"]["kernel"].shape == (768, 2304)
    assert shapes["h_0"]["mlp"]["c_proj"]["bias"].shape == (768,)


def test_the_notebooks_model_has_its_209729_parameters():
    shapes = jax.eval_shape(lambda: init_params(GPT(NOTEBOOK), 0))
    assert sum(p.size for p in jax.tree.leaves(shapes)) == 209_729


def test_initialisation_is_nanogpts():
    cfg = GPTConfig(block_size=64, vocab_size=512, n_layer=8, n_head=4, n_embd=128)
    params = init_params(GPT(cfg), 0)
    block = params["h_3"]
    for kernel in (params["wte"]["embedding"], block["attn"]["c_attn"]["kernel"], block["mlp"]["c_fc"]["kernel"]):
        assert float(kernel.std()) == pytest.approx(0.02, rel=0.03)
    for kernel in (block["attn"]["c_proj"]["kernel"], block["mlp"]["c_proj"]["kernel"]):
        assert float(kernel.std()) == pytest.approx(0.02 / math.sqrt(2 * 8), rel=0.03)
    assert not block["mlp"]["c_fc"]["bias"].any() and (block["ln_1"]["scale"] == 1).all()


def test_a_fresh_model_knows_nothing():
    model = GPT(GPTConfig(block_size=32, vocab_size=65, n_layer=2, n_head=2, n_embd=32))
    logits = np.asarray(forward(model, init_params(model, 0), np.arange(32)[None]), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert -log_probs.mean() == pytest.approx(math.log(65), abs=0.05)


def test_bfloat16_leaves_parameters_and_logits_in_float32():
    model = GPT(SMALL, dtype=jnp.bfloat16)
    params = init_params(model, 0)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    params = randomized(model)
    logits = forward(model, params, np.arange(8)[None])
    assert logits.dtype == jnp.float32
    exact = forward(GPT(SMALL), params, np.arange(8)[None])
    assert 0 < np.abs(logits - exact).max() < 0.3


def test_bigram_reads_its_logits_off_a_table():
    model = Bigram(GPTConfig(vocab_size=7, block_size=4))
    params = init_params(model, 0)
    idx = np.array([[3, 1, 6]])
    np.testing.assert_array_equal(forward(model, params, idx)[0], np.asarray(params["wte"]["embedding"])[idx[0]])


def test_a_large_vocabulary_and_remat_change_no_number(monkeypatch):
    """The fused loss, and blocks computed twice: the loss and gradients of the plain model."""
    config = dataclasses.replace(SMALL, dropout=0.1)
    idx, targets = np.random.default_rng(0).integers(0, config.vocab_size, (2, 2, config.block_size))
    weights = np.full(idx.shape, 1 / idx.size, np.float32)

    def value_and_grad(model):
        params = init_params(GPT(config), 0)
        rngs = {"dropout": jax.random.key(1)}

        def loss(params):
            return model.apply({"params": params}, idx, targets, weights, train=True, rngs=rngs, method="loss")

        return jax.jit(jax.value_and_grad(loss))(params)

    plain = value_and_grad(GPT(config))
    again = value_and_grad(GPT(config, remat=True))
    monkeypatch.setattr("nanogpt_jax.core.model.FUSED_LOSS_FROM", 1)
    fused = value_and_grad(GPT(config))
    for other in (again, fused):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, other)
