"""What the tests share: quick compilation, one prepared data set and one trained run.

Programs are compiled without most optimisations and kept in pytest's cache folder: these tests compile many small ones
and run each but a few times. Commands that the tests start as processes run as a user's would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import hypothesis
import jax
import pytest

ROOT = Path(__file__).parent.parent


def pytest_configure(config: pytest.Config) -> None:
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


def command(script: str, *arguments: object, cwd: Path = ROOT, timeout: float = 240) -> Finished:
    """Run a script of the checkout, as a user would."""
    argv = [sys.executable, str(ROOT / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    return Finished(done.returncode, done.stdout, done.stderr)


def metrics_of(out_dir: Path) -> list[dict]:
    """The lines of a run's metrics file."""
    return [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with Tiny Shakespeare in it, prepared by the command users run."""
    folder = tmp_path_factory.mktemp("data")
    done = command("data/shakespeare_char/prepare.py", f"--data_dir={folder}")
    assert done.status == 0, done.err
    return folder


class Run(NamedTuple):
    """A training run that has ended."""

    out_dir: Path
    finished: Finished


# The CPU preset, shortened: 4 layers and 128 wide are what the command trains by default.
SHORT = ("--max_iters=300", "--lr_decay_iters=300", "--eval_interval=100", "--eval_iters=5", "--warmup_iters=20")


@pytest.fixture(scope="session")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One trained model, for all the tests that need some."""
    out_dir = tmp_path_factory.mktemp("runs") / "trained"
    arguments = ("shakespeare_char_cpu", *SHORT, f"--data_dir={data_dir}", f"--out_dir={out_dir}")
    finished = command("train.py", *arguments)
    assert finished.status == 0, finished.err
    return Run(out_dir, finished)
