"""What one side of the benchmark is to the worker that measures it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Side(Protocol):
    """What a worker measures."""

    first: str
    """The case that is run once before the worker says that it is ready."""

    def run(self, case: str, times: int) -> None:
        """Do the work of `case` so many times, and wait until it is done."""

    def facts(self) -> dict[str, Any]:
        """What there is to tell of the side, as JSON."""

    def peak_memory(self) -> int | None:
        """The most bytes that were ever taken on the device; None where the process's own memory is what counts."""


class Unavailable(Exception):
    """Something this machine does not offer; the message says what, and why."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether JAX, PyTorch, CUDA's libraries or NumPy say by the error that a device or the host had no more memory."""
    said = str(error)
    return isinstance(error, MemoryError) or any(
        words in said for words in ("RESOURCE_EXHAUSTED", "out of memory", "ALLOC_FAILED")
    )
