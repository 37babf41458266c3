"""What a process of ours is from its first line on: three streams that are open, and signals that end it at once.

Python makes an exception of SIGINT, raised wherever it stands. While a native module initializes itself that is a
segmentation fault, and in a callback of the garbage collector (JAX has one) it is printed and forgotten, and the
process goes on. So SIGINT is the kernel's here, as SIGTERM and SIGHUP are, until a run has something to save: see
`faults.signals`. To a shell the status is 130, 143 or 129 then, as it is where this program ends itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_undo: list[Callable[[], object]] = []
_of_others: set[int] = set()


def begin() -> None:
    """Make this process one of ours; to be called by a program, and not by a library, before anything slow is imported.

    A standard stream that was closed (`>&-`) leads nowhere: else the next file to be opened would take its number, and
    what native code prints would be written into it. A SIGINT that is ignored, as in a shell's background, stays so.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, mode, errors="replace")  # noqa: SIM115 (takes the lowest number that is free)
            setattr(sys, name, nowhere)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def leave_to_others(number: int) -> None:
    """Leave a signal alone from now on: native code listens to it, which Python cannot see."""
    _of_others.add(number)


@contextlib.contextmanager
def undone_by_signals(undo: Callable[[], object]) -> Iterator[None]:
    """While the block runs, let a signal that ends the process call `undo` before: to remove what is half made.

    Of several, the last is called first. Signals that are ignored, or that someone else listens to, are left alone.
    """
    _undo.append(undo)
    ours = []
    if threading.current_thread() is threading.main_thread():  # which alone may say what a signal does
        ours = [number for number in ENDING if number not in _of_others and signal.getsignal(number) is signal.SIG_DFL]
        for number in ours:
            signal.signal(number, _undo_and_end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
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


class _Output:
    """A stream that does not mind when its reader has gone."""

    def __init__(self, stream: TextIO, left: Callable[[], object]) -> None:
        self._stream, self._left = stream, left

    def write(self, text: str) -> None:
        self._while_read(self._stream.write, text)

    def flush(self) -> None:
        self._while_read(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _while_read(self, act: Callable, *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._left()


def _undo_and_end(number: int, frame: FrameType | None) -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)  # a closing terminal sends two
    for undo in reversed(_undo):
        with contextlib.suppress(Exception):
            undo()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(128 + number)
