"""A speed figure is the mean over whole updates since the one before it, whatever lies between them."""

import inspect

import numpy as np
import pytest

from nanogpt_jax.core.train_step import init_params
from nanogpt_jax.run import telemetry
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.live import Lines
from nanogpt_jax.run.presets import preset
from nanogpt_jax.run.sinks import Sinks
from nanogpt_jax.run.telemetry import StepLog, flops_per_token
from nanogpt_jax.weights.checkpoint import RunDocument


class Clock:
    """A time that only the test moves."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


class OnDevice:
    """A loss on a device that Python runs ahead of; whoever looks at it waits until the update has been made."""

    def __init__(self, clock, made_at):
        self._clock, self._made_at = clock, made_at

    def is_ready(self):
        return self._clock.seconds >= self._made_at

    def __array__(self, dtype=None, copy=None):
        self._clock.seconds = max(self._clock.seconds, self._made_at)
        return np.float32(1.0)


class Kept(Lines):
    """What a sink was told of updates, and nanoGPT's lines."""

    def __init__(self):
        self.figures, self.lines = {}, []

    def write(self, step, split, loss, **figures):
        self.figures[step] = figures

    def iteration(self, line):
        self.lines.append(line)


SETTINGS = preset("gpt_dev", batch_size=2, block_size=8)  # 16 tokens an iteration
RUN = RunDocument(vars(SETTINGS), {}, 65, step=0)


@pytest.mark.parametrize("runs_ahead", [False, True])
@pytest.mark.parametrize("log_interval", [1, 2, 3, 7])
def test_a_figure_is_the_mean_over_whole_updates_whatever_lies_between(monkeypatch, runs_ahead, log_interval):
    """Ten updates of 2 s; an evaluation of 100 s before every third one, and a save of 30 s in it."""
    monkeypatch.setattr(telemetry, "peak_flops", lambda: 1e12)
    clock, kept = Clock(), Kept()
    settings = preset("gpt_dev", batch_size=2, block_size=8, log_interval=log_interval)
    model = build_model(settings, 65, "cpu")
    params = init_params(model, 0)
    log = StepLog(settings, Sinks([kept]), kept.iteration, flops_per_token(settings, params), RUN, now=clock)
    add = inspect.unwrap(StepLog.add)  # without the check of its arguments, to take what stands for an array
    free_at = clock.seconds
    for step in range(10):
        if step % 3 == 0:
            with log.paused():
                clock.seconds += 100
            with log.paused():
                clock.seconds += 30
        free_at = max(free_at, clock.seconds) + 2
        if not runs_ahead:
            clock.seconds = free_at
        loss = OnDevice(clock, free_at)
        add(log, step, {"loss": loss, "grad_norm": loss})
    log.flush()
    due = [step for step in range(10) if step % log_interval == 0]
    assert sorted(kept.figures) == due
    assert {kept.figures[step]["tokens_per_second"] for step in due} == {8.0}
    mfu = flops_per_token(settings, params) * 16 / 2 / 1e12
    assert [kept.figures[step]["mfu"] for step in due] == pytest.approx([mfu] * len(due))
    assert kept.lines == [f"iter {step}: loss 1.0000, time 2000.00ms, mfu {mfu:.2%}" for step in due]
