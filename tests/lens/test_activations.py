"""What the lens reads in a model: its numbers are the model's own."""

import dataclasses

import jax
import numpy as np
import pytest

from nanogpt_jax.core import ops
from nanogpt_jax.core.bigram import Bigram
from nanogpt_jax.core.model import GPT, CausalSelfAttention, Linear
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import Batch, loss_fn
from nanogpt_jax.lens import activations
from tests.helpers.twins import fresh

CONFIG = GPTConfig(block_size=24, vocab_size=30, n_layer=3, n_head=2, n_embd=16)
MODERN = dataclasses.replace(
    CONFIG, bias=False, position="rope", norm="rms", qk_norm=True, activation="swiglu", n_head=6, n_kv_head=2,
    head_size=4, mlp_size=24, tie_word_embeddings=False, logit_softcap=15.0,
)  # fmt: skip
TOKENS = np.arange(20, dtype=np.int32) * 7 % CONFIG.vocab_size


@pytest.fixture(scope="module", params=["gpt", "relatives of GPT-2", "a modern one", "bigram"])
def model_and_params(request):
    other = dataclasses.replace(CONFIG, bias=False, qkv_bias=True, tie_word_embeddings=False, lm_head_bias=True)
    gpts = {"gpt": CONFIG, "relatives of GPT-2": other, "a modern one": MODERN}
    model = GPT(gpts[request.param]) if request.param in gpts else Bigram(CONFIG)
    return model, fresh(model)


def test_the_last_layer_predicts_what_the_model_predicts(model_and_params):
    model, params = model_and_params
    logits = jax.jit(lambda: model.apply({"params": params}, TOKENS[None])[0])()
    read = activations.read(model, params, TOKENS)
    np.testing.assert_allclose(read.logits, logits, atol=1e-5)
    predicted = activations.predictions(read.logits, TOKENS, CONFIG.vocab_size, CONFIG.vocab_size)
    np.testing.assert_allclose(predicted.probabilities.sum(axis=-1), 1, atol=1e-5)
    in_order = np.take_along_axis(predicted.probabilities, np.argsort(predicted.candidates), axis=-1)
    np.testing.assert_allclose(in_order, jax.nn.softmax(logits), atol=1e-6)
    if isinstance(model, GPT):
        layers = activations.layer_predictions(model, params, read.streams, TOKENS, 5, CONFIG.vocab_size)
        assert layers.candidates.shape == (CONFIG.n_layer + 1, len(TOKENS), 5)
        np.testing.assert_allclose(layers.probabilities[-1], predicted.probabilities[:, :5], atol=1e-6)
        np.testing.assert_allclose(layers.losses[-1], predicted.losses, atol=1e-5)


def test_an_earlier_layer_predicts_what_a_model_that_ends_there_would(model_and_params):
    model, params = model_and_params
    if isinstance(model, Bigram):
        assert activations.read(model, params, TOKENS).streams.shape[1:] == (len(TOKENS), 0)
        return
    layers = activations.layer_predictions(
        model, params, activations.read(model, params, TOKENS).streams, TOKENS, 1, CONFIG.vocab_size
    )
    shorter = model.clone(config=dataclasses.replace(model.config, n_layer=2))
    cut = {name: value for name, value in params.items() if name != "h_2"}
    logits = jax.jit(lambda: shorter.apply({"params": cut}, TOKENS[None])[0])()
    np.testing.assert_allclose(
        layers.losses[2], activations.predictions(logits, TOKENS, 1, CONFIG.vocab_size).losses, atol=1e-5
    )


def test_the_losses_are_those_of_training(model_and_params):
    model, params = model_and_params
    predicted = activations.predictions(activations.read(model, params, TOKENS).logits, TOKENS, 3, CONFIG.vocab_size)
    loss = jax.jit(lambda: loss_fn(model, params, Batch(TOKENS[None, :-1], TOKENS[None, 1:])))()
    assert float(predicted.losses.mean()) == pytest.approx(float(loss), abs=1e-5)
    table = np.argsort(np.argsort(-activations.read(model, params, TOKENS).logits))
    np.testing.assert_array_equal(predicted.ranks, table[np.arange(len(TOKENS) - 1), TOKENS[1:]])


@pytest.mark.parametrize("config", [CONFIG, MODERN])
def test_attention_is_what_the_model_attended_with(config):
    model = GPT(config)
    params = fresh(model)
    attention = activations.read(model, params, TOKENS).attention
    np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-5)
    assert not np.triu(attention, 1).any()

    @jax.jit
    def noted():
        return model.apply(
            {"params": params}, TOKENS[None], mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, CausalSelfAttention) or module.name == "c_attn",
        )[1]["intermediates"]  # fmt: skip

    for layer, weights in enumerate(attention):
        block = noted()[f"h_{layer}"]["attn"]
        _, _, v = ops.split_heads(block["c_attn"]["__call__"][0], 1, config.n_head, config.kv_heads)
        v = np.repeat(v, config.n_head // config.kv_heads, axis=1)
        proj = Linear(config.n_embd, config.bias)
        mixed = proj.apply({"params": params[f"h_{layer}"]["attn"]["c_proj"]}, ops.merge_heads(weights[None] @ v))
        np.testing.assert_allclose(mixed, block["__call__"][0][0], atol=1e-5)
