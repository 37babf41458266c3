"""Workers as the benchmark's parent sees them, and the alternating rounds in which it measures them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from nanogpt_jax.bench.side import Unavailable
from nanogpt_jax.core.errors import UserError

REST_SECONDS = 0.3  # between two turns: PyTorch's idle threads spin for a while after their last product
_KILLED_AFTER = 5.0
_at_work: list[Worker] = []
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)  # of `time.monotonic`


class WorkerDied(Exception):
    """A worker ended without an answer; the message is one line."""


class OutOfMemory(WorkerDied):
    """A worker had less memory than its work takes."""


class OutOfTime(WorkerDied):
    """A worker did not answer in the time there was."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """In the block a worker that does not answer before so many seconds are over raises `OutOfTime`; close it."""
    before = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(before)


class Worker:
    """A process that measures one side, as `worker.py` describes it. To be used as a context manager.

    Attributes:
        name: of the side, for tables and messages.
        facts: what the worker told of the side once it had last done its work.
        first_seconds: from the start of the process until then.
        peak_memory: bytes, as of the last measurement.
    """

    def __init__(self, name: str, spec: Mapping[str, Any], environment: Mapping[str, str | None]) -> None:
        """Start the process and wait until it has done its first unit of work.

        `environment` changes variables of ours; None takes one away. Raises `UserError` for a mistake it finds,
        `Unavailable` for what the machine does not offer, and `WorkerDied` with its kinds.
        """
        self.name = name
        self.peak_memory = 0
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        variables = {**os.environ, **environment, "PYTHONPATH": path}
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from nanogpt_jax.bench.worker import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={name: value for name, value in variables.items() if value is not None},
            start_new_session=True,  # Ctrl-C is the parent's to handle, and what the worker starts ends with it
        )
        assert self._process.stdin is not None and self._process.stdout is not None  # they are pipes
        self._questions, self._answers = self._process.stdin, self._process.stdout
        _at_work.append(self)
        try:
            self.facts = self._asked(spec)["facts"]
        except BaseException:
            self.close()
            raise
        self.first_seconds = time.perf_counter() - start

    def measure(self, case: str, times: int) -> float:
        """Seconds of one unit of work of `case`, on average over `times` of them in a row."""
        answer = self._asked({"case": case, "times": times})
        self.peak_memory, self.facts = answer["peak_memory"], answer["facts"]
        return answer["seconds"] / times

    def close(self) -> None:
        """End the process, and those it has started."""
        self.kill()
        self._process.wait()
        for stream in (self._questions, self._answers, self._errors):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        with contextlib.suppress(ValueError):  # it has been closed before
            _at_work.remove(self)

    @property
    def pid(self) -> int:
        """Of the process, and of the group it is in."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL to the process, and to those it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _asked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self._questions.write(json.dumps(request) + "\n")
            self._questions.flush()
            self._await_answer()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerDied(f"the process of {self.name} {self._end()}")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        if "out_of_memory" in answer:
            raise OutOfMemory(f"the process of {self.name} ran out of memory: {answer['out_of_memory']}")
        return answer

    def _await_answer(self) -> None:
        """Wait until there is something to read, no longer than `at_most` allows."""
        if (deadline := _deadline.get()) < math.inf:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._answers], [], [], left)[0]:
                raise OutOfTime(f"the process of {self.name} had no more time")

    def _end(self) -> str:
        """How the process ended, and the last it said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILLED_AFTER)
        status = self._process.returncode
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        how = f"was killed by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
        return f"{how}: {last[:300]}" if last else how


def kill_workers() -> None:
    """Kill those that are at work, which do not outlive a command that a signal ends."""
    for worker in _at_work:
        worker.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(worker.pid, 0)  # `Popen.wait` takes a lock, which a signal's handler must not wait for


def alternate(workers: Sequence[Worker], case: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of a unit of work in every round, by the worker's name.

    Each worker's turn lasts about `seconds`. One turn of each comes before, to warm it up; from round to round the
    order is turned around.
    """
    times = {worker.name: warmed_up(worker, case, seconds) for worker in workers}
    measured: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for index in range(rounds):
        for worker in workers if index % 2 == 0 else reversed(workers):
            time.sleep(REST_SECONDS)
            measured[worker.name].append(worker.measure(case, times[worker.name]))
    return measured


def warmed_up(worker: Worker, case: str, seconds: float) -> int:
    """How many units of work fill a turn of `seconds`, found by doing them."""
    worker.measure(case, 1)  # compiles, where the case is a new one
    times = max(1, math.ceil(seconds / worker.measure(case, 1)))
    return max(1, math.ceil(seconds / worker.measure(case, times))) if times > 1 else 1


def least_seconds(worker: Worker, case: str, turns: int) -> float:
    """Seconds of a unit of work at best: what the machine can do when nothing else holds it up."""
    worker.measure(case, 1)
    return min(worker.measure(case, 1) for _ in range(turns))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times as fast as theirs ours was in each round."""
    return [other / own for own, other in zip(ours, theirs, strict=True)]
