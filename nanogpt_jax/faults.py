"""What may befall a run from outside: signals, a second run in its folder, a full disk, too little memory.

Each becomes an orderly end with one line that says how to go on; the last whole checkpoint stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import jax
from filelock import FileLock, Timeout

from nanogpt_jax.config import Settings
from nanogpt_jax.errors import RunFailed, UserError
from nanogpt_jax.resume import how_to_go_on

_LOCK = ".lock"


class Stopped(Exception):
    """The run was told to stop by signal `number`, and has saved."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """A list that a first SIGINT or SIGTERM is put into; a second one ends the process at once.

    At once means by the kernel, without Python: whatever is being written is safe, since nothing is written in place.
    SIGPIPE is put into the list when nobody reads the output any more. Of several processes, JAX listens to SIGTERM,
    see `hosts.should_stop`.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    ours = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else (signal.SIGINT,)
    before = {number: signal.signal(number, note) for number in ours}
    try:
        with contextlib.redirect_stdout(_Output(sys.stdout, received)):
            yield received
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


class _Output:
    """Standard output; once its reader has gone it leads nowhere, and SIGPIPE is in `received`."""

    def __init__(self, out: TextIO, received: list[int]) -> None:
        self._out, self._received = out, received

    def write(self, text: str) -> None:
        self._while_read(self._out.write, text)

    def flush(self) -> None:
        self._while_read(self._out.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def _while_read(self, act: Callable, *arguments: str) -> None:
        try:
            act(*arguments)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            self._received.append(signal.SIGPIPE)


@contextlib.contextmanager
def only_run_in(out_dir: Path) -> Iterator[None]:
    """Keep other runs out of `out_dir`, which must exist, until the block or the process ends, however it ends.

    Raises `UserError` if another run is at work there.
    """
    lock = FileLock(out_dir / _LOCK, timeout=0)
    with unwritable(out_dir):
        try:
            lock.acquire()
        except Timeout:  # which is an OSError too
            raise UserError(
                f"another run is writing into out_dir={out_dir}; wait for it, stop it, or name another folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def unwritable(out_dir: Path) -> Iterator[None]:
    """Before the first update: a folder that can't be written is a mistake of the user's."""
    try:
        yield
    except OSError as error:
        raise UserError(f"out_dir={out_dir} cannot be written ({error.strerror or error}); name another") from error


@contextlib.contextmanager
def in_one_line(settings: Settings) -> Iterator[None]:
    """Make `RunFailed` of what the system refuses a run under way: memory, or room for what it writes."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunFailed(
            f"the run in {settings.out_dir} could not go on ({error.strerror or error}); mend that, then "
            + how_to_go_on(Path(settings.out_dir))
        ) from error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = ", ".join(f"{name}={getattr(settings, name)}" for name in _SIZES)
        raise RunFailed(f"out of memory with {sizes}; lower one of them, batch_size first") from error


_SIZES = ("batch_size", "block_size", "n_layer", "n_embd")
