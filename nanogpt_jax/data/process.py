"""What a process of ours is from its first line on: three streams that are open, and signals that end it at once.

Python makes an exception of SIGINT, raised wherever it stands. While a native module initializes itself that is a
segmentation fault, and in a callback of the garbage collector (JAX has one) it is printed and forgotten, and the
process goes on. So until a run has something to save (`faults.signals`), SIGINT, SIGTERM and SIGHUP end the process
with a shell's 130, 143 or 129, after what is half written has been removed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol, runtime_checkable

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_undo: list[Callable[[], object]] = []
_noted: list[int] = []


def begin() -> None:
    """Make this process one of ours; to be called by a program, and not by a library, before anything slow is imported.

    A standard stream that was closed (`>&-`) leads nowhere: else the next file to be opened would take its number, and
    what native code prints would be written into it. A signal that is ignored, as in a shell's background, stays so.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, mode, errors="replace")  # noqa: SIM115 (takes the lowest number that is free)
            setattr(sys, name, nowhere)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)
    threading.Thread(target=_end_while_busy, args=(told,), daemon=True).start()


def noted(number: int) -> None:
    """Say that a handler of one's own has taken a signal: the process shall not end for it, even if it would by now."""
    _noted.append(number)


@contextlib.contextmanager
def undone_by_signals(undo: Callable[[], object]) -> Iterator[None]:
    """While the block runs, let a signal that ends the process call `undo` before: to remove what is half made.

    Of several, the last is called first. In a program that is not ours signals mean what they meant there.
    """
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


@contextlib.contextmanager
def readers_may_leave(left: Callable[[], object]) -> Iterator[None]:
    """While the block runs, let `left` be called once nobody reads standard output any more, which leads nowhere then.

    That is so where a pipe's reader has ended, and where a terminal is gone. Standard error is given up without a word:
    what is said there is never worth a run. Other errors, as of a full disk, stay what they are.
    """
    out, err = _Output(sys.stdout, left), _Output(sys.stderr, lambda: None)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


@runtime_checkable
class _Stream(Protocol):
    """What is asked of a standard stream, which in a notebook or under a test is none of the system's files."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def fileno(self) -> int: ...


class _Output:
    """A stream that does not mind when its reader has gone."""

    def __init__(self, stream: _Stream, left: Callable[[], object]) -> None:
        self._stream, self._left = stream, left

    def write(self, text: str) -> int:
        self._while_read(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._while_read(self._stream.flush)

    def fileno(self) -> int:
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _while_read(self, act: Callable[..., object], *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._left()


def _end(number: int, frame: FrameType | None) -> None:
    """End the process; Python calls this between two of its own steps, in the main thread."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)  # a closing terminal sends two
    for undo in reversed(_undo):
        with contextlib.suppress(Exception):
            undo()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(128 + number)


def _end_while_busy(told: int) -> None:
    """Do the same while the main thread is in native code, compiling for minutes, if nothing is to be undone."""
    for seen in itertools.count(1):
        [number] = os.read(told, 1)
        if signal.getsignal(number) is _end and not _undo and seen > len(_noted):
            os._exit(128 + number)
