"""Where a run stands: what is due before its next update, what is told of it, and what of it is saved.

The arrays are the caller's, who may train one run or many at once; each has a `Progress` of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import RunFailed
from nanogpt_jax.core.train_step import TrainState
from nanogpt_jax.data.addresses import at_hand, is_address
from nanogpt_jax.run import hosts
from nanogpt_jax.run.faults import Stopped, unwritable
from nanogpt_jax.run.publishing import GivenAway, PublishedCheckpoints
from nanogpt_jax.run.resume import at_a_lower_rate
from nanogpt_jax.run.run_folder import set_previous_run_aside
from nanogpt_jax.run.sinks import Sink, Sinks, open_sinks
from nanogpt_jax.run.start import Start
from nanogpt_jax.run.telemetry import StepLog, write_config
from nanogpt_jax.weights.checkpoint import RunDocument
from nanogpt_jax.weights.saving import CheckpointWriter


class Progress:
    """The course of one run, from `run.step` to `max_iters`, or to where it runs out of patience.

    Attributes:
        settings: the run's.
        run: what is behind it.
        log: what is told of its updates.
    """

    def __init__(
        self,
        start: Start,
        flops_per_token: float,
        checkpoints: CheckpointWriter,
        figures: Sink,
        tell: Callable[[str], None],
        tell_update: Callable[[str], None],
    ) -> None:
        """`tell` takes what is to be said; `tell_update` nanoGPT's lines."""
        self.settings: Settings = start.settings
        self.run: RunDocument = start.run
        self._checkpoints, self._figures, self._tell = checkpoints, figures, tell
        self.log = StepLog(start.settings, figures, tell_update, flops_per_token, start.run, tell)
        self._is_due = self._is_interval()

    @property
    def is_done(self) -> bool:
        """Whether no update is left to make."""
        is_out = is_out_of_patience(self.run.since_best, self.settings.patience)
        return self.run.step >= self.settings.max_iters or is_out

    @property
    def needs_evaluation(self) -> bool:
        """Whether an evaluation is due before the next update, or at the end."""
        return not self.run.evaluated and (self.is_done or self.run.step % self.settings.eval_interval == 0)

    @property
    def needs_saving(self) -> bool:
        """Whether the state as it is now, and has been evaluated where that was due, is to be saved."""
        return self._is_due and self.run.step > 0

    def _is_interval(self) -> bool:
        every = self.settings.save_interval
        return every is not None and self.run.step % every == 0

    def evaluated(self, losses: Mapping[str, float]) -> None:
        """Take the estimates of both splits' losses. Raises `RunFailed` for a validation loss that is no number."""
        step = self.run.step
        for split, loss in losses.items():
            rate, seconds = self.log.learning_rate(step), self.log.seconds()
            self._figures.write(step, split, loss, learning_rate=rate, seconds=seconds)
        self.run, better = _evaluated(self.run, losses["val"], self.settings)
        self._is_due |= better or self.settings.always_save_checkpoint or self.is_done

    def updated(self, metrics: Any) -> None:
        """Take the metrics of an update. Raises `RunFailed` for those of the one before that are no numbers."""
        step = self.run.step
        self.log.add(step, metrics)
        self.run = dataclasses.replace(self.run, step=step + 1, evaluated=False, val_loss=None)
        self._is_due = self._is_interval()

    def save(self, state: TrainState) -> None:
        """Save what stands behind `run.step` updates, all of which have been looked at; a bad state never."""
        with self.log.paused():
            self._figures.sync()
            if not is_finite((state.params, state.opt_state)):
                raise RunFailed(
                    f"iteration {self.run.step}: the parameters or moments are not finite, and are not saved; "
                    + at_a_lower_rate(self.settings)
                )
            run = dataclasses.replace(self.run, seconds=self.log.seconds(), skipped=self.log.skipped)
            self._checkpoints.save(state, run)

    def tell_if_out_of_patience(self) -> None:
        """Say so, and how to go on, if the run ends before its last update."""
        settings, run = self.settings, self.run
        if run.step < settings.max_iters:
            self._tell(
                f"patience={settings.patience}: no better validation loss in {run.since_best} evaluations, so the "
                f"run ends at iteration {run.step} of {settings.max_iters}; --init_from=resume --patience=none "
                "goes on"
            )


def _evaluated(run: RunDocument, loss: float, settings: Settings) -> tuple[RunDocument, bool]:
    """`run` with the validation loss at its step, and whether that is the best so far."""
    if not math.isfinite(loss):
        if settings.nan_policy == "stop":
            raise RunFailed(f"iteration {run.step}: val loss {loss}; {at_a_lower_rate(settings)}")
        return dataclasses.replace(run, evaluated=True, since_best=run.since_best + 1), False
    better = run.best_val_loss is None or loss < run.best_val_loss
    best = loss if better else run.best_val_loss
    since = 0 if better else run.since_best + 1
    return dataclasses.replace(run, evaluated=True, val_loss=loss, best_val_loss=best, since_best=since), better


def is_out_of_patience(since_best: int, patience: int | None) -> bool:
    """Whether as many evaluations as `patience` have been no better than the best one before them."""
    return patience is not None and since_best >= patience


@contextlib.contextmanager
def writing(start: Start, fails_alone: hosts.FailsAlone) -> Iterator[tuple[CheckpointWriter, Sinks]]:
    """The run's folder, open for writing; what is being saved when the block ends is finished, and is in its bucket.

    But not by a process that fails alone: saving needs all of them, and would wait for ever.
    """
    publisher = start.publisher
    try:
        with _writing(start, fails_alone) as opened:
            yield opened
    except BaseException:
        if publisher is not None:
            with contextlib.suppress(RunFailed):  # the first error is the one to tell
                publisher.publish(all_of_it=True)
        raise
    if publisher is not None:
        publisher.publish(all_of_it=True)


@contextlib.contextmanager
def _writing(start: Start, fails_alone: hosts.FailsAlone) -> Iterator[tuple[CheckpointWriter, Sinks]]:
    out_dir, run, publisher = at_hand(start.settings.out_dir), start.run, start.publisher
    with unwritable(out_dir):
        kept = Sinks()  # of none: another process has them
        if hosts.is_first():
            if start.since is None:
                set_previous_run_aside(out_dir)
            write_config(out_dir, start.settings)
            kept = open_sinks(out_dir, start.settings, run.step, run.evaluated, resuming=start.since is not None)
        hosts.wait_for_all("folder")
        if publisher is not None:
            checkpoints: CheckpointWriter = PublishedCheckpoints(out_dir, start.since, publisher)
        elif is_address(start.settings.out_dir):
            checkpoints = GivenAway()
        else:
            checkpoints = CheckpointWriter(out_dir, start.since)
    alone = False
    with contextlib.closing(kept):
        try:
            yield checkpoints, kept
        except Stopped:
            raise
        except Exception as error:
            alone = fails_alone(error)
            if not alone:
                with contextlib.suppress(RunFailed):  # the first error is the one to tell
                    checkpoints.close()
            raise
        finally:
            if not alone:
                checkpoints.close()


@jax.jit
def is_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every number in a tree of arrays is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
