"""Running a command: its exit status, and its errors as one line."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from nanogpt_jax.core.errors import RunFailed, UserError
from nanogpt_jax.data.files import REFUSALS, refused
from nanogpt_jax.data.process import readers_may_leave

OK, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def run(command: Callable[[Sequence[str]], int]) -> int:
    """Call `command` with the process's arguments; its exit status, with our own errors as one line on stderr.

    What stdout and stderr cannot show, in whatever encoding they have, is replaced: nothing printed is worth a run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # and not None, where it is closed
            stream.reconfigure(errors="replace")
    with readers_may_leave(_nobody_reads):
        return _status_of(command)


def _status_of(command: Callable[[Sequence[str]], int]) -> int:
    try:
        status = command(sys.argv[1:])
        sys.stdout.flush()
        return status
    except (UserError, RunFailed) as error:
        return _told(error, WRONG_USE if isinstance(error, UserError) else FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has had enough
        return OK
    except OSError as error:
        if error.filename is not None:
            if error.errno not in REFUSALS:
                raise
            return _told(refused(error.filename2 or error.filename, error, "used"), WRONG_USE)
        return _told(RunFailed(f"the output could not be written ({error.strerror}); make room for it"), FAILED)


def _nobody_reads() -> NoReturn:
    raise BrokenPipeError(errno.EPIPE, "nobody reads the output")


def _told(error: Exception, status: int) -> int:
    """`status`, with the error as one line on stderr."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)  # a file's name may hold a line end
    try:
        sys.stdout.flush()
    except OSError:  # it is full; Python would try again at the end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
