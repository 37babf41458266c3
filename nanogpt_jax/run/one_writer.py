"""One writer in a bucket, where no kernel holds a lock and lets go of it when a process dies.

The writer is named by the object ``writer/N`` with the highest N. To become it is to create the next one, which the
store lets one process do. It then writes its own object anew every few seconds, and a last time when it ends. Whoever
finds one that has not ended waits for it to change: if it does not for half a minute, the writer is dead and the next
number free. On the machine of the dead writer the kernel knows, and nobody waits. A writer that was only held up, as a
laptop that sleeps, finds a higher number before its next checkpoint, and ends.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from nanogpt_jax.core.errors import RunFailed, UserError
from nanogpt_jax.data.bucket import Bucket
from nanogpt_jax.data.files import cache_folder, is_file, replace_when_whole

BEAT = 5.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one after which a writer counts as dead
FOLDER = "writer"


class Writer:
    """The place of the one writer, held.

    Attributes:
        bucket: in which it is.
    """

    def __init__(self, bucket: Bucket, number: int) -> None:
        """Hold the place whose object of `number` this process has created, until `end`."""
        self.bucket = bucket
        self._number, self._beats, self._machine = number, 0, _machine()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Raise `RunFailed` if another run has taken the place, or `OSError` if the store does not say."""
        if max(_numbers(self.bucket), default=0) > self._number:
            raise RunFailed(
                f"another run writes in {self.bucket.address} since this one gave no sign of life for {SILENCE:.0f} s; "
                "leave it to that one, or stop it and go on from its newest checkpoint"
            )

    def end(self) -> None:
        """Leave the place to the next; a store that refuses that lets it wait for the silence."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._say(ended=True)

    def _live(self) -> None:
        while not self._ended.wait(BEAT):
            self._beats += 1
            with contextlib.suppress(OSError):  # the next one may get through
                self._say(ended=False)

    def _say(self, *, ended: bool) -> None:
        self.bucket.write(_name(self._number), _said(self._machine, self._beats, ended=ended))


@contextlib.contextmanager
def only_writer_in(bucket: Bucket) -> Iterator[Writer]:
    """Be the one that writes in the bucket while the block runs; the folder of this machine for it is locked already.

    Raises `UserError` if another run is at work there, and `OSError` for what the store refuses.
    """
    before = _number_of_the_dead(bucket)
    number, said = before + 1, _said(_machine(), 0, ended=False)
    if not bucket.create(_name(number), said):
        raise _busy(bucket)
    if bucket.create(_name(number), said):
        raise UserError(
            f"{bucket.address} cannot have one writer: its store puts an object in the place of another though told "
            "not to (If-None-Match); name a bucket of a store that does as told"
        )
    writer = Writer(bucket, number)
    try:
        bucket.delete([_name(earlier) for earlier in _numbers(bucket) if earlier < number])
        yield writer
    finally:
        writer.end()


def _number_of_the_dead(bucket: Bucket) -> int:
    """The number of the last writer, once it is known to have ended; 0 if there was none. `UserError` if it lives."""
    number = max(_numbers(bucket), default=0)
    if number == 0:
        return 0
    first = _words_of(bucket, number)
    last = _read(first)
    if last.get("ended") is True or last.get("machine") == _machine():
        return number
    print(
        f"{bucket.address}: a run on {last.get('host')} has not said that it ended; waiting for a sign of life, for "
        f"{SILENCE:.0f} s at most",
        file=sys.stderr,
        flush=True,
    )
    deadline = time.monotonic() + SILENCE
    while time.monotonic() < deadline:
        time.sleep(min(BEAT, SILENCE) / 4)
        if max(_numbers(bucket), default=0) != number:
            raise _busy(bucket)
        now = _words_of(bucket, number)
        if _read(now).get("ended") is True:
            break
        if now != first:
            raise _busy(bucket)
    return number


def _words_of(bucket: Bucket, number: int) -> bytes:
    """What a writer said last. Raises `UserError` where another one has come after it meanwhile."""
    try:
        return bucket.read(_name(number))
    except FileNotFoundError:
        raise _busy(bucket) from None


def _busy(bucket: Bucket) -> UserError:
    return UserError(
        f"another run is writing into out_dir={bucket.address}; wait for it, stop it, or name another folder"
    )


def _numbers(bucket: Bucket) -> list[int]:
    names = (name.rpartition("/")[2] for name in bucket.objects(FOLDER))
    return [int(name) for name in names if name.isascii() and name.isdigit()]


def _name(number: int) -> str:
    return f"{FOLDER}/{number}"


def _said(machine: str, beats: int, *, ended: bool) -> bytes:
    told = {"machine": machine, "host": socket.gethostname(), "beats": beats, "ended": ended}
    return json.dumps(told).encode()


def _read(said: bytes) -> dict[str, Any]:
    try:
        told = json.loads(said)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _machine() -> str:
    """What names this machine since it was started, and the cache that holds its locks: its kernel knows who lives."""
    kept = cache_folder() / "buckets" / "machine"
    if not is_file(kept):
        with replace_when_whole(kept, "w") as file:
            file.write(secrets.token_hex(8))
    booted = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        booted = file.read().strip()
    return f"{kept.read_text(encoding='utf-8')}-{booted or socket.gethostname()}"
