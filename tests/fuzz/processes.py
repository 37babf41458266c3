"""Running a command as a process in surroundings that were drawn: variables, streams, rights, a signal.

Whatever they are, it ends with a status that is promised, and says on stderr at most one plain line of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.helpers.commands import HANGS, ROOT

# Permissions mean nothing to root, as whom tests run in most containers: so CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
# (1, 2) are dropped by PR_CAPBSET_DROP (24) before a shell takes over.
_LAUNCHER = """
import ctypes, os, sys
if os.geteuid() == 0:
    for right in (1, 2):
        ctypes.CDLL(None).prctl(24, right, 0, 0, 0)
os.execvp("bash", ["bash", "-c", sys.argv[1]])
"""


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a process finds around it."""

    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    redirections: str = ""  # as a shell takes them
    signal: signal.Signals | None = None
    after_lines: int = 1  # of its output, and then
    after_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Ended:
    """How it ended, as a shell sees it."""

    status: int
    out: str
    err: str


def end_of_process(argv: list[str], cwd: Path, around: Surroundings) -> Ended:
    """Run `python ARGV` in `cwd`, and hold its end to what is promised of every end."""
    python, command = sys.executable, f"exec {shlex.join([sys.executable, *argv])} {around.redirections}"
    others = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "LC_", "PYTEST_"))}
    usual = {**others, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # what is compiled runs for a moment
    process = subprocess.Popen(
        [python, "-IS", "-c", _LAUNCHER, command], cwd=cwd,
        env={**usual, "PYTHONPATH": str(ROOT), **around.variables},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    watch = threading.Timer(HANGS, process.kill)
    watch.start()
    try:
        begun = _signalled(process, around) if around.signal is not None else b""
        rest, err = process.communicate()
    finally:
        hangs = not watch.is_alive()
        watch.cancel()
    assert not hangs, f"{argv} in {around} takes more than {HANGS} s"
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    ended = Ended(status, (begun + rest).decode(errors="replace"), err.decode(errors="replace"))
    _require_promises(ended, f"{argv} in {around}", around)
    return ended


def _require_promises(ended: Ended, what: str, around: Surroundings) -> None:
    what = f"{what} ended with {ended.status}: {ended.err}"
    stopped = {128 + signal.SIGPIPE} | ({128 + around.signal} if around.signal is not None else set())
    assert ended.status in {0, 1, 2} | stopped, what
    assert "Traceback" not in ended.err, what
    lines = ended.err.splitlines()
    said = [line for line in lines if line.startswith("error:")]
    assert len(said) <= 1 and len(lines) <= 4, what
    if ended.status in (1, 2) and "2>" not in around.redirections:
        assert said, what


def _signalled(process: subprocess.Popen, around: Surroundings) -> bytes:
    """Send the signal once so many lines have come, and so many seconds later; the lines."""
    lines = b""
    for _ in range(around.after_lines):
        lines += process.stdout.readline()
    time.sleep(around.after_seconds)  # a random moment, and nothing rests on what it is
    process.send_signal(around.signal)
    return lines


@contextlib.contextmanager
def forbidden(path: Path, mode: int) -> Iterator[None]:
    """Give a path other permissions for a while."""
    usual = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(usual)
