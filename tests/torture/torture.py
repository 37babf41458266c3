"""A small run that is killed at random instants and resumed until it is done, beside one that is left in peace.

This process imports JAX and never starts it: it forks a child for each life of the run, which spares the import, and
the children start JAX. A child is a user's `train.py`, flags and all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from nanogpt_jax import cli, sampler, trainer  # noqa: F401 (imported before the children are forked)
from nanogpt_jax.checkpoint import FOLDER, newest
from nanogpt_jax.loading import build_model, open_run, stored_settings
from nanogpt_jax.optimizer import make_optimizer
from nanogpt_jax.training import abstract_state
from tests.tiny import TINY, prepare_tiny

STEPS_A_LIFE = 12
OFTEN = ("--save_interval=5", "--always_save_checkpoint=False")
LIMIT = 120  # seconds that a life may take; one that takes longer hangs


@dataclasses.dataclass
class Report:
    """What the run went through, and how its end differs from that of the one left in peace."""

    kills: int = 0
    while_saving: int = 0
    while_starting: int = 0
    lost_runs: int = 0  # a checkpoint was there before the kill, and none that restores after it
    lost_checkpoints: int = 0  # the newest after a kill is older than one seen before
    metrics: int = 0  # lines that are missing, double, out of order, or say something else
    bits: int = 0  # that differ in parameters and optimizer state
    texts: int = 0  # 1 if the samples differ
    progress: int = 0  # 1 if best loss, step or counts differ
    seconds: float = 0.0

    def is_clean(self) -> bool:
        return not any((self.lost_runs, self.lost_checkpoints, self.metrics, self.bits, self.texts, self.progress))

    def table(self) -> str:
        rows = {
            "kills": self.kills,
            "of these while a checkpoint was being written": self.while_saving,
            "of these before the first update of a life": self.while_starting,
            "runs that did not resume": self.lost_runs,
            "finished checkpoints lost": self.lost_checkpoints,
            "lines of metrics.jsonl missing, doubled or different": self.metrics,
            "bits of parameters and optimizer state that differ": self.bits,
            "sampled texts that differ": self.texts,
            "best-so-far and counts that differ": self.progress,
        }
        lines = [f"| {name} | {value} |" for name, value in rows.items()]
        return "\n".join(["| what | count |", "|---|---|", *lines, f"\n{self.seconds:.0f} s"])


def torture(folder: Path, kills: int, seed: int) -> Report:
    """Train to the end with `kills` kills on the way, and without any, in `folder`; what came of it."""
    started = time.monotonic()
    warnings.filterwarnings("ignore", message="os.fork.. was called")  # JAX is imported here, and not at work
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    flags = [*TINY, *OFTEN, f"--data_dir={prepare_tiny(folder)}", f"--max_iters={20 + STEPS_A_LIFE * kills}"]
    peaceful, tortured, log = folder / "peaceful", folder / "tortured", folder / "log"
    _finish(_train([*flags, f"--out_dir={peaceful}"], log), log)

    report, draw = Report(), random.Random(seed)
    seen = -1
    while True:
        fresh = seen < 0
        child = _train(
            [*flags, f"--out_dir={tortured}"] if fresh else ["--init_from=resume", f"--out_dir={tortured}"], log
        )
        if report.kills == kills:
            _finish(child, log)
            break
        status = _kill_somewhere(child, tortured, draw)
        if status is not None:
            report.lost_runs += 1
            raise RuntimeError(f"a life ended by itself, with status {status}:\n{log.read_text()[-3000:]}")
        report.kills += 1
        report.while_saving += any(not path.name.isdigit() for path in _entries(tortured / FOLDER))
        report.while_starting += _steps_logged(tortured) <= max(seen, 0)
        found = newest(tortured)
        now = -1 if found is None else found.run.step
        report.lost_runs += now < 0 <= seen
        report.lost_checkpoints += now < seen
        seen = now
    _compare(peaceful, tortured, report)
    report.seconds = time.monotonic() - started
    return report


def _train(argv: list[str], log: Path) -> int:
    """The process of a child that runs `train.py` with these arguments, and writes to `log`."""
    sys.argv = ["train.py", *argv]
    return _forked(lambda: cli.run(cli.train), log)


def _forked(command: Callable[[], int], log: Path, output: Path | None = None) -> int:
    """The process of a child that writes to `log`, and to `output` what it prints if that is given."""
    child = os.fork()
    if child:
        return child
    status = 1
    with contextlib.suppress(BaseException):
        for standard, path in ((1, output or log), (2, log)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), standard)
        try:
            status = command()
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _finish(child: int, log: Path) -> None:
    for _ in _until(LIMIT):
        if (status := _status(child)) is not None:
            break
    else:
        os.kill(child, signal.SIGKILL)
        status = "none at all"
    if status != 0:
        raise RuntimeError(f"a run that was left in peace ended with status {status}:\n{log.read_text()[-3000:]}")


def _kill_somewhere(child: int, out_dir: Path, draw: random.Random) -> int | None:
    """Kill a child at a random instant, most often while it saves; its status if it ended before that."""
    kind = draw.random()
    if kind < 0.15:  # anywhere from its first instruction on, starting and resuming included
        deadline = time.monotonic() + draw.uniform(0, 2.0)
        status = _wait(child, lambda: time.monotonic() > deadline)
    else:
        begun, steps = _steps_logged(out_dir), draw.randint(1, 2 * STEPS_A_LIFE)
        status = _wait(child, lambda: _steps_logged(out_dir) != begun)  # it drops, and then grows
        low = _steps_logged(out_dir)
        if status is None:
            status = _wait(child, lambda: _steps_logged(out_dir) >= low + steps)
        if status is None and kind < 0.75:  # once a save has begun, somewhere in it or just after
            status = _wait(child, lambda: any(not path.name.isdigit() for path in _entries(out_dir / FOLDER)))
            time.sleep(draw.uniform(0, 0.03))
    if status is None:
        os.kill(child, signal.SIGKILL)
        _, raw = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(raw)
        status = None if ended == -signal.SIGKILL else ended
    return status


def _wait(child: int, happened: Callable[[], bool]) -> int | None:
    """Return None once something has happened, or else the status of the child if it ends before."""
    for _ in _until(LIMIT):
        if (status := _status(child)) is not None:
            return status
        if happened():
            return None
    raise RuntimeError(f"a life took longer than {LIMIT} s")


def _until(seconds: float) -> Iterator[None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.0005)


def _status(child: int) -> int | None:
    ended, raw = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(raw) if ended else None


def _entries(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []


def _steps_logged(out_dir: Path) -> int:
    """The step in the last line of the metrics, which is all that a look every half millisecond has time for."""
    nothing_yet = contextlib.suppress(FileNotFoundError, ValueError, IndexError, KeyError)
    with nothing_yet, open(out_dir / "metrics.jsonl", "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 400))
        return json.loads(file.read().splitlines()[-1])["step"]
    return 0


def _compare(peaceful: Path, tortured: Path, report: Report) -> None:
    runs = (peaceful, tortured)
    ours, theirs = (_told(run) for run in runs)
    report.metrics = abs(len(ours) - len(theirs)) + sum(a != b for a, b in zip(ours, theirs, strict=False))
    report.texts = int(len({_sample(run) for run in runs}) != 1)
    first, second = (open_run(run).run for run in runs)
    report.progress = int(
        dataclasses.replace(first, settings={}, seconds=0.0) != dataclasses.replace(second, settings={}, seconds=0.0)
    )
    report.bits = sum(_differing_bits(a, b) for a, b in zip(*map(_leaves, runs), strict=True))  # starts JAX here


def _told(run: Path) -> list[dict]:
    """The lines of a metrics file, without what the clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line.keys() - {"seconds", "tokens_per_second", "mfu"}} for line in lines]


def _sample(run: Path) -> str:
    log, text = run / "sample.log", run / "sample.txt"
    sys.argv = ["sample.py", f"--out_dir={run}", "--num_samples=2", "--max_new_tokens=100", "--start=to be"]
    _finish(_forked(lambda: cli.run(cli.sample), log, text), log)
    return text.read_text()


def _leaves(run: Path) -> list[np.ndarray]:
    checkpoint = open_run(run)
    settings = stored_settings(checkpoint.run)
    model, tx = build_model(settings, checkpoint.run.vocab_size, "cpu"), make_optimizer(settings)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoint.state(abstract_state(model, tx)))]


def _differing_bits(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.bitwise_count(one.reshape(-1).view(np.uint8) ^ other.reshape(-1).view(np.uint8)).sum())
