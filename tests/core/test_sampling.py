"""Sampling: the fast path draws what the plain one draws, however it is cut up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax.core import sampling
from nanogpt_jax.core.bigram import Bigram
from nanogpt_jax.core.decoding_weights import decoding_weights
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.sampling import draw, generate
from nanogpt_jax.core.sampling_config import SamplingConfig
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.softmax_attention import LONG
from nanogpt_jax.core.train_step import init_params, purpose_key
from tests.helpers.plain_gpt import plain_gpt
from tests.helpers.twins import fresh

BLOCK_SIZE = 16
CONFIG = GPTConfig(block_size=BLOCK_SIZE, vocab_size=65, n_layer=2, n_head=2, n_embd=16)
KEY = purpose_key(7, "sample")
ROPE = dataclasses.replace(CONFIG, position="rope", n_kv_head=1, norm="rms", activation="swiglu")
ROLLING = SamplingConfig(temperature=0.0, past_block="rolling")


@pytest.fixture(scope="module", params=["gpt", "llama, token shift", "bigram"])
def model_and_params(request):
    shifted = dataclasses.replace(ROPE, token_shift=True)
    model = {"gpt": GPT(CONFIG), "llama, token shift": GPT(shifted), "bigram": Bigram(CONFIG)}[request.param]
    return model, fresh(model)


def primitives(jaxpr):
    """Names of all primitives in a jaxpr and in the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


@pytest.mark.parametrize("config", [SamplingConfig(top_p=0.9), SamplingConfig(0.0), SamplingConfig(cached=False)])
def test_the_generation_loop_has_no_scan(model_and_params, config):
    model, params = model_and_params
    weights = decoding_weights(model, params)
    start = sampling.prefill(model, weights, *sampling.begin(model, np.arange(3), jnp.arange(2), 40))
    loop = jax.make_jaxpr(sampling.extend, static_argnums=(0, 1))(model, config, weights, start, KEY, 43)
    first = jax.make_jaxpr(sampling._prompt_cache, static_argnums=(0, 3, 4))(model, weights, start.tokens, 16, 16)
    assert "while" in set(primitives(loop.jaxpr))
    assert "scan" not in {*primitives(loop.jaxpr), *primitives(first.jaxpr)}


def test_long_blocks_have_no_scan_either():
    model = GPT(dataclasses.replace(CONFIG, block_size=LONG + 88))
    config = SamplingConfig(cached=False)
    params = jax.eval_shape(lambda: init_params(model, 0))
    start, _ = sampling.begin(model, np.arange(3), jnp.arange(1), 4)
    loop = jax.make_jaxpr(sampling.extend, static_argnums=(0, 1))(model, config, {"params": params}, start, KEY, 7)
    assert "scan" not in set(primitives(loop.jaxpr))


@settings(max_examples=30)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=5, max_size=5), st.integers(1, 5))
def test_the_kth_largest_is_found_among_all_floats(row, k):
    found = jax.jit(sampling._kth_largest, static_argnums=1)(jnp.array([row], jnp.float32), k)
    assert float(found[0, 0]) == sorted(np.float32(row))[-k]


def test_the_walk_finds_a_scan_where_there_is_one():
    counted = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y + 1, x))
    assert "scan" in set(primitives(jax.make_jaxpr(counted)(0).jaxpr))


@pytest.mark.parametrize("prompt_length", [1, 5, BLOCK_SIZE, BLOCK_SIZE + 7])
def test_cached_and_uncached_draw_the_same_tokens_within_and_past_the_block(model_and_params, prompt_length):
    model, params = model_and_params
    prompt = np.arange(prompt_length) % 65
    options = {"max_new_tokens": 2 * BLOCK_SIZE, "num_samples": 2}
    cached = generate(model, params, prompt, KEY, **options)
    uncached = generate(model, params, prompt, KEY, **options, config=SamplingConfig(cached=False))
    np.testing.assert_array_equal(cached, uncached)


@pytest.mark.parametrize(("prompt_length", "tokens"), [(60, 12), (64, 1), (250, 20)])
def test_the_cache_is_read_as_far_as_it_is_filled(prompt_length, tokens):
    """Texts that outgrow a stage of the cache: 64 and 256 of 300 positions."""
    model = GPT(dataclasses.replace(CONFIG, block_size=300, n_layer=1))
    prompt = np.arange(prompt_length) % 65
    drawn = [
        generate(model, fresh(model), prompt, KEY, max_new_tokens=tokens, config=SamplingConfig(cached=cached))
        for cached in (True, False)
    ]
    np.testing.assert_array_equal(*drawn)


def test_past_the_block_the_last_block_size_tokens_are_read_anew():
    """The meaning nanoGPT gives it, spelled out with the model's own forward pass."""
    model = GPT(CONFIG)
    params = fresh(model)
    forward = jax.jit(lambda idx: model.apply({"params": params}, idx))
    text = list(range(5))
    greedy = generate(model, params, np.array(text), KEY, max_new_tokens=30, config=SamplingConfig(temperature=0.0))[0]
    for token in greedy:
        window = text[-BLOCK_SIZE:]
        padded = np.array([window + [0] * (BLOCK_SIZE - len(window))])  # one shape to compile; the future is not seen
        assert int(np.argmax(forward(padded)[0, len(window) - 1])) == int(token)
        text.append(int(token))


@pytest.mark.parametrize("layers", [1, 2])
def test_rolling_and_reading_anew_are_the_same_for_one_layer_alone(layers):
    """Keys of one layer depend on their own token alone; those of the next on what the token had looked at."""
    model = GPT(dataclasses.replace(ROPE, n_layer=layers))
    read = generate(model, fresh(model), np.arange(5), KEY, max_new_tokens=60, config=SamplingConfig(temperature=0.0))
    rolled = generate(model, fresh(model), np.arange(5), KEY, max_new_tokens=60, config=ROLLING)
    assert np.array_equal(read, rolled) == (layers == 1)
    np.testing.assert_array_equal(read[:, : BLOCK_SIZE - 4], rolled[:, : BLOCK_SIZE - 4])


@pytest.mark.parametrize("prompt_length", [3, BLOCK_SIZE, BLOCK_SIZE + 7])
def test_rolling_is_attention_over_the_last_block_size_positions(prompt_length):
    model = GPT(ROPE)
    prompt = (np.arange(prompt_length) * 7 % 65)[-BLOCK_SIZE:]
    rolled = generate(model, fresh(model), np.arange(prompt_length) * 7 % 65, KEY, max_new_tokens=40, config=ROLLING)[0]
    text = np.concatenate([prompt, rolled])
    logits = jax.jit(lambda text: plain_gpt(fresh(model), ROPE, text, BLOCK_SIZE))(text)
    np.testing.assert_array_equal(jnp.argmax(logits, axis=-1)[len(prompt) - 1 : -1], rolled)


def test_rolling_needs_positions_that_have_no_end():
    model = GPT(CONFIG)
    with pytest.raises(UserError, match="=rolling needs rotary positions, and this model has position=learned"):
        generate(model, fresh(model), np.arange(3), KEY, max_new_tokens=3, config=ROLLING)
    with pytest.raises(UserError, match="past_block=rolling needs the cache that rolls"):
        SamplingConfig(cached=False, past_block="rolling")
    bigram = Bigram(CONFIG)  # has none
    assert generate(bigram, fresh(bigram), np.arange(3), KEY, max_new_tokens=40, config=ROLLING).shape == (1, 40)


def test_a_sample_is_the_same_alone_or_among_others(model_and_params):
    model, params = model_and_params
    together = generate(model, params, np.arange(4), KEY, max_new_tokens=20, num_samples=3)
    weights = decoding_weights(model, params)
    begun = sampling.prefill(model, weights, *sampling.begin(model, np.arange(4), jnp.array([2]), 20))
    alone = sampling.extend(model, SamplingConfig(), weights, begun, KEY, 24)
    np.testing.assert_array_equal(alone.tokens[0, 4:24], together[2])
    assert not np.array_equal(together[0], together[1])


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(5, 34), max_size=4))
def test_streamed_or_at_once_the_text_is_the_same(cuts):
    model = GPT(CONFIG)
    params = fresh(model)
    at_once = generate(model, params, np.arange(4), KEY, max_new_tokens=30)[0]
    weights = decoding_weights(model, params)
    pieces = sampling.prefill(model, weights, *sampling.begin(model, np.arange(4), jnp.arange(1), 30))
    for stop in [*sorted(cuts), 34]:
        pieces = sampling.extend(model, SamplingConfig(), weights, pieces, KEY, stop)
    np.testing.assert_array_equal(pieces.tokens[0, 4:34], at_once)


def test_a_text_fed_back_as_prompt_goes_on_as_it_would_have(model_and_params):
    model, params = model_and_params
    prompt = np.arange(4)
    whole = np.asarray(generate(model, params, prompt, KEY, max_new_tokens=40)[0])
    rest = generate(model, params, np.concatenate([prompt, whole[:25]]), KEY, max_new_tokens=15)[0]
    np.testing.assert_array_equal(rest, whole[25:])


LOGITS = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))


def drawn(config, n=400):
    rows = np.repeat(LOGITS, n, axis=0)
    return np.bincount(draw(config, rows, jax.random.split(KEY, n)), minlength=4) / n


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        (SamplingConfig(1.0, top_k=None), [0, 1, 2, 3]),
        (SamplingConfig(1.0, top_k=2), [0, 1]),
        (SamplingConfig(1.0, top_k=100), [0, 1, 2, 3]),
        (SamplingConfig(1.0, top_k=None, top_p=0.5), [0]),
        (SamplingConfig(1.0, top_k=None, top_p=0.51), [0, 1]),
        (SamplingConfig(1.0, top_k=None, top_p=0.9), [0, 1, 2]),
        (SamplingConfig(1.0, top_k=None, top_p=1.0), [0, 1, 2, 3]),
        (SamplingConfig(1.0, top_k=None, vocab_size=2), [0, 1]),
        (SamplingConfig(0.0), [0]),
    ],
)
def test_only_allowed_tokens_are_drawn_in_their_proportions(config, allowed):
    expected = np.zeros(4)
    expected[allowed] = np.exp(LOGITS[0, allowed])
    np.testing.assert_allclose(drawn(config), expected / expected.sum(), atol=0.08)
    assert not drawn(config)[np.setdiff1d(range(4), allowed)].any()


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([1, 65]), st.floats(0.1, 100))
def test_tokens_are_drawn_as_jax_draws_categories(seed, vocab_size, spread):
    key = jax.random.key(seed)
    logits = spread * jax.random.normal(jax.random.fold_in(key, 1), (3, vocab_size))
    keys = jax.random.split(key, 3)
    expected = jax.vmap(jax.random.categorical)(keys, logits)
    np.testing.assert_array_equal(draw(SamplingConfig(1.0, None), logits, keys), expected)


def test_temperature_sharpens():
    assert drawn(SamplingConfig(0.25))[0] > drawn(SamplingConfig(1.0))[0] > drawn(SamplingConfig(4.0))[0]


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_out_of_range_are_named(wrong):
    (name, value), = wrong.items()  # fmt: skip
    with pytest.raises(UserError, match=f"{name}={value}"):
        SamplingConfig(**wrong)


def test_generate_can_be_traced_and_mapped_over(model_and_params):
    model, params = model_and_params
    prompts = np.arange(6, dtype=np.int32).reshape(2, 3)

    def text(params, prompt, key):
        return generate(model, params, prompt, key, max_new_tokens=BLOCK_SIZE + 4)[0]

    want = np.stack([text(params, prompt, KEY) for prompt in prompts])
    np.testing.assert_array_equal(jax.jit(text)(params, prompts[0], KEY), want[0])
    np.testing.assert_array_equal(jax.vmap(text, (None, 0, None))(params, prompts, KEY), want)
    keys = jax.random.split(KEY, 2)
    of_keys = np.stack([text(params, prompts[0], key) for key in keys])
    np.testing.assert_array_equal(jax.jit(jax.vmap(text, (None, None, 0)))(params, prompts[0], keys), of_keys)
    assert jax.make_jaxpr(text)(params, prompts[0], KEY).out_avals[0].shape == (BLOCK_SIZE + 4,)


def test_a_prompt_may_have_nanogpts_axis_of_one():
    model = GPT(CONFIG)
    params = fresh(model)
    one, two = (generate(model, params, p, KEY, max_new_tokens=5) for p in (np.arange(4), np.arange(4)[None]))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-45, 1e-320])
def test_next_to_no_temperature_is_none(temperature):
    logits = jnp.asarray(30 * np.random.default_rng(0).standard_normal((200, 65)), jnp.float32)
    cold = draw(SamplingConfig(temperature), logits, jax.random.split(KEY, 200))
    np.testing.assert_array_equal(cold, jnp.argmax(logits, axis=-1))


def test_the_least_top_p_leaves_the_likeliest():
    assert drawn(SamplingConfig(1.0, top_k=None, top_p=1e-320))[0] == 1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (np.zeros((2, 3), int), r"a prompt of shape \(2, 3\) is not one text, .* map over several by vmap"),
        (np.array([65]), "the prompt's tokens hold 65, outside the vocabulary of 65"),
        (np.array([0.5]), "the prompt's tokens are of type float64"),
    ],
)
def test_a_prompt_that_is_none_is_named(prompt, message):
    model = GPT(CONFIG)
    with pytest.raises(UserError, match=message):
        generate(model, fresh(model), prompt, KEY, max_new_tokens=3)


def test_an_empty_prompt_is_refused():
    model = GPT(CONFIG)
    with pytest.raises(UserError, match="prompt is empty"):
        generate(model, {}, np.array([], int), KEY, max_new_tokens=3)
