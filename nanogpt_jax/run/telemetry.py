"""What a run tells of its updates, a trace of some of them, and `config.json`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import RunFailed
from nanogpt_jax.core.lora import INT8, Base
from nanogpt_jax.core.optimizer import learning_rate_schedule
from nanogpt_jax.core.train_step import Params, TrainState
from nanogpt_jax.data.files import replace_when_whole
from nanogpt_jax.run.accelerator import peak_flops
from nanogpt_jax.run.recipe import CONFIG_FILE
from nanogpt_jax.run.resume import at_a_lower_rate
from nanogpt_jax.run.sinks import Sink
from nanogpt_jax.weights.checkpoint import RunDocument


class Profile:
    """A trace of a few updates, written by `jax.profiler` to `folder`; none where that is None."""

    FIRST, LAST = 10, 19  # of the updates of this process: compilation is behind them

    def __init__(self, folder: str | None) -> None:
        self._folder, self._updates, self._is_on = folder, 0, False

    def before_update(self, state: TrainState) -> None:
        """Start or end the trace if this is the time."""
        if self._folder is not None and self._updates in (self.FIRST, self.LAST + 1):
            jax.block_until_ready(state)
            if self._updates == self.FIRST:
                jax.profiler.start_trace(self._folder)
                self._is_on = True
            else:
                self.close()
        self._updates += 1

    def close(self) -> None:
        """End the trace if it is under way."""
        if self._is_on:
            self._is_on = False
            jax.profiler.stop_trace()
            print(f"profile of updates {self.FIRST} to {self.LAST}: {self._folder}", flush=True)


class StepLog:
    """Looks at every update, one update late, so that the device never waits for Python; tells of those that are due.

    Attributes:
        skipped: updates up to now that were skipped because they were not finite.
    """

    def __init__(
        self,
        settings: Settings,
        figures: Sink,
        tell: Callable[[str], None],
        flops_per_token: float,
        run: RunDocument,
        note: Callable[[str], None] = partial(print, flush=True),
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`figures` takes what is known of an update, `tell` nanoGPT's line about it, `note` what went wrong with it.

        `now` is the time in seconds.
        """
        self._settings = settings
        self._figures, self._tell, self._note = figures, tell, note
        self._schedule = learning_rate_schedule(settings)
        self._flops_per_iter = flops_per_token * settings.tokens_per_iter
        self._peak_flops = peak_flops()
        self._now = now
        self._start = now() - run.seconds
        self._apart = 0.0  # seconds that were no update's
        self._told, self._updates = now(), 0  # when the update told of last was made, and how many were since
        self._pending: tuple[int, Mapping[str, Any], float | None] | None = None
        self.skipped = run.skipped

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose time counts for no update; all that were noted have been looked at when it begins."""
        self.flush()
        began = self._now()
        yield
        self._apart += self._now() - began

    def _updating(self) -> float:
        return self._now() - self._apart

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Note the metrics of update `step`, still on the device, and look at those of the update before."""
        # Where Python runs ahead, an update is not made before it is looked at; where it does not, it has been made.
        made = self._updating() if metrics["loss"].is_ready() else None
        self.flush()
        self._pending = (step, metrics, made)

    def flush(self) -> None:
        """Wait for the update noted last, and report it if it is due.

        Raises `RunFailed` if its loss or gradient is not finite, unless such updates are skipped.
        """
        if self._pending is None:
            return
        (step, metrics, made), self._pending = self._pending, None
        self._updates += 1
        due = step % self._settings.log_interval == 0
        learning_rate = self.learning_rate(step) if due else None  # before a skipped update moves the schedule
        loss, grad_norm = (float(value) for value in jax.device_get((metrics["loss"], metrics["grad_norm"])))
        made = self._updating() if made is None else made
        is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if not is_finite:
            self._note_nonfinite(step, loss, grad_norm)
        if not due:
            return
        each = (made - self._told) / self._updates
        self._told, self._updates = made, 0
        mfu = None if self._peak_flops is None else self._flops_per_iter / each / self._peak_flops
        self._figures.write(
            step,
            "train",
            loss,
            learning_rate=learning_rate,
            tokens_per_second=round(self._settings.tokens_per_iter / each, 1),
            mfu=mfu,
            seconds=self.seconds(),
            skipped=None if is_finite else True,
        )
        share = "" if mfu is None else f", mfu {mfu:.2%}"
        self._tell(f"iter {step}: loss {loss:.4f}, time {1000 * each:.2f}ms{share}")

    def _note_nonfinite(self, step: int, loss: float, grad_norm: float) -> None:
        what = f"iteration {step}: loss {loss}, gradient norm {grad_norm}"
        if self._settings.nan_policy == "stop":
            raise RunFailed(
                f"{what}; nothing of it was saved: {at_a_lower_rate(self._settings)}, or with --nan_policy=skip"
            )
        self.skipped += 1
        self._note(f"{what}; update skipped, {self.skipped} so far")

    def learning_rate(self, step: int) -> float:
        """The learning rate of update `step`: skipped ones do not move the schedule."""
        return float(self._schedule(step - self.skipped))

    def seconds(self) -> float:
        """Time in training so far, in all the processes of the run."""
        return round(self._now() - self._start, 3)


def flops_per_token(settings: Settings, params: Params, base: Base | None = None) -> float:
    """Floating-point operations of one token, forward and backward: 6N + 12LHQT (PaLM, appendix B).

    N leaves the position table out, as nanoGPT does. A bigram table multiplies nothing. Weights of a base take 4 of the
    6: they have no gradient.
    """
    if settings.model == "bigram":
        return 0.0
    kept = {} if base is None else {**base.variables["params"], INT8: base.variables.get(INT8, {})}
    learnt, frozen = (
        sum(p.size for p in jax.tree.leaves({name: p for name, p in tree.items() if name != "wpe"}))
        for tree in (params, kept)
    )
    config = settings.gpt_config(len((kept or params)["wte"]["embedding"]))
    return 6 * learnt + 4 * frozen + 12 * config.n_layer * config.n_head * config.head_width * config.block_size


def write_config(out_dir: Path, settings: Settings, **facts: Any) -> None:
    """`config.json`: everything needed to tell this run from another and to make it again."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    kind = jax.devices()[0].device_kind
    document = {
        "settings": vars(settings),
        "seed": settings.seed,
        "command": sys.argv,
        "device": {"platform": jax.default_backend(), "kind": kind, "count": jax.device_count()},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        **facts,
    }
    with replace_when_whole(out_dir / CONFIG_FILE, "w") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
