"""Jobs of several processes on this machine, and processes with several devices."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence

from tests.helpers.commands import HANGS, ROOT, Finished


def virtual_devices(count: int) -> dict[str, str]:
    """The environment of a process that is to have so many CPU devices, and quick compilation.

    NPROC is the size of XLA's thread pool: with fewer threads than devices their collectives wait for each other.
    """
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "NPROC": "8",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def finish(processes: Sequence[subprocess.Popen]) -> list[Finished]:
    """What became of them; none outlives the test."""
    try:
        outputs = [process.communicate(timeout=HANGS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Finished(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
