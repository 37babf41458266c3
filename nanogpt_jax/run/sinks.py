"""Where a run's figures go: `metrics.jsonl` always; TensorBoard, Weights & Biases and the terminal where asked for.

Each is a `Sink`. A run that goes on where an earlier process stopped goes on in the same places, and no step is there
twice.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.data.files import exists, refused, replace_when_whole
from nanogpt_jax.run.reports import require_installed

METRICS_FILE = "metrics.jsonl"
FIGURE_FILE = "loss.png"  # their curves, drawn at the end
TENSORBOARD_FOLDER = "tensorboard"
WANDB_FOLDER = "wandb"
WANDB_ID = "id.txt"


class Sink:
    """What takes the figures of a run; this one lets them go."""

    def write(self, step: int, split: str, loss: float, **figures: float | None) -> None:
        """Take the loss of a split at a step, and what else is known there; figures that are None have no meaning.

        ``split`` is ``train`` (the loss of one update's batch), ``train_eval`` and ``val`` (the estimates of an
        evaluation) or ``val_whole`` (the pass over the whole validation split). Figures are ``learning_rate``,
        ``tokens_per_second``, ``mfu`` (a share of 1), ``seconds`` in training, ``skipped``.
        """

    def sync(self) -> None:
        """Have all of it on the disk, as a checkpoint that counts on it is about to be."""

    def close(self) -> None:
        """Take no more."""


class Sinks(Sink):
    """Several sinks as one; none of them where another process has them all."""

    def __init__(self, sinks: Iterable[Sink] = ()) -> None:
        self._sinks = tuple(sinks)

    def write(self, step: int, split: str, loss: float, **figures: float | None) -> None:
        for sink in self._sinks:
            sink.write(step, split, loss, **figures)

    def sync(self) -> None:
        for sink in self._sinks:
            sink.sync()

    def close(self) -> None:
        with contextlib.ExitStack() as closed:  # all of them, whatever befalls one
            for sink in self._sinks:
                closed.callback(sink.close)


class MetricsFile(Sink):
    """`metrics.jsonl`: one JSON object a line, {"step", "split", "loss", ...}, written as things happen.

    Attributes:
        of_this_step: what an earlier process told of `step`, and stays: its evaluation.
    """

    def __init__(self, out_dir: Path, *, step: int, evaluated: bool) -> None:
        """Open for a run that stands before update `step`; lines a lost process wrote past that are dropped.

        `evaluated` says whether the evaluation due at `step` has been made, and so stays.
        """
        self._path = out_dir / METRICS_FILE
        kept = [(line, entry) for line, entry in _whole_lines(self._path) if _is_before(entry, step, evaluated)]
        self.of_this_step = [entry for _, entry in kept if entry["step"] == step]
        with replace_when_whole(self._path) as file:
            file.writelines(line for line, _ in kept)
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)

    def write(self, step: int, split: str, loss: float, **figures: float | None) -> None:
        """Add a line; figures that are None are left out. A loss that is no number is null.

        Raises `OSError` if it cannot be written.
        """
        known = {name: value for name, value in figures.items() if value is not None}
        number = loss if math.isfinite(loss) else None
        line = json.dumps({"step": step, "split": split, "loss": number, **known}).encode() + b"\n"
        if self._file.write(line) != len(line):  # the disk took a part of it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Have what was written on the disk, as a checkpoint that counts on it is about to be.

        Raises `OSError` if the file is not in its folder any more, or the disk is full.
        """
        if not os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
            raise FileNotFoundError(errno.ENOENT, f"{self._path} has been replaced")
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard(Sink):
    """TensorBoard's event files in `out_dir/tensorboard`, under nanoGPT's names: train/loss, val/loss, lr and so on."""

    def __init__(self, out_dir: Path, step: int, of_this_step: Iterable[Mapping[str, Any]]) -> None:
        """Open for a run that stands before update `step`.

        TensorBoard drops all that an earlier process told of `step` and later, so `of_this_step` is told again.
        """
        from tensorboardX import SummaryWriter

        # A name of its own for each process: by itself it is that of the second, and the earlier file would be gone.
        own = f".{step}.{os.getpid()}"
        self._writer = SummaryWriter(str(out_dir / TENSORBOARD_FOLDER), purge_step=step or None, filename_suffix=own)
        for entry in of_this_step:
            self.write(step, entry["split"], entry.get("loss"))

    def write(self, step: int, split: str, loss: float | None, **figures: float | None) -> None:
        for name, value in scalars(split, loss, figures).items():
            self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Sink):
    """A run at Weights & Biases, with its files in `out_dir/wandb`, under the same names as for TensorBoard."""

    def __init__(self, out_dir: Path, settings: Settings, *, resuming: bool) -> None:
        """Start the run, or go on with the one that an earlier process began in this folder.

        W&B writes in a process of its own, and takes no step twice. Raises `UserError` where it can't begin.
        """
        import wandb

        kept = out_dir / WANDB_FOLDER / WANDB_ID
        before = kept.read_text(encoding="utf-8") if resuming and exists(kept) else None
        try:
            self._run = wandb.init(
                project=settings.wandb_project,
                name=settings.wandb_run_name,
                dir=out_dir,
                config=dict(vars(settings)),
                id=before,
                resume="allow",
                settings=wandb.Settings(console="off"),  # the terminal is ours
            )
        except wandb.Error as error:
            raise UserError(
                f"wandb={settings.wandb} could not begin ({in_short(error)}); log in with: wandb login, or set "
                "WANDB_MODE=offline in the environment"
            ) from error
        with replace_when_whole(kept, "w") as file:
            file.write(self._run.id)

    def write(self, step: int, split: str, loss: float, **figures: float | None) -> None:
        self._run.log(scalars(split, loss, figures), step=step)

    def close(self) -> None:
        self._run.finish()


def scalars(split: str, loss: float | None, figures: Mapping[str, float | None]) -> dict[str, float]:
    """The figures under nanoGPT's names. Those of the machine and the schedule are told with updates alone."""
    names = {"learning_rate": "lr", "tokens_per_second": "tokens_per_second", "mfu": "mfu"} if split == "train" else {}
    told = {f"{split}/loss": loss} | {new: figures.get(old) for old, new in names.items()}
    return {name: value for name, value in told.items() if value is not None}


def require_sinks(settings: Settings) -> None:
    """Raise `UserError`, with the command that installs it, if a package that the settings ask for is not there."""
    if settings.tensorboard:
        require_installed("tensorboardX", "--tensorboard")
    if settings.wandb:
        require_installed("wandb", "--wandb")


def open_sinks(out_dir: Path, settings: Settings, step: int, evaluated: bool, *, resuming: bool) -> Sinks:
    """All that the settings ask for, open for a run that stands before update `step`; see `MetricsFile`."""
    metrics = MetricsFile(out_dir, step=step, evaluated=evaluated)
    sinks: list[Sink] = [metrics]
    try:
        if settings.tensorboard:
            sinks.append(TensorBoard(out_dir, step, metrics.of_this_step))
        if settings.wandb:
            sinks.append(WeightsAndBiases(out_dir, settings, resuming=resuming))
    except BaseException:
        Sinks(sinks).close()
        raise
    return Sinks(sinks)


def read_metrics(out_dir: Path) -> list[dict[str, Any]]:
    """The entries of a run's metrics file; a line that is just being written is left out. `UserError` without any."""
    try:
        lines = (out_dir / METRICS_FILE).read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{out_dir} holds no {METRICS_FILE} ({error.strerror}); name the folder of a run") from error
    except OSError as error:
        raise refused(out_dir / METRICS_FILE, error, "read") from error
    entries = [entry for line in lines if (entry := _entry(line)) is not None]
    if not entries:
        raise UserError(f"{out_dir / METRICS_FILE} says nothing yet; wait for the run's first evaluation")
    return entries


def _whole_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of a metrics file and what they say, without what a dying process or machine left that is none."""
    with contextlib.suppress(FileNotFoundError):
        lines = path.read_bytes().splitlines(keepends=True)
        entries = [(line, _entry(line)) for line in lines if line.endswith(b"\n")]
        whole = [(line, entry) for line, entry in entries if entry is not None]
        if len(whole) < len(lines):
            print(f"{path}: {len(lines) - len(whole)} damaged lines are dropped", flush=True)
        return whole
    return []


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line of a metrics file says, or None if it is no line of ours."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    ours = isinstance(entry, dict) and type(entry.get("step")) is int and isinstance(entry.get("split"), str)
    return entry if ours else None


def _is_before(entry: dict[str, Any], step: int, evaluated: bool) -> bool:
    if entry["step"] == step:
        return evaluated and entry["split"] in ("train_eval", "val")
    return entry["step"] < step
