"""What the tests share: quick compilation, one prepared data set and one trained run.

Programs are compiled without most optimisations and kept in pytest's cache folder: these tests compile many small ones
and run each but a few times. So do commands that they start as processes, but for those that stand for a user's whole
way (`as_users_compile`). pytest-xdist runs the files side by side, in processes that share what is made once here.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import jax
import pytest

from tests.helpers.commands import QUICK_XLA, SHORT, Finished, Run, as_users_compile, command, once


def pytest_configure(config: pytest.Config) -> None:
    # Where these are ignored, as under nohup or in a script's background, the processes under test would ignore them.
    # A handler is not passed on to them.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
    # A first example compiles, and machines are busy: how long one takes says nothing.
    hypothesis.settings.register_profile("default", deadline=None)
    hypothesis.settings.load_profile("default")
    for name, value in {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(config.cache.mkdir("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for the processes that tests start
    if "PYTEST_XDIST_WORKER" not in os.environ and _knows(QUICK_XLA):  # else the controller has set it already
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_XLA}".strip()


def _knows(flags: str) -> bool:
    """Whether this XLA takes the flags: a process that it does not know one in dies, or complains."""
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    argv = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    return done.returncode == 0 and "xla_cpu" not in done.stderr


# The files that take longest, which begin first: else one of the processes would be left alone with them at the end.
LONGEST = (
    "test_documents.py", "test_hosts.py", "test_journey.py", "test_end_to_end.py", "test_tour.py",
    "test_on_chips.py", "test_surroundings.py", "test_whose_tokens.py", "test_torture.py", "test_files.py",
    "test_both_ways.py", "test_softmax_attention.py", "test_bench.py", "test_worked_task.py", "test_chat.py",
    "test_switches.py", "test_compare.py", "test_sharding.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    # What is imported stays: to look through millions of its objects again and again takes time and finds nothing.
    gc.freeze()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with Tiny Shakespeare in it, prepared by the command users run."""

    def prepare(folder: Path) -> None:
        done = command("data/shakespeare_char/prepare.py", f"--data_dir={folder}")
        assert done.status == 0, done.err

    return once(tmp_path_factory, "data", prepare)


@pytest.fixture(scope="session")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One trained model, for all the tests that need some."""

    def train(folder: Path) -> None:
        out_dir = folder / "trained"
        with as_users_compile():
            argv = ("shakespeare_char_cpu", *SHORT, f"--data_dir={data_dir}", f"--out_dir={out_dir}")
            finished = command("train.py", *argv)
        assert finished.status == 0, finished.err
        (folder / "finished.json").write_text(json.dumps(finished))

    folder = once(tmp_path_factory, "runs", train)
    return Run(folder / "trained", Finished(*json.loads((folder / "finished.json").read_text())))
