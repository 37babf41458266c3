"""Several processes that train one model: joining, agreeing, stopping together, and noticing that one is gone.

A run of one process passes through here without a trace. Between processes, what is not part of the compiled program
goes through the key-value store of JAX's coordinator, which lives in process 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import RunFailed, UserError, in_short
from nanogpt_jax.data.files import system_error
from nanogpt_jax.run.faults import Stopped
from nanogpt_jax.run.job import of_torchrun, told_if_it_waits, whom_it_waits_for

BEAT = 2.0  # seconds between two signs of life
SILENCE = 25.0  # seconds without one after which a process counts as dead
_DONE, _FAILED = "done", "failed: "
_AGREEMENTS, _CALLS = itertools.count(), itertools.count()  # every process goes through the same ones

_handlers: list[object] = []  # of C, which must not be collected

T = TypeVar("T")
FailsAlone = Callable[[Exception], bool]


def join(settings: Settings) -> None:
    """Join the processes of the job: those that the settings name, or those of torchrun, Slurm, a TPU slice, Open MPI.

    Does nothing where there is neither. Must be called before JAX looks for devices. Raises `UserError` if the others
    cannot be reached within `connect_timeout` seconds.
    """
    options: dict[str, Any] = {"initialization_timeout": settings.connect_timeout, "shutdown_timeout_seconds": 20}
    if settings.coordinator is not None:
        named = ("num_processes", "process_id")
        job = {"coordinator_address": settings.coordinator, **{name: getattr(settings, name) for name in named}}
    else:
        job = of_torchrun(os.environ) or {}
    if job:
        options |= {**job, "cluster_detection_method": "deactivate"}
    where = job.get("coordinator_address", "automatic")
    apart = (
        f"the processes of the job did not find each other at coordinator={where} within "
        f"connect_timeout={settings.connect_timeout} s; start all num_processes of them, with the address of process 0"
    )
    try:
        waits = whom_it_waits_for(job, settings.connect_timeout, os.environ)
        with _last_words_if_jax_aborts(lambda: f"error: {apart}", status=2), told_if_it_waits(waits):
            jax.distributed.initialize(**options)
    except Exception as error:  # gRPC's, as JAX passes them on
        if not job and any(words in str(error) for words in _NO_JOB):
            return
        raise UserError(f"{apart} ({in_short(error)})") from error
    if _distributed().num_processes > 1:  # while a run is `watched`, it has more to say
        gone = "another process of the job is gone, and JAX has aborted this one; start all of them again"
        _at_abort(lambda: f"error: {gone}", status=1)


# JAX's words where it knows of no job, and where it is at work already, as in a program that calls ours.
_NO_JOB = ("coordinator_address should be defined", "must be called before")


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


@contextlib.contextmanager
def only_first_prints() -> Iterator[None]:
    """Only process 0 writes to the terminal; errors come from all."""
    with open(os.devnull, "w", encoding="utf-8", errors="replace") as nowhere, contextlib.ExitStack() as stack:
        if not is_first():
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield


def wait_for_all(name: str) -> None:
    """Return when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def first_alone(action: Callable[[], T]) -> T:
    """`action` in process 0, and after that in the others: they find its files where they share a file system."""
    if not is_first():
        wait_for_all("first is done")
        return action()
    try:
        return action()
    finally:
        wait_for_all("first is done")


def together(prepare: Callable[[], T], facts: Callable[[T], Mapping[str, Any]]) -> T:
    """What `prepare` gives, once every process has prepared, with the same `facts`.

    Raises `UserError` in every process if it is raised in one, or if a fact is not the same everywhere.
    """
    if jax.process_count() == 1:
        return prepare()
    try:
        prepared, error = prepare(), None
        said: dict[str, Any] = {"facts": {name: str(value) for name, value in facts(prepared).items()}}
    except UserError as problem:
        error, said = problem, {"error": str(problem)}
    key = f"start/{next(_AGREEMENTS)}"
    _store().key_value_set(f"{key}/{jax.process_index()}", json.dumps(said))
    wait_for_all(key)
    if error is not None:
        raise error
    here = said["facts"]
    for process in range(jax.process_count()):
        there = json.loads(_store().key_value_try_get(f"{key}/{process}"))
        if "error" in there:
            raise UserError(f"process {process} of {jax.process_count()} cannot start: {there['error']}")
        for name in sorted(here.keys() | there["facts"].keys()):
            mine, other = here.get(name, "not there"), there["facts"].get(name, "not there")
            if mine != other:
                raise UserError(
                    f"the processes disagree on {name}: it is {_short(other)} in process {process} and {_short(mine)} "
                    f"in process {jax.process_index()}; start all of them with the same settings and data"
                )
    return prepared


def stop_if_told(received: list[int]) -> None:
    """Raise `Stopped` if this process, or another one of the job, was told to stop: in all of them at the same call.

    To be called before every update and every batch of an evaluation, as often in each process. `received` are the
    signals that came to this one. Of several processes, JAX listens to SIGTERM, and chooses a call that none has made.
    """
    if jax.process_count() == 1:
        if received:
            raise Stopped(received[0])
        return
    if received and received[-1] != signal.SIGTERM:  # Ctrl-C: all stop, by the way that JAX has for it
        received.append(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    if multihost_utils.reached_preemption_sync_point(next(_CALLS)):
        raise Stopped(received[0] if received else signal.SIGTERM)


@contextlib.contextmanager
def watched(resume: str) -> Iterator[FailsAlone]:
    """While the block runs, end this process with status 1 and one line if another one is gone.

    `resume` is the flags that go on with the run. What the block raises is told to the others. What it is given says of
    an error whether it is this process's alone: nothing that waits for the others may be done then.
    """
    if jax.process_count() == 1:
        yield lambda error: False
        return
    watch, verdicts = _Watch(resume), list[bool]()
    watch.start()

    def fails_alone(error: Exception) -> bool:
        if not verdicts:  # the first error is the one that what follows from it is judged by
            verdicts.append(not _all_fail(error))
        return verdicts[0]

    with _last_words_if_jax_aborts(watch.line_of_abort, status=1):
        try:
            yield fails_alone
        except Stopped:
            wait_for_all("stopped")
            watch.tell(_DONE)
            raise
        except Exception as error:
            if fails_alone(error):
                ours = isinstance(error, UserError | RunFailed)
                what = str(error) if ours else f"{type(error).__name__}: {in_short(error)}"
                watch.tell(_FAILED + what)
                if ours:
                    print("error:", " ".join(what.split()), file=sys.stderr, flush=True)
                else:
                    traceback.print_exc()
                time.sleep(3 * BEAT)
                # Without the shutdown, which would wait for the others, and abort.
                os._exit(2 if isinstance(error, UserError) else 1)
            watch.tell(_FAILED + str(error))
            raise
        wait_for_all("end")
        watch.tell(_DONE)


def _all_fail(error: Exception) -> bool:
    """Whether every process is here by an error of its own, as where a loss is not finite; waits for the others.

    Another process that is gone shows here first, as a collective or a save that failed: the wait is long enough for
    the watch, which knows better, if the error is not the operating system's.
    """
    certain = isinstance(error, UserError) or system_error(error) is not None
    patience = 3 * BEAT + (0 if certain else SILENCE)
    deadline = time.monotonic() + patience
    try:
        _store().wait_at_barrier("all fail", round(1000 * patience))
        return True
    except Exception:  # gRPC's, as JAX passes them on: too late, or the coordinator is gone
        time.sleep(max(0.0, deadline - time.monotonic()))
        return False


class _Watch(threading.Thread):
    """Leaves signs of life in the store, and looks for those of the others."""

    def __init__(self, resume: str) -> None:
        super().__init__(daemon=True)
        self._mend = f"go on from its newest checkpoint: start all processes again with {resume}"
        self._count, self._me = 0, jax.process_index()
        self._status: str | None = None
        # The last sign of each of the others, and when it was first seen.
        others = (i for i in range(jax.process_count()) if i != self._me)
        self._seen: dict[int, tuple[str, float]] = {i: ("", time.monotonic()) for i in others}

    def tell(self, status: str) -> None:
        """The last sign, and an end of looking for others'."""
        self._status = status
        with contextlib.suppress(Exception):
            _store().key_value_set(f"alive/{self._me}", status, allow_overwrite=True)

    def run(self) -> None:
        seen = self._seen
        while self._status is None:
            self._count += 1
            try:
                _store().key_value_set(f"alive/{self._me}", str(self._count), allow_overwrite=True)
                signs = _store().key_value_dir_get("alive/")
            except Exception as error:
                if self._status is None:
                    self._end(f"process 0 of {jax.process_count()}, the coordinator, is gone ({in_short(error)})")
                return
            for key, sign in signs:
                process = int(key.rpartition("/")[2])
                if process != self._me and seen[process][0] != sign:
                    seen[process] = (sign, time.monotonic())
            for process, (sign, since) in seen.items():
                if sign == _DONE:
                    continue
                who = f"process {process} of {jax.process_count()}"
                if sign.startswith(_FAILED) and time.monotonic() - since > 2 * BEAT:  # it may happen here too
                    self._end(f"{who} has {sign}")
                if time.monotonic() - since > SILENCE:
                    self._end(f"{who} is gone (no sign of life for {SILENCE:.0f} s)")
            time.sleep(BEAT)

    def _end(self, what: str) -> None:
        print(self._line(what), file=sys.stderr, flush=True)
        os._exit(1)

    def line_of_abort(self) -> str:
        """JAX aborts the others where the coordinator is gone, and the coordinator where another one is."""
        silent = min(self._seen, key=lambda process: self._seen[process][1]) if is_first() else 0
        return self._line(f"process {silent} of {jax.process_count()} is gone (JAX has aborted)")

    def _line(self, what: str) -> str:
        return f"error: {' '.join(what.split())}, so process {self._me} stops; {self._mend}"


@contextlib.contextmanager
def _last_words_if_jax_aborts(line: Callable[[], str], status: int) -> Iterator[None]:
    """`_at_abort` while the block runs."""
    undo = _at_abort(line, status)
    try:
        yield
    finally:
        undo()


def _at_abort(line: Callable[[], str], status: int) -> Callable[[], None]:
    """From now on, if JAX aborts this process, let `line` be its last words and `status` its end; what undoes that.

    JAX does so from a thread of its own where the coordinator is out of reach, without asking Python.
    """

    def last_words(number: int) -> None:
        os.write(2, line().encode() + b"\n")
        os._exit(status)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(last_words)
    _handlers.append(handler)
    c_signal = ctypes.CDLL(None).signal
    c_signal.argtypes, c_signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    usual = c_signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    return lambda: c_signal(signal.SIGABRT, usual)


def _distributed() -> Any:
    """What JAX knows of the job, which has no public name."""
    from jax._src import distributed

    return distributed.global_state


def _store() -> Any:
    """JAX's key-value store between processes."""
    return _distributed().client


def _short(value: str) -> str:
    return value if len(value) <= 40 else value[:37] + "..."
