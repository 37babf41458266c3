"""Commands of the checkout as a user types them, what became of them, and waiting without a clock."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import filelock
import pytest

ROOT = Path(__file__).parent.parent.parent


class Finished(NamedTuple):
    """A command that has ended."""

    status: int
    out: str
    err: str


HANGS = 900  # seconds after which a process is taken to hang: no test passes or fails by a machine's speed


def awaited(happened: Callable[[], object], *processes: subprocess.Popen) -> None:
    """Return once something has happened; fail where one of the processes ends before, or it never does."""
    deadline = time.monotonic() + HANGS
    while not happened():
        ended = [process.communicate()[1] for process in processes if process.poll() is not None]
        assert not ended and time.monotonic() < deadline, ended
        time.sleep(0.02)


def command(
    script: str, *arguments: object, cwd: Path = ROOT, timeout: float = HANGS, said: str | None = None
) -> Finished:
    """Run a script of the checkout, as a user would, with what is `said` to it through a pipe."""
    argv = [sys.executable, str(ROOT / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False, input=said
    )
    return Finished(done.returncode, done.stdout, done.stderr)


# XLA's older way to write loops, in one piece of machine code: with few optimisations it compiles in half the time.
QUICK_XLA = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def users_environment() -> dict[str, str]:
    """The environment without what conftest.py adds to it: programs are compiled as wherever no test runs."""
    usual = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    flags = usual.pop("XLA_FLAGS", "").replace(QUICK_XLA, "").strip()
    return {**usual, "XLA_FLAGS": flags} if flags else usual


@contextlib.contextmanager
def as_users_compile() -> Iterator[None]:
    """Processes started here have the `users_environment`."""
    with pytest.MonkeyPatch.context() as patch:
        usual = users_environment()
        for name in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"):
            patch.setenv(name, usual[name]) if name in usual else patch.delenv(name, raising=False)
        yield


def metrics_of(out_dir: Path) -> list[dict]:
    """The lines of a run's metrics file."""
    return [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` after `make(folder)`, which one of the processes of this test run calls, and all wait for."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / name, shared / f"{name}.done"
    with filelock.FileLock(shared / f"{name}.lock"):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


class Run(NamedTuple):
    """A training run that has ended."""

    out_dir: Path
    finished: Finished


# The CPU preset, shortened: 4 layers and 128 wide are what the command trains by default.
SHORT = ("--max_iters=300", "--lr_decay_iters=300", "--eval_interval=100", "--eval_iters=5", "--warmup_iters=20")
