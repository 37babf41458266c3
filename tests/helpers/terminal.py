"""A pseudo-terminal for what shows itself on one, and for what is typed there."""

from __future__ import annotations

import contextlib
import os
import pty
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, bytearray]]:
    """The end to write to, and what has been written."""
    with keyboard() as (_, slave, received):
        yield slave, received


@contextlib.contextmanager
def keyboard() -> Iterator[tuple[int, int, bytearray]]:
    """The end to type into, the end that a program has, and what has been written there, echoes included."""
    master, slave = pty.openpty()
    received = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while part := os.read(master, 65536):
                received.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield master, slave, received
    finally:
        os.close(slave)
        reader.join()
        os.close(master)
