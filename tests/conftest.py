"""What the tests share: quick compilation, one prepared data set and one trained run.

Programs are compiled without most optimisations and kept in pytest's cache folder: these tests compile many small ones
and run each but a few times. Commands that the tests start as processes run as a user's would. pytest-xdist runs the
files side by side, in processes that share what is made once here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import filelock
import hypothesis
import jax
import pytest

ROOT = Path(__file__).parent.parent


def pytest_configure(config: pytest.Config) -> None:
    # Where these are ignored, as under nohup or in a script's background, the processes under test would ignore them.
    # A handler is not passed on to them.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
    # A first example compiles, and machines are busy: how long one takes says nothing.
    hypothesis.settings.register_profile("default", deadline=None)
    hypothesis.settings.load_profile("default")
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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


def command(script: str, *arguments: object, cwd: Path = ROOT, timeout: float = HANGS) -> Finished:
    """Run a script of the checkout, as a user would."""
    argv = [sys.executable, str(ROOT / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    return Finished(done.returncode, done.stdout, done.stderr)


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


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with Tiny Shakespeare in it, prepared by the command users run."""

    def prepare(folder: Path) -> None:
        done = command("data/shakespeare_char/prepare.py", f"--data_dir={folder}")
        assert done.status == 0, done.err

    return once(tmp_path_factory, "data", prepare)


class Run(NamedTuple):
    """A training run that has ended."""

    out_dir: Path
    finished: Finished


# The CPU preset, shortened: 4 layers and 128 wide are what the command trains by default.
SHORT = ("--max_iters=300", "--lr_decay_iters=300", "--eval_interval=100", "--eval_iters=5", "--warmup_iters=20")


@pytest.fixture(scope="session")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One trained model, for all the tests that need some."""

    def train(folder: Path) -> None:
        out_dir = folder / "trained"
        finished = command("train.py", "shakespeare_char_cpu", *SHORT, f"--data_dir={data_dir}", f"--out_dir={out_dir}")
        assert finished.status == 0, finished.err
        (folder / "finished.json").write_text(json.dumps(finished))

    folder = once(tmp_path_factory, "runs", train)
    return Run(folder / "trained", Finished(*json.loads((folder / "finished.json").read_text())))
