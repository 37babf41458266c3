"""`bench record NAME`: a preset trained from nothing under several seeds, as a user would, beside nanoGPT's own run.

The losses are of a `sweep` over the seeds. What is timed is the whole of `train`, from the start of the process until
the loss over the whole validation split is told: imports, compilation, the text made ready, every update. It is run
twice: the first run finds nothing compiled, the second all.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanogpt_jax.bench.measure import note
from nanogpt_jax.bench.records import FROM, Record
from nanogpt_jax.bench.report import in_time
from nanogpt_jax.bench.rounds import WorkerDied
from nanogpt_jax.core.config import Settings
from nanogpt_jax.data.commands import flags_of
from nanogpt_jax.data.files import temporary_folder
from nanogpt_jax.data.prepared import load_meta
from nanogpt_jax.data.process import undone_by_signals
from nanogpt_jax.run.reports import OURS, THEIRS, blank_figure, markdown, write_figure
from nanogpt_jax.run.sweep_plan import read_plan
from nanogpt_jax.run.sweep_report import mean_and_error, with_error

FIRST_SEED = 1337
# nanoGPT's README, "I only have a macbook", at its 2,000 updates.
_NANOGPT = (
    "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=100",
    "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000",
    "--lr_decay_iters=2000", "--dropout=0.0",
)  # fmt: skip
_PICKLED_META = b"(dVvocab_size\nI%d\ns."  # {"vocab_size": ...}, which nanoGPT reads by pickle
_NANOGPT_ENDS = r"^step 2000: .*val loss ([\d.]+)"
_OURS_ENDS = r"^final val loss ([\d.]+)"
_SWEEP_ENDS = r"^([\d.]+) s of training"


@dataclass(frozen=True)
class Run:
    """One run: the loss it ended with, in nats per token, and the seconds until that was known, where it was alone."""

    seed: int | None  # None: nanoGPT's, which has one of its own
    loss: float
    seconds: float | None = None


@dataclass(frozen=True)
class Row:
    """A recipe, and its runs.

    Attributes:
        words: what it is, or what it changes.
        runs: one for each seed.
        mean: of their losses.
        error: its standard error; None for a single run.
    """

    words: str
    runs: list[Run]
    mean: float = field(init=False)
    error: float | None = field(init=False)

    def __post_init__(self) -> None:
        mean, error = mean_and_error([run.loss for run in self.runs])
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "error", error)


@dataclass(frozen=True)
class Measured:
    """What `bench record` found.

    Attributes:
        record: the recipe as it is.
        timed: its first seed by itself, with nothing compiled and once more.
        steps: from nanoGPT's recipe on, each with the changes of all before it; the last is the record's own row.
        tried: the recipe with what did not pay.
        reference: nanoGPT's own runs, whose loss is its estimate after 2,000 updates; None without a checkout.
    """

    record: Row
    timed: list[Run]
    steps: list[Row]
    tried: list[Row]
    reference: Row | None


def measure_record(
    name: str, record: Record | None, explicit: Mapping[str, Any], seeds: int, steps: bool, reference: Path | None
) -> Measured:
    """Train the preset `name`, changed by `explicit`, under so many seeds; with `steps`, each step and trial as well.

    Raises `WorkerDied` if a run ends by itself with another status than 0.
    """
    numbers = range(FIRST_SEED, FIRST_SEED + seeds)

    def row(words: str, preset: str, changes: Mapping[str, Any]) -> Row:
        made = Row(words, _swept(preset, {**changes, **explicit}, numbers))
        note(f"{words}: {in_nats(made)}")
        return made

    with temporary_folder() as cache:
        timed = [_our_run(name, explicit, cache) for _ in range(2)]
    held = row(name, name, {}) if seeds > 1 else Row(name, timed[:1])
    theirs = None if reference is None else Row("nanoGPT", [_their_run(reference, explicit) for _ in range(2)])
    rows, tried = [], []
    if steps and record is not None:
        changes = dict(record.length)
        rows.append(row("nanoGPT's recipe", FROM, changes))
        for words, step in [*record.steps.items()][:-1]:
            changes |= step
            rows.append(row(words, FROM, changes))
        rows += [Row(words, held.runs) for words in [*record.steps][-1:]]
        tried = [row(words, name, change) for words, change in record.tried.items()]
    return Measured(held, timed, rows, tried, theirs)


def _swept(preset: str, changes: Mapping[str, Any], seeds: Sequence[int]) -> list[Run]:
    """The runs of `nanogpt-jax sweep` over the seeds, two of them at least."""
    with temporary_folder() as folder:
        out_dir = Path(folder) / "sweep"
        flags = flags_of({**_as_given(changes), "seed": f"{seeds[0]}..{seeds[-1]}", "out_dir": out_dir})
        _until_told(["-m", "nanogpt_jax", "sweep", preset, *flags], Path.cwd(), dict(os.environ), _SWEEP_ENDS)
        runs = read_plan(out_dir).runs
    failed = next((run for run in runs if run.loss is None), None)
    if failed is not None:
        raise WorkerDied(f"{preset} with {failed.name} has failed: {failed.why}")
    return [Run(run.varied["seed"], run.loss) for run in runs if run.loss is not None]


def _as_given(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as flags take them."""
    return {name: "none" if value is None else value for name, value in changes.items()}


def _our_run(preset: str, changes: Mapping[str, Any], cache: str | Path) -> Run:
    """`nanogpt-jax train`, which finds compiled what `cache` holds, and nothing else."""
    with temporary_folder() as folder:
        flags = flags_of({**_as_given(changes), "seed": FIRST_SEED, "out_dir": Path(folder) / "run"})
        argv = ["-m", "nanogpt_jax", "train", preset, *flags]
        elsewhere = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        environment = {**elsewhere, "XDG_CACHE_HOME": str(cache)}
        run = Run(FIRST_SEED, *_until_told(argv, Path.cwd(), environment, _OURS_ENDS))
    note(f"{preset} by itself: {run.loss:.4f} in {run.seconds:.1f} s")
    return run


def _their_run(reference: Path, explicit: Mapping[str, Any]) -> Run:
    """nanoGPT's `train.py` on the tokens that our run has read, in a folder of its own: it writes where it stands."""
    data = Path(explicit.get("data_dir", Settings.data_dir)).absolute() / "shakespeare_char"
    with temporary_folder() as named:
        folder = Path(named)
        for part in ("train.py", "model.py", "configurator.py", "config"):
            (folder / part).symlink_to(reference.absolute() / part)
        there = folder / "data" / "shakespeare_char"
        there.mkdir(parents=True)
        for split in ("train.bin", "val.bin"):
            (there / split).symlink_to(data / split)
        (there / "meta.pkl").write_bytes(_PICKLED_META % load_meta(data).vocab_size)
        run = Run(None, *_until_told(["train.py", *_NANOGPT], folder, dict(os.environ), _NANOGPT_ENDS))
    note(f"nanoGPT: {run.loss:.4f} in {run.seconds:.1f} s")
    return run


def _until_told(argv: Sequence[str], folder: Path, environment: Mapping[str, str], ends: str) -> tuple[float, float]:
    """The loss in the line that `ends` matches, of a Python program, and the seconds until it was told."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(
        [sys.executable, "-u", *argv], cwd=folder, env={**environment, "PYTHONPATH": path}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
    ) as process, undone_by_signals(process.kill):  # fmt: skip
        try:
            told = _told(process, ends)
            process.wait()
        except BaseException:
            process.kill()
            raise
        if told is None or process.returncode:
            errors.seek(0)
            last = [line for line in errors.read().splitlines() if line.strip()][-1:]
            raise WorkerDied(f"{' '.join(argv[:4])} ended with status {process.returncode}: {' '.join(last)[:300]}")
    loss, then = told
    return loss, then - begin


def _told(process: subprocess.Popen[str], ends: str) -> tuple[float, float] | None:
    """The number in the first line that `ends` matches, and when it came; reads until there is no more."""
    assert process.stdout is not None  # it is a pipe
    found = None
    for line in process.stdout:
        if found is None and (match := re.match(ends, line)):
            found = float(match[1]), time.perf_counter()
    return found


def record_tables(name: str, record: Record | None, settings: Settings, measured: Measured) -> str:
    """The record's own line, and what each step has brought."""
    held, theirs = measured.record, measured.reference
    first, later = (run.seconds or math.nan for run in measured.timed)
    head = ["record", "updates", "tokens", "loss", "from nothing compiled", "once compiled"]
    line = [
        name, f"{settings.max_iters:,}", f"{settings.max_iters * settings.tokens_per_iter:,}", in_nats(held),
        in_time(first), in_time(later),
    ]  # fmt: skip
    parts = []
    if theirs is not None:
        theirs_took = statistics.median(run.seconds or math.nan for run in theirs.runs)
        head += ["of nanoGPT's time"]
        line += [f"{first / theirs_took:.3f}, {later / theirs_took:.3f}"]
        parts.append(f"nanoGPT's own run: {theirs.mean:.3f} by its estimate, in {in_time(theirs_took)}.")
    if record is not None:
        verdict = "reached" if held.mean <= record.loss else "not reached"
        parts.insert(0, f"To be reached: {record.goal}. The loss of {record.loss:g}: {verdict}.")
    tables = [markdown(head, [line]), *parts]
    if measured.steps:
        pairs = zip([None, *measured.steps[:-1]], measured.steps, strict=True)
        rows = [[row.words, in_nats(row), "" if before is None else _brought(before, row)] for before, row in pairs]
        tables.append(markdown(["one change a row", "loss", "brought"], rows))
    if measured.tried:
        rows = [[row.words, in_nats(row), _brought(held, row)] for row in measured.tried]
        tables.append(markdown(["tried on the last", "loss", "brought"], rows))
    return "\n\n".join(tables)


def in_nats(row: Row) -> str:
    """The mean loss and its standard error."""
    return with_error(row.mean, row.error) + (", one seed" if row.error is None else "")


def _brought(before: Row, row: Row) -> str:
    """The change of the loss, seed by seed, and its standard error."""
    return with_error(*mean_and_error([b.loss - a.loss for a, b in zip(before.runs, row.runs, strict=True)]), sign="+")


def write_record_plot(path: Path, name: str, measured: Measured) -> None:
    """The steps from top to bottom, each at its loss with its standard error, and below them what did not pay."""
    steps, tried = measured.steps or [measured.record], measured.tried
    figure = blank_figure(figsize=(8, 0.9 + 0.34 * (len(steps) + len(tried))), layout="constrained")
    axes = figure.subplots()
    for rows, first, colour in ((steps, 0, OURS), (tried, len(steps), THEIRS)):
        if rows:
            places = range(first, first + len(rows))
            axes.errorbar(
                [row.mean for row in rows], places, xerr=[row.error or 0.0 for row in rows],
                fmt="o-" if rows is steps else "o", color=colour, capsize=3, linewidth=1.2, markersize=5,
            )  # fmt: skip
            for place, row in zip(places, rows, strict=True):
                axes.annotate(
                    f"{row.mean:.3f}", (row.mean, place), (9, 0), textcoords="offset points", va="center", fontsize=9
                )
    axes.set_yticks(range(len(steps) + len(tried)), [row.words for row in (*steps, *tried)], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(name, loc="left", fontsize=10)
    axes.set_xlabel("validation loss (nats per token), mean and standard error")
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure)
