"""Many runs in one program: each is what it would be alone, and nothing goes from one to another."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from nanogpt_jax.core.many import (
    make_many_eval_step,
    make_many_step,
    run_of,
    side_by_side,
    stacked,
)
from nanogpt_jax.core.optimizer import hyperparameters, make_optimizer
from nanogpt_jax.core.train_step import Batch, init_params, init_state, make_eval_step, make_train_step
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.presets import preset
from nanogpt_jax.run.sweep_plan import MAPPED
from tests.helpers.commands import HANGS, ROOT
from tests.helpers.jobs import virtual_devices

SMALL = dict(n_layer=2, n_head=2, n_embd=16, block_size=16, batch_size=4, gradient_accumulation_steps=1)
USUAL = preset("shakespeare_char_cpu", **SMALL, max_iters=50, lr_decay_iters=50, warmup_iters=5, dropout=0.1)
MUON = dataclasses.replace(
    preset("speedrun_cpu", **SMALL, max_iters=50, lr_decay_iters=50), weight_decay=0.1, dropout=0.1, grad_clip=1.0
)
UPDATES = 50
VOCABULARY = 23

VARIED = {  # settings of the second run of two
    "seed": (USUAL, 7),
    "learning_rate": (USUAL, 3e-3),
    "min_lr": (USUAL, 5e-4),
    "warmup_iters": (USUAL, 20),
    "lr_decay_iters": (USUAL, 30),
    "decay_lr": (USUAL, False),
    "schedule": (USUAL, "wsd"),
    "cooldown_fraction": (MUON, 0.3),
    "weight_decay": (USUAL, 0.5),
    "beta1": (USUAL, 0.8),
    "beta2": (USUAL, 0.999),
    "grad_clip": (USUAL, 0.2),
    "dropout": (USUAL, 0.4),
    "proj_init_scale": (USUAL, 0.5),
    "muon_learning_rate": (MUON, 0.01),
    "muon_momentum": (MUON, 0.95),
}


def batch(seed, step, shape=(4,)):
    draw = np.random.default_rng([seed, step])
    windows = (np.cumsum(draw.integers(0, 3, (*shape, 17)), axis=-1) % VOCABULARY).astype(np.int32)
    return Batch(windows[..., :-1], windows[..., 1:])


def model_of(settings):
    return build_model(settings, VOCABULARY, "cpu")


def first_state(settings):
    tx = make_optimizer(settings)
    return init_state(init_params(model_of(settings), settings.seed), tx, settings.seed)


def alone(settings, updates=UPDATES):
    step = make_train_step(model_of(settings), make_optimizer(settings), skip_nonfinite=settings.nan_policy == "skip")
    state, losses = first_state(settings), []
    for i in range(updates):
        state, metrics = step(state, batch(settings.seed, i, settings.batch_shape))
        losses.append(float(metrics["loss"]))
    return state, losses


def together(runs, updates=UPDATES, mesh=None, in_turn=False):
    step = make_many_step(model_of(runs[0]), runs[0], mesh=mesh, in_turn=in_turn)
    states = stacked(lambda i: first_state(runs[i]), len(runs), mesh)
    numbers = side_by_side([hyperparameters(settings) for settings in runs], mesh)
    losses = []
    for i in range(updates):
        batches = side_by_side([batch(settings.seed, i, settings.batch_shape) for settings in runs], mesh)
        states, metrics = step(states, batches, numbers)
        losses.append(np.asarray(metrics["loss"]))
    return states, np.array(losses).T


def test_every_setting_that_is_mapped_is_tested_here():
    assert {*VARIED} == {*MAPPED}


@pytest.fixture(scope="module")
def side_by_side_losses():
    """Of a run as usual, and of one for each setting with that one varied: all of AdamW's, and all of Muon's."""
    losses = {}
    for base in (USUAL, MUON):
        names = [name for name, (settings, _) in VARIED.items() if settings is base]
        runs = [base, *(dataclasses.replace(base, **{name: VARIED[name][1]}) for name in names)]
        losses |= dict(zip([id(base), *names], together(runs)[1], strict=True))
    return losses


@pytest.mark.parametrize("name", VARIED)
def test_each_run_loses_what_it_loses_alone(side_by_side_losses, name):
    settings, value = VARIED[name]
    losses = side_by_side_losses[name]
    np.testing.assert_allclose(losses, alone(dataclasses.replace(settings, **{name: value}))[1], atol=1e-5, rtol=0)
    assert np.abs(losses - side_by_side_losses[id(settings)]).max() > 1e-4  # it matters


def test_micro_batches_skipped_updates_and_another_model_are_as_alone():
    common = dict(n_layer=1, n_head=2, n_embd=8, block_size=16, batch_size=2, max_iters=10, nan_policy="skip")
    for name in ("bigram", "gpt_dev"):
        runs = [preset(name, **common, gradient_accumulation_steps=3, seed=seed) for seed in (0, 1)]
        _, losses = together(runs, 10)
        for run, of_run in zip(runs, losses, strict=True):
            np.testing.assert_allclose(of_run, alone(run, 10)[1], atol=1e-5, rtol=0)


def test_one_after_the_other_is_as_all_at_once(side_by_side_losses):
    runs = [USUAL, dataclasses.replace(USUAL, learning_rate=VARIED["learning_rate"][1])]
    _, losses = together(runs, 10, in_turn=True)
    for of_run, name in zip(losses, (id(USUAL), "learning_rate"), strict=True):
        np.testing.assert_allclose(of_run, side_by_side_losses[name][:10], atol=1e-5, rtol=0)


@pytest.mark.parametrize("in_turn", [False, True])
def test_devices_have_a_share_of_the_runs_each_and_nothing_goes_between_them(in_turn, side_by_side_losses):
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.many_child", str(in_turn)], cwd=ROOT, env=virtual_devices(8),
        capture_output=True, text=True, timeout=HANGS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["collectives"] == [] and found["runs on each device"] == [1] * 8
    np.testing.assert_allclose(found["losses"][0], side_by_side_losses[id(USUAL)][:10], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found["losses"][1], side_by_side_losses["seed"][:10], atol=1e-5, rtol=0)


@pytest.mark.parametrize("in_turn", [False, True])
def test_memory_is_the_states_and_the_activations_of_each_run_at_once(in_turn):
    wide = dataclasses.replace(USUAL, n_embd=64, batch_size=16)

    def memory(runs):
        step = make_many_step(model_of(wide), wide, in_turn=in_turn)
        states = jax.eval_shape(lambda: stacked(lambda i: first_state(wide), runs))
        rest = (side_by_side([each] * runs) for each in (batch(0, 0, (16,)), hyperparameters(wide)))
        return step.lower(states, *rest).compile().memory_analysis()

    one, eight = memory(1), memory(8)
    assert eight.alias_size_in_bytes == 8 * one.alias_size_in_bytes  # the new states lie where the old ones lay
    needed = [each.argument_size_in_bytes + each.temp_size_in_bytes for each in (one, eight)]
    assert needed[1] <= 1.1 * 8 * needed[0]


def test_a_run_that_diverges_leaves_the_others_alone():
    good = dataclasses.replace(USUAL, dropout=0.0)
    bad = dataclasses.replace(good, learning_rate=1e30, grad_clip=1e9)
    with_bad, with_good = (together([good, other], 10)[1] for other in (bad, good))
    assert not np.isfinite(with_bad[1]).all()
    np.testing.assert_array_equal(with_bad[0], with_good[0])


def test_the_state_of_a_run_is_what_it_is_alone():
    states, _ = together([USUAL, dataclasses.replace(USUAL, seed=3)], 5)
    own, (expected, _) = run_of(states, 1), alone(dataclasses.replace(USUAL, seed=3), 5)
    assert jax.tree.structure(own) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_evaluation_is_of_each_run():
    runs = [USUAL, dataclasses.replace(USUAL, seed=3)]
    params = stacked(lambda i: first_state(runs[i]).params, 2)
    ones = np.ones((4, 16), np.float32)
    one = make_eval_step(model_of(USUAL))
    expected = [one(first_state(run).params, batch(0, 0), ones) for run in runs]
    of_all = make_many_eval_step(model_of(USUAL), same_data=True)(params, batch(0, 0), ones)
    np.testing.assert_allclose(of_all, expected, rtol=1e-5)
    of_each = make_many_eval_step(model_of(USUAL), same_data=False)(params, side_by_side([batch(0, 0)] * 2), ones)
    np.testing.assert_allclose(of_each, expected, rtol=1e-5)
