"""The models: their parameters are GPT-2's, and their logits those of a plain twin."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax.core.bigram import Bigram
from nanogpt_jax.core.model import FUSED_LOSS_FROM, GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import Batch, init_params, loss_fn
from nanogpt_jax.run.presets import preset
from tests.helpers.plain_gpt import plain_gpt

NOTEBOOK = preset("gpt_dev").gpt_config(65)
SMALL = GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, bias=True)


def randomized(model):
    """Parameters away from their start, so that biases and scales count too."""
    rng = np.random.default_rng(1)
    start = jax.eval_shape(lambda: init_params(model, 0))
    return jax.tree.map(lambda p: (rng.normal(0.1, 0.3, p.shape) + (p.ndim == 1)).astype(np.float32), start)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, idx):
    return model.apply({"params": params}, idx)


LLAMA = dict(position="rope", norm="rms", activation="swiglu", n_kv_head=2, bias=False)
OPTIONS = {
    "gpt2": {},
    "gelu_new": dict(activation="gelu_new"),
    "relu": dict(activation="relu"),
    "relu2": dict(activation="relu2"),
    "swiglu": dict(activation="swiglu"),
    "geglu": dict(activation="geglu", mlp_size=11),
    "no biases": dict(bias=False),
    "qkv_bias": dict(bias=False, qkv_bias=True),
    "untied": dict(tie_word_embeddings=False, lm_head_bias=True),
    "rope": dict(position="rope"),
    "rope_theta": dict(position="rope", rope_theta=50.0),
    "rope_scaling": dict(position="rope", rope_scaling="llama3:4,1,4,6"),
    "rms": dict(norm="rms"),
    "norm_epsilon": dict(norm_epsilon=1e-1),
    "qk_norm": dict(qk_norm=True),
    "n_kv_head": dict(n_kv_head=2),
    "one key head": dict(n_kv_head=1),
    "head_size": dict(head_size=6),
    "mlp_size": dict(mlp_size=5),
    "token_shift": dict(token_shift=True),
    "logit_softcap": dict(logit_softcap=2.0),
    "llama": dict(LLAMA, tie_word_embeddings=False),
    "qwen3": dict(LLAMA, qk_norm=True, head_size=6, norm_epsilon=1e-6),
}


LARGE_HEADS = {"large": {}, "large, softcap": dict(logit_softcap=2.0), "large, untied": dict(tie_word_embeddings=False)}


@pytest.mark.parametrize("option", [*OPTIONS, *LARGE_HEADS])
def test_loss_and_gradients_are_those_of_the_plain_twin(option):
    vocab_size = FUSED_LOSS_FROM if option in LARGE_HEADS else 11
    shape = dict(block_size=8, vocab_size=vocab_size, n_layer=1, n_head=4, n_embd=8)
    cfg = GPTConfig(**shape | (OPTIONS | LARGE_HEADS)[option])
    model = GPT(cfg)
    params = randomized(model)
    idx = np.random.default_rng(3).integers(0, vocab_size, (2, 9))
    batch = Batch(idx[:, :-1], idx[:, 1:])

    def plain_loss(params):
        log_probs = jax.nn.log_softmax(jax.vmap(lambda text: plain_gpt(params, cfg, text))(batch.tokens))
        return -jnp.take_along_axis(log_probs, batch.targets[..., None], axis=-1).mean()

    loss, grads = jax.jit(jax.value_and_grad(loss_fn, argnums=1), static_argnums=0)(model, params, batch)
    plain, plain_grads = jax.jit(jax.value_and_grad(plain_loss))(params)
    assert float(loss) == pytest.approx(float(plain), rel=1e-5)
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(plain_grads), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5 * max(1.0, float(jnp.abs(expected).max())))


@settings(max_examples=6, deadline=None)
@given(
    position=st.sampled_from(["learned", "rope"]),
    norm=st.sampled_from(["layer", "rms"]),
    qk_norm=st.booleans(),
    heads=st.sampled_from([(1, None), (2, 1), (6, 3)]),
    head_size=st.sampled_from([None, 2, 6]),
    activation=st.sampled_from(["gelu", "swiglu"]),
    bias=st.booleans(),
    T=st.integers(1, 8),
)
def test_options_go_together(position, norm, qk_norm, heads, head_size, activation, bias, T):
    cfg = GPTConfig(
        8, 11, 2, heads[0], 12, bias=bias, position=position, norm=norm, qk_norm=qk_norm, n_kv_head=heads[1],
        head_size=head_size, activation=activation,
    )  # fmt: skip
    model = GPT(cfg)
    params = randomized(model)
    idx = np.arange(T) * 3 % 11
    want = plain_gpt(params, cfg, idx)
    np.testing.assert_allclose(forward(model, params, idx[None])[0], want, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("option", ["gpt2", "n_kv_head", "qwen3"])
def test_the_logits_of_one_position_are_those_of_all(option):
    """Though the last block computes no other: neither its queries' scores nor its MLP."""
    model = GPT(dataclasses.replace(SMALL, n_head=4, **OPTIONS[option]))
    params = randomized(model)
    idx = np.arange(16).reshape(2, 8) % 11
    at = jax.jit(lambda params, index: model.apply({"params": params}, idx, index, method="logits_at"))
    want = np.asarray(forward(model, params, idx))
    for index in (0, 3, 7):
        np.testing.assert_allclose(at(params, index), want[:, index], atol=1e-5 * np.abs(want).max())


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
