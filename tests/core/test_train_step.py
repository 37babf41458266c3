"""One update: against closed forms, across micro-batches, and its randomness."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from nanogpt_jax.core.bigram import Bigram
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import FUSED_LOSS_FROM, GPT
from nanogpt_jax.core.optimizer import learning_rate_schedule, make_optimizer
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import (
    IGNORED,
    Batch,
    init_params,
    init_state,
    loss_fn,
    make_eval_step,
    make_train_step,
)
from nanogpt_jax.run.presets import preset
from nanogpt_jax.weights.hf_format import write_hf

SMALL = GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8)
SETTINGS = preset("shakespeare_char_cpu", weight_decay=0.1, grad_clip=0.0, decay_lr=False, learning_rate=1e-2)


def random_batch(*shape, seed=0):
    windows = np.random.default_rng(seed).integers(0, 11, (*shape, 9)).astype(np.int32)
    return Batch(windows[..., :-1], windows[..., 1:])


def fresh(model, settings=SETTINGS):
    tx = make_optimizer(settings)
    return tx, jax.jit(lambda: init_state(init_params(model, 0), tx, settings.seed))()


def test_loss_is_the_mean_of_minus_log_probabilities():
    model = Bigram(SMALL)
    params = init_params(model, 0)
    batch = random_batch(2)
    table = np.asarray(params["wte"]["embedding"], np.float64)
    log_probs = table - np.log(np.exp(table).sum(-1, keepdims=True))
    expected = -log_probs[batch.tokens, batch.targets]
    assert float(loss_fn(model, params, batch)) == pytest.approx(expected.mean(), abs=1e-5)


def test_the_first_adamw_update_is_the_closed_form():
    """After one step m = (1-b1) g and v = (1-b2) g^2, so bias-corrected m / sqrt(v) is the sign of g, nearly."""
    model = GPT(SMALL)
    tx, state = fresh(model)
    batch = random_batch(4)
    before, grads = state.params, jax.jit(jax.grad(lambda p: loss_fn(model, p, batch)))(state.params)
    before = jax.tree.map(np.array, before)
    state, _ = make_train_step(model, tx)(state, batch)

    def expected(p, g):
        g = np.asarray(g, np.float64)
        decay = 0.1 if p.ndim >= 2 else 0.0
        return p - 1e-2 * (g / (np.abs(g) + 1e-8) + decay * p)

    jax.tree.map(lambda p, g, q: np.testing.assert_allclose(q, expected(p, g), atol=2e-5), before, grads, state.params)


def test_clipping_bounds_the_gradient_the_optimizer_sees():
    model = GPT(SMALL)
    settings = preset("shakespeare_char_cpu", grad_clip=1e-4)
    tx, state = fresh(model, settings)
    state, metrics = make_train_step(model, tx)(state, random_batch(4))
    first_moments = jax.tree.leaves(state.opt_state[1][0].mu)
    seen = math.sqrt(sum(float((m / 0.1) @ (m / 0.1)) for m in map(jnp.ravel, first_moments)))
    assert seen == pytest.approx(1e-4, rel=1e-3)
    assert float(metrics["grad_norm"]) > 1e-2


def test_micro_batches_give_the_update_of_the_whole_batch():
    model = GPT(SMALL)
    whole = random_batch(6)
    parts = jax.tree.map(lambda x: x.reshape(3, 2, 8), whole)
    results = []
    for batch in (whole, parts):
        tx, state = fresh(model)
        step = make_train_step(model, tx)
        results.append(step(state, batch))
    (one, one_metrics), (three, three_metrics) = results
    assert float(one_metrics["loss"]) == pytest.approx(float(three_metrics["loss"]), abs=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, three.params)


@pytest.mark.parametrize("vocab_size", [11, FUSED_LOSS_FROM])
def test_ignored_targets_are_left_out_of_the_mean_as_in_nanogpt(vocab_size):
    """PyTorch's cross_entropy(ignore_index=-1), which nanoGPT calls, is the mean over the targets that are left."""
    model = GPT(dataclasses.replace(SMALL, vocab_size=vocab_size))
    params, batch = init_params(model, 0), random_batch(2)
    left_out = np.random.default_rng(1).random(batch.targets.shape) < 0.5
    masked = batch._replace(targets=np.where(left_out, IGNORED, batch.targets))
    logits = np.asarray(model.apply({"params": params}, batch.tokens), np.float64)
    loss = torch.nn.functional.cross_entropy(
        torch.tensor(logits).flatten(0, 1), torch.tensor(masked.targets).flatten().long(), ignore_index=-1
    )
    assert float(loss_fn(model, params, masked)) == pytest.approx(float(loss), abs=1e-6)
    ones = np.ones(batch.targets.shape, np.float32)
    total = make_eval_step(model)(params, masked, ones)
    assert float(total) == pytest.approx(float(loss) * (~left_out).sum(), rel=1e-6)
    assert math.isnan(loss_fn(model, params, batch._replace(targets=np.full_like(batch.targets, IGNORED))))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_ignored_targets_are_left_out_as_transformers_leaves_out_its_labels_of_minus_100(kind, tmp_path):
    llama = {"position": "rope", "norm": "rms", "bias": False, "activation": "swiglu", "n_kv_head": 1}
    config = dataclasses.replace(SMALL, **(llama if kind == "llama" else {"activation": "gelu_new"}))
    params = jax.tree.map(lambda p: 4 * p, init_params(GPT(config), 0))
    write_hf(tmp_path, config, params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    draw = np.random.default_rng(0)
    rows, left_out = draw.integers(0, 11, (3, 8)).astype(np.int32), draw.random((3, 8)) < 0.4
    labels = torch.tensor(np.where(left_out, -100, rows)).long()
    with torch.no_grad():
        loss = theirs(torch.tensor(rows).long(), labels=labels).loss  # which moves the labels by one itself
    batch = Batch(rows[:, :-1], np.where(left_out, IGNORED, rows)[:, 1:])
    assert 0 < (batch.targets == IGNORED).sum() < batch.targets.size
    assert float(loss_fn(GPT(config), params, batch)) == pytest.approx(float(loss), abs=1e-5)


def test_the_mean_is_over_all_targets_of_an_update_however_micro_batches_share_them():
    model = GPT(SMALL)
    whole = random_batch(6)
    left_out = np.random.default_rng(1).random((6, 8)) < np.linspace(0, 1, 6)[:, None]
    whole = whole._replace(targets=np.where(left_out, IGNORED, whole.targets))
    parts = jax.tree.map(lambda x: x.reshape(3, 2, 8), whole)
    results = []
    for batch in (whole, parts):
        tx, state = fresh(model)
        results.append(make_train_step(model, tx)(state, batch))
    (one, one_metrics), (three, three_metrics) = results
    assert float(one_metrics["loss"]) == pytest.approx(float(three_metrics["loss"]), abs=1e-6)
    assert float(one_metrics["grad_norm"]) == pytest.approx(float(three_metrics["grad_norm"]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, three.params)


@pytest.mark.parametrize(("name", "value"), [("tokens", -1), ("tokens", 11), ("targets", -2), ("targets", 11)])
def test_what_is_no_token_is_refused_where_it_is_seen_and_no_number_where_it_is_not(name, value):
    model = GPT(SMALL)
    params, batch = init_params(model, 0), random_batch(2)
    wrong = np.array(getattr(batch, name))
    wrong[1, 2] = value
    batch = batch._replace(**{name: wrong})
    with pytest.raises(UserError, match=f"^{name} hold {value}, outside the vocabulary of 11; give numbers from"):
        loss_fn(model, params, batch)
    assert math.isnan(jax.jit(lambda batch: loss_fn(model, params, batch))(batch))
    assert math.isnan(make_eval_step(model)(params, batch, np.ones((2, 8), np.float32)))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 9), np.int32), "a text of 9 tokens does not fit block_size=8; give its last 8"),
        (np.zeros(5, np.int32), r"tokens of shape \(5,\) are not \(B, T\)"),
        (np.full((1, 2), 11), "tokens hold 11, outside the vocabulary of 11"),
        (np.zeros((1, 2)), "tokens are of type float64"),
    ],
)
def test_a_model_says_what_it_cannot_read(tokens, message):
    model = GPT(SMALL)
    with pytest.raises(UserError, match=message):
        model.apply({"params": init_params(model, 0)}, tokens)


def test_dropout_is_a_function_of_seed_and_step_and_off_in_evaluation():
    model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8, dropout=0.5))
    batch = random_batch(2)
    step = make_train_step(model, make_optimizer(SETTINGS))

    def loss_at(seed, number):
        _, state = fresh(model)
        return float(step(state.replace(seed=jnp.uint32(seed), step=jnp.int32(number)), batch)[1]["loss"])

    assert loss_at(1, 0) == loss_at(1, 0)
    assert len({loss_at(1, 0), loss_at(1, 1), loss_at(2, 0)}) == 3
    _, state = fresh(model)
    evaluate = make_eval_step(model)
    ones = np.ones((2, 8), np.float32)
    plain = GPT(SMALL)
    total = float(loss_fn(plain, state.params, batch)) * ones.size
    assert float(evaluate(state.params, batch, ones)) == pytest.approx(total, rel=1e-6)


def test_every_seed_that_settings_allow_can_be_drawn_from():
    largest = preset("shakespeare_char_cpu", seed=2**32 - 1).seed
    _, state = fresh(Bigram(SMALL), preset("bigram", seed=largest))
    assert int(state.seed) == largest
    drawn = [np.asarray(init_params(Bigram(SMALL), seed)["wte"]["embedding"]) for seed in (0, 2**31, largest)]
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[1], drawn[2])


def test_a_zero_weight_leaves_a_target_out():
    model = Bigram(SMALL)
    params = init_params(model, 0)
    batch = random_batch(2)
    weights = np.zeros((2, 8), np.float32)
    weights[1, 3] = 1
    log_probs = jax.nn.log_softmax(model.apply({"params": params}, batch.tokens))
    expected = -float(log_probs[1, 3, batch.targets[1, 3]])
    assert float(make_eval_step(model)(params, batch, weights)) == pytest.approx(expected, rel=1e-6)


def test_one_batch_can_be_learnt_by_heart():
    model = GPT(SMALL)
    tx, state = fresh(model)
    step = make_train_step(model, tx)
    batch = random_batch(4)
    for _ in range(150):
        state, metrics = step(state, batch)
    assert float(metrics["loss"]) < 0.25
    assert int(state.step) == 150


def nanogpt_learning_rate(it, s: Settings):
    """The schedule as nanoGPT states it: linear warm-up from the first update on, cosine, floor."""
    if it < s.warmup_iters:
        return s.learning_rate * (it + 1) / (s.warmup_iters + 1)
    if it > s.lr_decay_iters:
        return s.min_lr
    done = (it - s.warmup_iters) / (s.lr_decay_iters - s.warmup_iters)
    return s.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (s.learning_rate - s.min_lr)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"warmup_iters": 0},
        {"warmup_iters": 2000, "lr_decay_iters": 100},
        {"lr_decay_iters": 99},
        {"lr_decay_iters": 0},
    ],
)
def test_the_learning_rate_follows_nanogpts_schedule(changes):
    """Also where the decay would end before it began: only the warm-up is seen, and the floor after it."""
    settings = preset("shakespeare_char_cpu", **changes)
    steps = np.arange(0, 2100)
    rates = jax.vmap(learning_rate_schedule(settings))(steps)
    expected = [nanogpt_learning_rate(int(step), settings) for step in steps]
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"cooldown_fraction": 1.0}, {"cooldown_fraction": 0.0}, {"warmup_iters": 0}])
def test_wsd_warms_up_holds_and_falls_in_a_line(changes):
    s = preset(
        "shakespeare_char_cpu", **{"schedule": "wsd", "lr_decay_iters": 1000, "cooldown_fraction": 0.25} | changes
    )
    begin = max(s.warmup_iters, 1000 - 1000 * s.cooldown_fraction)

    def expected(it):
        if it < s.warmup_iters:
            return s.learning_rate * (it + 1) / (s.warmup_iters + 1)
        left = np.clip((1000 - it) / (1000 - begin), 0, 1) if begin < 1000 else float(it < 1000)
        return s.min_lr + left * (s.learning_rate - s.min_lr)

    steps = np.arange(0, 1100)
    rates = jax.vmap(learning_rate_schedule(s))(steps)
    np.testing.assert_allclose(rates[:1000], [expected(it) for it in steps[:1000]], rtol=0, atol=1e-5)
    np.testing.assert_allclose(rates[1000:], s.min_lr if s.cooldown_fraction else s.learning_rate, rtol=0, atol=1e-9)


def test_the_step_takes_over_the_memory_of_the_state():
    model = Bigram(SMALL)
    tx, state = fresh(model)
    make_train_step(model, tx)(state, random_batch(2))
    assert state.params["wte"]["embedding"].is_deleted()
