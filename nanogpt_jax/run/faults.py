"""What may befall a run from outside: signals, a second run in its folder, a full disk, too little memory.

Each becomes an orderly end with one line that says how to go on; the last whole checkpoint stays.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import jax
from filelock import FileLock, Timeout

from nanogpt_jax.core.errors import RunFailed, UserError
from nanogpt_jax.data.addresses import address_of
from nanogpt_jax.data.files import refusals
from nanogpt_jax.data.process import ENDING, noted
from nanogpt_jax.weights.checkpoint import how_to_go_on

_LOCK = ".lock"


SIZES = ("batch_size", "block_size", "n_layer", "n_embd")
"""What the memory of a training run goes by."""


class Stopped(Exception):
    """The run was told to stop by signal `number`; what leaves `loop.train` has saved."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextlib.contextmanager
def signals(received: list[int], numbers: Sequence[int] = ENDING) -> Iterator[None]:
    """Put a first SIGINT, SIGTERM or SIGHUP, or of `numbers`, into `received`; a second one ends the process at once.

    At once means as before the block: whatever is being written is safe, since nothing is written in place. A second
    SIGHUP does not: a closing terminal and its shell send one each. Signals that are ignored stay so (`nohup`, a
    shell's background). Of several processes, JAX listens to SIGTERM, see `hosts.stop_if_told`.
    """

    def note(number: int, frame: FrameType | None) -> None:
        noted(number)
        received.append(number)
        for each, usual in before.items():
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else usual)

    before = {
        number: signal.signal(number, note)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN and (number != signal.SIGTERM or jax.process_count() == 1)
    }
    try:
        yield
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


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
                f"another run is writing into out_dir={address_of(out_dir)}; wait for it, stop it, or name another "
                "folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def unwritable(out_dir: Path | str) -> Iterator[None]:
    """Before the first update: a folder, or an address, that can't be written is a mistake of the user's."""
    with refusals(f"out_dir={address_of(out_dir)}", "written"):
        yield


@contextlib.contextmanager
def refusals_in_one_line(out_dir: Path) -> Iterator[None]:
    """Make `RunFailed` of what the system refuses the run in `out_dir` under way, such as room for what it writes."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunFailed(
            f"the run in {address_of(out_dir)} could not go on ({error.strerror or error}); mend that, then "
            + how_to_go_on(out_dir)
        ) from error


@contextlib.contextmanager
def memory_in_one_line(settings: object, sizes: Sequence[str] = SIZES) -> Iterator[None]:
    """Make `RunFailed` of too little memory, which names the settings that ask for most, the first one first."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        asked = ", ".join(f"{name}={getattr(settings, name)}" for name in sizes)
        raise RunFailed(f"out of memory with {asked}; lower one of them, {sizes[0]} first") from error
