"""One side of the benchmark, in a process of its own: PyTorch and JAX in one would fight over the threads.

The first line of stdin is a JSON object that says what to build. The worker builds it, does its unit of work once, and
answers with a line of facts; then each line ``{"case", "times"}`` makes it do that work so many times and answer with
the seconds it took and the facts as they are then. What goes wrong in a way that has words is an answer too:
``{"error"}`` for a user's mistake, ``{"unavailable"}`` for what this machine does not offer, ``{"out_of_memory"}`` for
what has no room on it. The worker ends when stdin does, so it never outlives its parent.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nanogpt_jax.bench.side import Side, Unavailable, is_out_of_memory
from nanogpt_jax.core.errors import UserError


def main() -> None:
    """Read what to build from stdin, and answer until it ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not end up among the answers

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")

    try:
        side = _built(json.loads(sys.stdin.readline()))
        side.run(side.first, 1)
    except UserError as error:
        return answer(error=str(error))
    except Unavailable as reason:
        return answer(unavailable=str(reason))
    except Exception as error:
        return _answer_for_want_of_memory(error, answer)
    answer(facts=side.facts())
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        try:
            side.run(request["case"], request["times"])
        except Exception as error:
            return _answer_for_want_of_memory(error, answer)
        seconds = time.perf_counter() - start
        answer(seconds=seconds, peak_memory=side.peak_memory() or _peak_resident_memory(), facts=side.facts())


def _answer_for_want_of_memory(error: Exception, answer: Callable[..., None]) -> None:
    """Answer that memory ran out, if the error says so; else it is raised again."""
    if not is_out_of_memory(error):
        raise error
    answer(out_of_memory=" ".join(str(error).split())[:200])


def _built(spec: Mapping[str, Any]) -> Side:
    if spec["task"] == "parity":
        from nanogpt_jax.bench.parity_side import Parity

        return Parity(spec)
    if spec["program"] == "nanogpt-jax":
        from nanogpt_jax.bench import jax_side

        if spec["task"] == "device":
            return jax_side.Device(spec)
        return jax_side.Training(spec) if spec["task"] == "train" else jax_side.Sampling(spec)
    from nanogpt_jax.bench import torch_side

    return torch_side.Training(spec) if spec["task"] == "train" else torch_side.Sampling(spec)


def _peak_resident_memory() -> int:
    """The most bytes of this process that were ever in memory at once, its libraries included."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: rusage starts with what the parent had when it forked
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
