"""What the environment says of a job of several processes: torchrun's variables, and whom a process waits for."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from nanogpt_jax.core.errors import UserError

PATIENCE = 4.0  # seconds of waiting in silence
_SIZES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "WORLD_SIZE")  # by which launchers tell how many there are


def of_torchrun(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """How a process that torchrun started joins its job, as options of `jax.distributed.initialize`; None: it is none.

    torchrun's own store listens at MASTER_PORT, so JAX's coordinator takes the port after it. Each process has the
    device of its LOCAL_RANK. Raises `UserError` if a variable is missing or no number.
    """
    if not {"RANK", "WORLD_SIZE"} <= environ.keys() or environ["WORLD_SIZE"] == "1":
        return None
    numbers = {}
    for name in ("WORLD_SIZE", "RANK", "MASTER_PORT", "LOCAL_RANK"):
        value = environ.get(name, "0" if name == "LOCAL_RANK" else "")
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise _not_torchruns(f"{name}={value}")
        numbers[name] = int(value)
    if not environ.get("MASTER_ADDR"):
        raise _not_torchruns("MASTER_ADDR=")
    if numbers["RANK"] >= numbers["WORLD_SIZE"] or not 0 < numbers["MASTER_PORT"] < 65_535:
        raise _not_torchruns(" ".join(f"{name}={value}" for name, value in numbers.items()))
    return {
        "coordinator_address": f"{environ['MASTER_ADDR']}:{numbers['MASTER_PORT'] + 1}",
        "num_processes": numbers["WORLD_SIZE"],
        "process_id": numbers["RANK"],
        "local_device_ids": [numbers["LOCAL_RANK"]],
    }


def _not_torchruns(what: str) -> UserError:
    return UserError(
        f"{what} in the environment is not what torchrun sets beside RANK and WORLD_SIZE; start all processes by "
        "torchrun, or unset RANK and WORLD_SIZE to train alone"
    )


@contextlib.contextmanager
def told_if_it_waits(line: str) -> Iterator[None]:
    """Say `line` on stderr if the block takes longer than a few seconds."""
    timer = threading.Timer(PATIENCE, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def whom_it_waits_for(options: Mapping[str, Any], seconds: int, environ: Mapping[str, str]) -> str:
    """For whom a process waits that joins with `options`, and for how long at most, as a line."""
    where = options.get("coordinator_address")
    if where is not None:
        me, count = options["process_id"], options["num_processes"]
        return f"process {me} of {count} waits for the others at {where}, for {seconds} s at most (--connect_timeout)"
    size = next((f"{name}={environ[name]}" for name in _SIZES if name in environ), "a cluster's variables")
    return (
        f"{size} in the environment: waiting for the other processes of the job, for {seconds} s at most "
        "(--connect_timeout); start all of them (Slurm: srun), or unset it to train alone"
    )
