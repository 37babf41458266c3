"""Runs side by side in one program, each with a folder, a log and checkpoints of its own, as if it had been alone.

A run that fails ends, and the others go on. Which runs are one program is the plan's affair (`sweep_plan.py`); what is
compiled is in `core/many.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from nanogpt_jax.core.many import (
    RUNS,
    make_many_eval_step,
    make_many_step,
    run_of,
    runs_sharding,
    side_by_side,
    stacked,
)
from nanogpt_jax.core.ops import AnyArray
from nanogpt_jax.core.optimizer import hyperparameters, make_optimizer
from nanogpt_jax.core.train_step import AnyBatch, Batch, Params, TrainState, abstract_state
from nanogpt_jax.data import dataset, feed
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.curves import leave_figure
from nanogpt_jax.run.faults import Stopped
from nanogpt_jax.run.loop import rows_at_once, starts_of_estimate
from nanogpt_jax.run.members import Log, Member, Tell
from nanogpt_jax.run.start import Start
from nanogpt_jax.weights.checkpoint import best

_SHARE_OF_MEMORY = 0.8  # of what is free: the rest is for what XLA does not tell of

Stop = Callable[[], None]


def train_together(
    names: Sequence[str], starts: Sequence[Start], *, data_seed: int | None, stop: Stop, tell: Tell
) -> list[Member]:
    """Train the runs that begin at `starts`, which differ in what can be traced alone, to their ends.

    The batches are of each run's own seed, or all of `data_seed`. `stop` is called between updates, and may raise; then
    all are saved as they stand.
    """
    mesh = _device_mesh(len(starts))
    every = [starts[min(i, len(starts) - 1)] for i in range(_rounded_up(len(starts), mesh))]  # the last fills up
    settings, model = starts[0].settings, _model_of(starts[0])
    tx = make_optimizer(settings)  # the state that it begins with is that of all
    states = stacked(lambda i: every[i].load(_model_of(every[i]), tx, None)[0], len(every), mesh)
    numbers = side_by_side([hyperparameters(start.settings) for start in every], mesh)
    step = make_many_step(model, settings, mesh=mesh, in_turn=_in_turn())
    evaluation = _Evaluation(model, every, mesh)
    updates = max(start.settings.max_iters - start.run.step for start in starts)
    batches = feed.ahead(partial(_training_batches, every, data_seed, mesh), range(updates))
    with contextlib.ExitStack() as held:
        held.enter_context(contextlib.closing(batches))
        own = run_of(states.params, 0)
        members = [Member(name, start, own, tell, held) for name, start in zip(names, starts, strict=True)]
        log = Log(members, settings.log_interval, tell)
        try:
            while True:
                _before_update(members, states, evaluation, log, stop)
                if not any(member.is_active for member in members):
                    return members
                stop()
                states, metrics = step(states, next(batches), numbers)
                log.updated(metrics)
        except Stopped:
            for i, member in enumerate(members):
                if member.is_active:
                    with member.failing_alone():
                        member.progress.save(run_of(states, i))
            for member in members:
                with member.failing_alone():
                    member.checkpoints.wait()
            raise


def _before_update(
    members: Sequence[Member], states: TrainState, evaluation: _Evaluation, log: Log, stop: Stop
) -> None:
    """All that is due of every run, by its own step: an evaluation, saving, the end."""
    for member in members:
        if member.is_active and (member.progress.needs_evaluation or member.progress.needs_saving):
            with member.failing_alone():
                member.progress.log.flush()
    due = [i for i, member in enumerate(members) if member.is_active and member.progress.needs_evaluation]
    if due:
        with contextlib.ExitStack() as paused:
            for i in due:
                paused.enter_context(members[i].progress.log.paused())
            losses = evaluation.estimates(states.params, [member.progress.run.step for member in members], stop)
            log.evaluated({members[i].name: losses[i]["val"] for i in due}, members[due[0]].progress.run.step)
            for i in due:
                with members[i].failing_alone():
                    members[i].progress.evaluated(losses[i])
    for i, member in enumerate(members):
        if member.is_active:
            with member.failing_alone():
                if member.progress.needs_saving:
                    member.progress.save(run_of(states, i))
                member.checkpoints.check()
    ending = [i for i, member in enumerate(members) if member.is_active and member.progress.is_done]
    if ending:
        _end(members, ending, states.params, evaluation, stop)


def _end(members: Sequence[Member], ending: Sequence[int], params: Params, evaluation: _Evaluation, stop: Stop) -> None:
    """The losses over the whole split of the runs that are done, of their last weights and of their best ones."""
    for i in ending:
        members[i].progress.tell_if_out_of_patience()
        with members[i].failing_alone():
            members[i].checkpoints.wait()
    last = evaluation.whole_split(params, stop)
    found = {i: best(members[i].out_dir) for i in ending}
    older = {i: each for i, each in found.items() if each is not None and each.run.step < members[i].progress.run.step}

    def weights(i: int) -> Params:
        own = run_of(params, i)
        return older[i].params(own) if i in older else own

    of_best = evaluation.whole_split(evaluation.beside_each_other(weights), stop) if older else last
    for i in (i for i in ending if members[i].is_active):
        member, checkpoint = members[i], found[i]
        member.loss, figures = float(last[i]), {}
        if checkpoint is not None:
            member.best_loss = float(of_best[i])
            figures = {"best_step": checkpoint.run.step, "best_loss": member.best_loss}
        seconds = member.progress.log.seconds()
        member.figures.write(member.progress.run.step, "val_whole", member.loss, seconds=seconds, **figures)
        leave_figure(member.out_dir)


def _training_batches(starts: Sequence[Start], data_seed: int | None, mesh: Mesh | None, update: int) -> AnyBatch:
    """The batches of all runs, each at its own step; one that is behind its last takes that again."""

    def of(start: Start) -> AnyBatch:
        settings = start.settings
        seed = settings.seed if data_seed is None else data_seed
        step = min(start.run.step + update, settings.max_iters - 1)
        return dataset.random_batch(start.data.train, "train", seed, step, settings.batch_shape, settings.block_size)

    return side_by_side([of(start) for start in starts], mesh)


class _Evaluation:
    """Losses of all runs at once: estimates as each would draw them alone, and over the whole validation split."""

    def __init__(self, model: nn.Module, starts: Sequence[Start], mesh: Mesh | None) -> None:
        self._starts, self._mesh, self._block_size = starts, mesh, starts[0].settings.block_size
        self._rows = rows_at_once(starts[0].data.val, self._block_size, 1 if _in_turn() else len(starts))
        self._on_own, self._on_same = (
            make_many_eval_step(model, same_data=same, mesh=mesh, in_turn=_in_turn()) for same in (False, True)
        )

    def estimates(self, params: Params, steps: Sequence[int], stop: Stop) -> list[dict[str, float]]:
        """As `loop.estimate_loss`, of each run at its own of `steps`."""
        at = [*steps, *[steps[-1]] * (len(self._starts) - len(steps))]
        losses: list[dict[str, float]] = [{} for _ in self._starts]
        for stream in ("train_eval", "val"):
            total, targets = np.zeros(len(self._starts)), np.zeros(len(self._starts))
            each = (self._drawn(start, stream, step) for start, step in zip(self._starts, at, strict=True))
            for drawn in zip(*each, strict=True):
                stop()
                batches, weights, numbers = zip(*drawn, strict=True)
                # Every run has as many windows, so that the weights of one are those of all.
                total += np.asarray(self._on_own(params, side_by_side(batches, self._mesh), weights[0]))
                targets += numbers
            for of_run, loss in zip(losses, total / targets, strict=True):
                of_run[stream] = float(loss)
        return losses

    def _drawn(self, start: Start, stream: str, step: int) -> Iterator[tuple[AnyBatch, AnyArray, int]]:
        """What one run's estimate reads at a step: windows, their weights, and how many tokens are to be predicted."""
        file = start.data.val if stream == "val" else start.data.train
        for starts in starts_of_estimate(file, stream, start.settings, step, self._rows):
            padded, weights = dataset.filled_up(starts, self._rows, self._block_size)
            yield (
                dataset.windows(file, padded, self._block_size),
                weights,
                dataset.targets_at(file, starts, self._block_size),
            )

    def whole_split(self, params: Params, stop: Stop) -> Float[np.ndarray, " R"]:
        """As `loop.whole_split_loss`, of every run."""
        val, total = self._starts[0].data.val, np.zeros(len(self._starts))
        for batch, weights in dataset.whole_split(val, self._rows, self._block_size):
            stop()
            total += np.asarray(self._on_same(params, batch, weights))
        return total / dataset.targets_in_split(val)

    def beside_each_other(self, weights: Callable[[int], Params]) -> Params:
        """The parameters that `weights` gives of each run."""
        return stacked(weights, len(self._starts), self._mesh)


def runs_at_once(start: Start, runs: int) -> tuple[int, str]:
    """How many of `runs` like the one that begins at `start` fit into the memory that is free; and that, in words.

    Goes by what XLA says of the program of all of them.
    """
    mesh = _device_mesh(runs)
    places = _rounded_up(runs, mesh)
    needed = _memory_of(start, places, mesh)
    free = _free_memory()
    if needed is None or free is None:
        return runs, "nobody says how much is free"
    fitting = int(places * min(1.0, _SHARE_OF_MEMORY * free / needed))
    devices = 1 if mesh is None else mesh.size
    fitting = min(runs, max(devices, fitting // devices * devices))
    return fitting, f"{needed * fitting / places / 2**30:.2f} of {free / 2**30:.1f} GiB that are free on each device"


def _memory_of(start: Start, places: int, mesh: Mesh | None) -> int | None:
    """Bytes that an update of so many runs takes of one device, its state included."""
    settings, model = start.settings, _model_of(start)
    place = runs_sharding(mesh)

    def many(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((places, *x.shape), x.dtype, sharding=place), tree)

    shape = (*settings.batch_shape, settings.block_size)
    tokens = jax.ShapeDtypeStruct(shape, np.int32)
    batch: Any = Batch(tokens, tokens)  # type: ignore[arg-type]  # a tree of this shape may hold anything
    states = many(abstract_state(model, make_optimizer(settings)))
    step: Any = make_many_step(model, settings, mesh=mesh, in_turn=_in_turn())
    analysis = step.lower(states, many(batch), many(hyperparameters(settings))).compile().memory_analysis()
    if analysis is None:
        return None
    own = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(own + analysis.temp_size_in_bytes)


def _free_memory() -> int | None:
    """Bytes that are free on a device; None where nobody says."""
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // jax.local_device_count()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    return None


def _device_mesh(runs: int) -> Mesh | None:
    """The devices along the axis of runs, as many as have one; None for a single one."""
    devices = jax.devices()[:runs]
    return None if len(devices) == 1 else Mesh(np.array(devices), (RUNS,))


def _in_turn() -> bool:
    """Whether a device computes its runs one after the other: a core is full with one, and slower with a batch."""
    return jax.default_backend() == "cpu"


def a_device_for_each_core() -> None:
    """Make every core that this process may use a device of its own: runs side by side then need not wait for others.

    Must be called before JAX looks for devices; leaves alone a number that the environment names.
    """
    named = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not named and "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):  # a program that calls ours has looked for them already
            jax.config.update("jax_num_cpu_devices", cores)


def _rounded_up(runs: int, mesh: Mesh | None) -> int:
    """The least number of runs, from `runs` on, that can be dealt out evenly."""
    devices = 1 if mesh is None else mesh.size
    return -(-runs // devices) * devices


def _model_of(start: Start) -> nn.Module:
    return build_model(start.settings, start.run.vocab_size, jax.default_backend())
