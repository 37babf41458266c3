"""The runs that are trained side by side, each as if it were alone, and what the terminal is told of all of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nanogpt_jax.core.errors import RunFailed
from nanogpt_jax.core.train_step import Params
from nanogpt_jax.run.faults import only_run_in
from nanogpt_jax.run.progress import Progress, writing
from nanogpt_jax.run.start import Start
from nanogpt_jax.run.telemetry import flops_per_token

Tell = Callable[[str], None]


class Member:
    """One of the runs that are trained together, with its folder, which `opened` opens.

    Attributes:
        name: by which it is told of.
        progress: where it stands.
        loss: over the whole validation split, of its last weights, once it is done.
        best_loss: of its best ones.
        why: it failed; None while it has not.
    """

    def __init__(self, name: str, start: Start, params: Params, tell: Tell, held: contextlib.ExitStack) -> None:
        """Open its folder, until `held` closes."""
        self.name, self.out_dir = name, Path(start.settings.out_dir)
        self.loss: float | None = None
        self.best_loss: float | None = None
        self.why: str | None = None
        self._tell = tell
        self.out_dir.mkdir(parents=True, exist_ok=True)
        held.enter_context(only_run_in(self.out_dir))
        self.checkpoints, self.figures = held.enter_context(writing(start, lambda error: False))
        self.progress = Progress(
            start,
            flops_per_token(start.settings, params),
            self.checkpoints,
            self.figures,
            lambda line: tell(f"{name}: {line}"),
            lambda line: None,
        )

    @property
    def is_active(self) -> bool:
        """Whether it still has something to do."""
        return self.loss is None and self.why is None

    @contextlib.contextmanager
    def failing_alone(self) -> Iterator[None]:
        """What fails in the block is this run's affair, and told."""
        try:
            yield
        except RunFailed as error:
            self.why = " ".join(str(error).split())
            self._tell(f"{self.name} has failed, and ends: {self.why}")


class Log:
    """What the terminal is told of all runs together; each run keeps a log of its own."""

    def __init__(self, members: Sequence[Member], log_interval: int, tell: Tell) -> None:
        self._members, self._tell, self._interval = members, tell, log_interval
        self._last: tuple[int, Any] | None = None  # the update before this one, to be told of if that is due
        self._told: float | None = None  # when the update told of last was made; None after a pause
        self._updates = 0

    def updated(self, metrics: Mapping[str, Any]) -> None:
        """Note the metrics of an update of all runs, still on the device, and look at those of the one before."""
        active = [(i, member) for i, member in enumerate(self._members) if member.is_active]
        step = active[0][1].progress.run.step
        for i, member in active:
            with member.failing_alone():
                member.progress.updated({name: _OfRun(values, i) for name, values in metrics.items()})
        now = time.perf_counter()
        if self._told is None:
            self._told, self._updates = now, 0
        else:
            self._updates += 1
        if self._last is not None and self._last[0] % self._interval == 0:
            before, loss = self._last[0], np.asarray(self._last[1]["loss"])
            losses = [float(loss[i]) for i, member in active if member.is_active]
            each = (now - self._told) / self._updates
            self._told, self._updates = now, 0
            if losses:
                self._tell(f"iter {before}: loss {_span(losses)}, time {1000 * each:.2f}ms")
        self._last = step, metrics

    def evaluated(self, losses: Mapping[str, float], step: int) -> None:
        """Take the estimated validation losses of runs, by name, at a step; the time they took is no update's."""
        least = min(losses, key=losses.__getitem__)
        named = f", the least by {least}" if len(losses) > 1 else ""
        self._tell(f"step {step}: val loss {_span([*losses.values()])}{named}")
        self._last = self._told = None


class _OfRun:
    """One run's number among those of all, fetched when it is asked for."""

    def __init__(self, of_all: jax.Array, run: int) -> None:
        self._of_all, self._run = of_all, run

    def is_ready(self) -> bool:
        return bool(self._of_all.is_ready())  # type: ignore[attr-defined]  # it is there

    def __float__(self) -> float:
        return float(np.asarray(self._of_all)[self._run])  # which JAX fetches once for all runs


def _span(losses: Sequence[float]) -> str:
    """The least and the largest, or the only one."""
    if len(losses) == 1:
        return f"{losses[0]:.4f}"
    return f"{min(losses):.4f} to {max(losses):.4f} in {len(losses)} runs"
