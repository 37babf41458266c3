"""The training run, in the order in which things happen: the only place where the pieces meet."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64

from nanogpt_jax.core import sharding
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.train_step import AnyBatch, Metrics, TrainState, make_eval_step, make_train_step
from nanogpt_jax.data import dataset, feed
from nanogpt_jax.data.addresses import at_hand, is_address
from nanogpt_jax.data.commands import flags_to_resume, pasteable
from nanogpt_jax.data.dataset import TokenFile, rows_in_split
from nanogpt_jax.data.files import is_dir
from nanogpt_jax.data.process import readers_may_leave
from nanogpt_jax.run import hosts, live
from nanogpt_jax.run.accelerator import describe
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.curves import leave_figure
from nanogpt_jax.run.expected import beside_expected
from nanogpt_jax.run.faults import (
    Stopped,
    memory_in_one_line,
    refusals_in_one_line,
    signals,
)
from nanogpt_jax.run.mesh import make_mesh, mesh_shape, require_fit, rounded_up
from nanogpt_jax.run.outcome import best_beside_last
from nanogpt_jax.run.progress import Progress, writing
from nanogpt_jax.run.publishing import only_run_at, require_new
from nanogpt_jax.run.sinks import Sinks, require_sinks
from nanogpt_jax.run.start import Data, Start, begun, resumed
from nanogpt_jax.run.telemetry import Profile, flops_per_token

# Tokens in one step of an evaluation: enough to be fast, few enough to fit beside a training step; and, of a CPU, into
# its caches: there so few take two thirds of the time.
TOKENS_PER_EVAL_STEP = {"cpu": 2_048, "gpu": 16_384, "tpu": 16_384}

LossOf = Callable[[AnyBatch, Any], Any]
"""From a batch and weights (B, T) to the weighted sum of its losses."""


def train(settings: Settings, given: Mapping[str, Any] | None = None) -> float:
    """Train as `settings` say; the loss over the whole validation split at the end, in nats per token.

    `given` are the settings that were asked for one by one: a model that is loaded must have them, and a run that is
    resumed takes them and all others as it has them. All that can be refused is refused, with a `UserError`, before
    anything is written. Raises `Stopped` after a signal, and `RunFailed` where the run can't go on.
    """
    given = given or {}
    out_dir = at_hand(settings.out_dir)
    resuming, writing = settings.init_from == "resume", not settings.eval_only
    received: list[int] = []  # the signals that tell this process to stop
    with (
        hosts.watched(flags_to_resume(out_dir)) as fails_alone,
        memory_in_one_line(settings),
        contextlib.ExitStack() as held,
    ):
        held.enter_context(readers_may_leave(lambda: received.append(signal.SIGPIPE)))

        def prepared() -> Start:
            publisher = None
            if resuming and writing and hosts.is_first() and (is_address(settings.out_dir) or is_dir(out_dir)):
                # before its newest checkpoint is looked for
                publisher = held.enter_context(only_run_at(settings.out_dir, resuming=True))
            elif writing and not resuming and is_address(settings.out_dir):
                require_new(settings.out_dir)
            start = resumed(settings, given) if resuming else begun(settings, given)
            if writing:
                require_sinks(start.settings)
            return start._replace(publisher=publisher)

        hosts.together(lambda: settings, _shared_settings)
        start = hosts.together(prepared, _facts)
        settings, data = start.settings, start.data
        if resuming and writing and start.run.step == settings.max_iters and start.run.evaluated:
            further = pasteable("train", init_from="resume", out_dir=out_dir, max_iters=2 * max(1, start.run.step))
            finished = f"the run in {settings.out_dir} is finished, at iteration {start.run.step}"
            print(f"{finished}; to train it further: {further}")
        shape = mesh_shape(settings.mesh, jax.device_count())
        require_fit(shape, settings)
        mesh = None if jax.device_count() == 1 else make_mesh(shape, jax.devices())
        model = build_model(settings, start.run.vocab_size, jax.default_backend())
        tx = make_optimizer(settings)
        state, run = start.load(model, tx, mesh)
        start = start._replace(run=run)
        held.enter_context(sharding.use(mesh))  # not before: parameters are made with one token, which no mesh divides
        size = sum(p.size for p in jax.tree.leaves(state.params))
        of_base = 0 if state.base is None else sum(p.size for p in jax.tree.leaves(state.base.variables))
        print(f"{describe()}, mesh {shape}; {np.dtype(model.dtype).name} matrix products, {model.kernel} attention")
        beside = f" beside {of_base:,} that stay as they are" if of_base else ""
        print(f"{size:,} parameters{beside}; {settings.tokens_per_iter:,} tokens per iteration", flush=True)
        if settings.decay_lr and settings.lr_decay_iters <= settings.warmup_iters:
            print(
                f"warning: lr_decay_iters={settings.lr_decay_iters} is not larger than "
                f"warmup_iters={settings.warmup_iters}: after the warm-up the learning rate is min_lr at once",
                flush=True,
            )
        eval_step = make_eval_step(model)
        if settings.eval_only:
            stop = partial(hosts.stop_if_told, received)
            return _final_loss(loss_under(eval_step, state), data.val, settings.block_size, mesh, stop)
        if not resuming and hosts.is_first():
            publisher = held.enter_context(only_run_at(settings.out_dir, resuming=False))
            start = start._replace(publisher=publisher)
        places = None if mesh is None else sharding.state_shardings(mesh, state)
        train_step = make_train_step(model, tx, skip_nonfinite=settings.nan_policy == "skip", shardings=places)
        with refusals_in_one_line(out_dir), signals(received), live.shown(start, model) as view:
            stop = partial(hosts.stop_if_told, received)
            return _update_until_done(start, train_step, eval_step, state, mesh, view, stop, fails_alone)


def _facts(start: Start) -> dict[str, Any]:
    """What must be the same in every process."""
    return _shared_settings(start.settings) | {
        "the tokens of the data set": start.data.digest(),
        "the iteration to start from": start.run.step,
    }


def _shared_settings(settings: Settings) -> dict[str, Any]:
    own = ("coordinator", "process_id", "connect_timeout")
    return {name: value for name, value in vars(settings).items() if name not in own}


def loss_under(eval_step: Callable[..., Any], state: TrainState) -> LossOf:
    """`eval_step` with the parameters of a state, which the next update takes away."""
    return lambda batch, weights: eval_step(state.params, batch, weights, state.base)


def estimate_loss(
    loss_of: LossOf,
    data: Data,
    settings: Settings,
    step: int,
    mesh: Mesh | None = None,
    stop: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean loss over `eval_iters` random batches of each split: nanoGPT's estimate, drawn anew at every step.

    They are read in steps of the size that the whole split is read in, so that one program does for both. `stop` is
    called before every step, and may raise.
    """
    rows = rounded_up(rows_at_once(data.val, settings.block_size), mesh)
    of_streams = {"train_eval": data.train, "val": data.val}
    return {
        stream: _estimate(loss_of, file, stream, settings, step, rows, mesh, stop)
        for stream, file in of_streams.items()
    }


def _estimate(
    loss_of: LossOf,
    file: TokenFile,
    stream: str,
    settings: Settings,
    step: int,
    rows: int,
    mesh: Mesh | None,
    stop: Callable[[], None],
) -> float:
    targets = 0

    def batches() -> Iterator[tuple[AnyBatch, Any]]:
        nonlocal targets  # counted as they are drawn: `stop` may come long before the last
        for starts in starts_of_estimate(file, stream, settings, step, rows):
            targets += dataset.targets_at(file, starts, settings.block_size)
            yield feed.windows_at(mesh, file, starts, rows, settings.block_size)

    return _sum(loss_of, batches(), stop) / targets


def starts_of_estimate(
    file: TokenFile, stream: str, settings: Settings, step: int, rows: int
) -> Iterator[Int64[np.ndarray, " _"]]:
    """Where the windows of an estimate begin, `rows` at a time; the last may be fewer."""
    indices = range(step * settings.eval_iters, (step + 1) * settings.eval_iters)
    return dataset.starts_of_batches(
        file, stream, settings.seed, indices, settings.batch_size, settings.block_size, rows
    )


def rows_at_once(val: TokenFile, block_size: int, models: int = 1) -> int:
    """Windows in a step of an evaluation of so many models at once, on one device."""
    tokens = TOKENS_PER_EVAL_STEP[jax.default_backend()]
    return min(max(1, tokens // block_size // models), rows_in_split(val, block_size))


def whole_split_loss(
    loss_of: LossOf,
    file: TokenFile,
    block_size: int,
    mesh: Mesh | None = None,
    stop: Callable[[], None] = lambda: None,
) -> tuple[float, int]:
    """Mean loss over every token of a split but its first, read in windows of `block_size`, and their number.

    Of examples, it is over every token that is learnt. `stop` is called before every step, and may raise.
    """
    windows = rounded_up(rows_at_once(file, block_size), mesh)
    targets = dataset.targets_in_split(file)
    return _sum(loss_of, feed.whole_split(mesh, file, windows, block_size), stop) / targets, targets


def _sum(loss_of: LossOf, batches: Iterable[tuple[AnyBatch, Any]], stop: Callable[[], None]) -> float:
    """The losses of all batches together; the device is a batch ahead at most, so that `stop` comes in time."""
    total, ahead = 0.0, None
    for batch in batches:
        stop()
        ahead, done = loss_of(*batch), ahead
        total += 0.0 if done is None else float(done)
    return total if ahead is None else total + float(ahead)


def _update_until_done(
    start: Start,
    train_step: Callable[[TrainState, AnyBatch], tuple[TrainState, Metrics]],
    eval_step: Callable[..., Any],
    state: TrainState,
    mesh: Mesh | None,
    view: live.Lines,
    stop: Callable[[], None],
    fails_alone: hosts.FailsAlone,
) -> float:
    """The loop: evaluate and save when due, update, log late; from `run.step` to `max_iters`, and the final loss.

    `stop` is called between updates and between the batches of an evaluation; what it raises ends the run, saved.
    """
    settings, data, run, *_ = start
    steps = range(run.step, settings.max_iters)
    batches = feed.ahead(lambda step: training_batch(settings, data, step, mesh), steps)
    profile = Profile(settings.profile)
    with (
        writing(start, fails_alone) as (checkpoints, kept),
        contextlib.closing(batches),
        contextlib.closing(profile),
    ):
        figures = Sinks((kept, view))
        flops = flops_per_token(settings, state.params, state.base)
        progress = Progress(start, flops, checkpoints, figures, partial(print, flush=True), view.iteration)
        try:
            while True:
                step = progress.run.step
                if progress.needs_evaluation:
                    with progress.log.paused():
                        losses = estimate_loss(loss_under(eval_step, state), data, settings, step, mesh, stop)
                        train_loss, val_loss = losses.values()
                        print(f"step {step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}", flush=True)
                        progress.evaluated(losses)
                        view.evaluated(state)
                if progress.needs_saving:
                    progress.save(state)
                checkpoints.check()
                if progress.is_done:
                    break
                stop()
                profile.before_update(state)
                state, metrics = train_step(state, next(batches))
                progress.updated(metrics)
            progress.tell_if_out_of_patience()
            loss = _final_loss(loss_under(eval_step, state), data.val, settings.block_size, mesh, stop)
            checkpoints.wait()
            state = dataclasses.replace(state, opt_state=None)  # which is saved; its memory is for the best weights
            best = best_beside_last(
                at_hand(settings.out_dir), step, state.params, loss,
                lambda params: whole_split_loss(
                    loss_under(eval_step, dataclasses.replace(state, params=params)),
                    data.val, settings.block_size, mesh, stop,
                )[0],
            )  # fmt: skip
        except Stopped:
            progress.save(state)
            checkpoints.wait()
            raise
        if among := beside_expected(settings, loss):
            print(among, flush=True)
        figures.write(step, "val_whole", loss, seconds=progress.log.seconds(), **best)
        if hosts.is_first():
            leave_figure(at_hand(settings.out_dir))
    return loss


def _final_loss(loss_of: LossOf, val: TokenFile, block_size: int, mesh: Mesh | None, stop: Callable[[], None]) -> float:
    loss, targets = whole_split_loss(loss_of, val, block_size, mesh, stop)
    print(f"final val loss {loss:.4f} (whole split, {targets} tokens)", flush=True)
    return loss


def training_batch(settings: Settings, data: Data, step: int, mesh: Mesh | None = None) -> AnyBatch:
    """The batch of update `step`."""
    return feed.random_batch(mesh, data.train, "train", settings.seed, step, settings.batch_shape, settings.block_size)
