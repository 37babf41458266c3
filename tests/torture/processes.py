"""The lives of a run: children that are forked from this process, which imports JAX and never starts it.

Forking spares the imports. A child is a user's `train.py`, flags and all, and starts JAX itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import jax
from jax._src import compiler

from nanogpt_jax.cli import entry, train
from tests.helpers.jobs import free_port

LIMIT = 900  # seconds in which something must happen in a run that is at work; where nothing does, it hangs


class EndedByItself(RuntimeError):
    """A process that nobody had killed has ended; the message is the last it said."""


class Job:
    """The processes of one life of a run: one, or several on this machine."""

    def __init__(self, argv: Sequence[str], count: int, log: Path) -> None:
        """Start `train.py` with these arguments in `count` processes, which write to `log`."""
        self._log, self._said_before = log, log.stat().st_size if log.exists() else 0
        self._running: dict[int, int] = {}  # number in the job -> process id
        self.statuses: dict[int, int] = {}  # of those that have ended
        address = f"--coordinator=127.0.0.1:{free_port()}"
        for i in range(count):
            job = [address, f"--num_processes={count}", f"--process_id={i}"] if count > 1 else []
            self._running[i] = forked(train.main, [*argv, *job], log, keep_compiled=True)

    def ended(self) -> bool:
        """Whether any of the processes has ended."""
        for i, child in list(self._running.items()):
            ended, raw = os.waitpid(child, os.WNOHANG)
            if ended:
                self.statuses[i] = os.waitstatus_to_exitcode(raw)
                del self._running[i]
        return bool(self.statuses)

    def wait(self, happened: Callable[[], bool]) -> None:
        """Return once something has happened. Raises `EndedByItself` if a process ends before."""
        for _ in until(LIMIT):
            if self.ended():
                raise EndedByItself(f"a life ended by itself, with status {self.statuses}:\n{self.last_words()}")
            if happened():
                return
        for child in self._running.values():
            os.kill(child, signal.SIGUSR1)  # say where you are
        time.sleep(5)
        raise RuntimeError(f"nothing happened for {LIMIT} s:\n{self.last_words()}")

    def kill(self, victims: Sequence[int]) -> None:
        """SIGKILL to some of the processes, and return when they are gone."""
        for i in victims:
            os.kill(self._running[i], signal.SIGKILL)
        for i in victims:
            _, raw = os.waitpid(self._running.pop(i), 0)
            self.statuses[i] = os.waitstatus_to_exitcode(raw)

    def finish(self, seconds: float, sign_of_life: Callable[[], object] = lambda: None) -> bool:
        """Wait for all processes; whether they ended before there was no new sign of life for so long. None is left."""
        seen, deadline = sign_of_life(), time.monotonic() + seconds
        while self._running and time.monotonic() < deadline:
            self.ended()
            if (sign := sign_of_life()) != seen:
                seen, deadline = sign, time.monotonic() + seconds
            time.sleep(0.02)
        in_time = not self._running
        self.kill(list(self._running))
        return in_time

    def last_words(self) -> str:
        """The end of what it wrote to the log."""
        with open(self._log, errors="replace") as file:
            file.seek(self._said_before)
            return file.read()[-8000:]


def forked(
    command: Callable[[Sequence[str]], int],
    argv: Sequence[str],
    log: Path,
    output: Path | None = None,
    keep_compiled: bool = False,
) -> int:
    """The process of a child that runs a command line, writes to `log`, and to `output` what it prints if given.

    With `keep_compiled` it writes to the compilation cache whichever process of a job it is: JAX lets only the first,
    and the programs of the others, which have keys of their own, would be compiled again in every life.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    with contextlib.suppress(BaseException):
        for standard, path in ((1, output or log), (2, log)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), standard)
        faulthandler.register(signal.SIGUSR1)
        if keep_compiled:
            compiler.distributed = SimpleNamespace(global_state=SimpleNamespace(process_id=0))
        try:
            sys.argv = ["command", *argv]
            status = entry.run(command)
            if jax.distributed.is_initialized():
                jax.distributed.shutdown()  # as at the end of any program of several processes: all end together
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def until(seconds: float) -> Iterator[None]:
    """Look again and again, for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.0005)
