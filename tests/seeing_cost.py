"""`python -m tests.seeing_cost live` or `lines`: what it costs to see the CPU preset train.

Stretches of 250 iterations take turns: with all that is shown and written (the live view in a pseudo-terminal or plain
lines, the metrics file, TensorBoard), and without. Each begins with an evaluation, as in the preset, and so, in the
live view, with one text. Neighbours are compared, so that the machine's own ups and downs are left out.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pty
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from nanogpt_jax import live, sinks, telemetry, trainer
from nanogpt_jax.accelerator import use_accelerator
from nanogpt_jax.config import preset

PAIRS, STRETCH = 5, 250
is_on, began, texts = True, [], []


def main() -> None:
    use_accelerator("cpu")
    last = 2 * STRETCH * (PAIRS + 1) + 1
    rare = dict(max_iters=last, lr_decay_iters=last, eval_interval=STRETCH, eval_iters=1, tensorboard=True)
    take_turns()
    out = terminal() if sys.argv[1:] == ["live"] else io.StringIO()
    with tempfile.TemporaryDirectory() as folder, out as stdout, contextlib.redirect_stdout(stdout):
        trainer.train(preset("shakespeare_char_cpu", out_dir=folder, **rare))
    lengths = [end - start for start, end in itertools.pairwise(began)]
    pairs = list(zip(lengths[1::2], lengths[2::2], strict=False))  # the very first holds what is compiled
    for without, with_all in pairs:
        print(f"{STRETCH} iterations without: {without:.3f} s; the next {STRETCH} with: {with_all:.3f} s")
    usual = statistics.median(without for without, _ in pairs)
    cost = statistics.median(with_all - without for without, with_all in pairs)
    print(f"medians: {usual:.3f} s without, {1000 * cost:.0f} ms more with: {cost / usual:.2%}")
    if texts:
        print(
            f"the first text: {texts[0]:.2f} s, with what is compiled; each later one: {statistics.median(texts):.3f} s"
        )


def take_turns() -> None:
    """Have what shows and writes do so in every other stretch only."""
    add, evaluated = telemetry.StepLog.add, live.Panel.evaluated

    def add_and_turn(log: telemetry.StepLog, step: int, metrics: Any) -> None:
        global is_on
        add(log, step, metrics)
        if (step + 1) % STRETCH == 0:
            is_on = (step + 1) // STRETCH % 2 == 0
            began.append(time.perf_counter())

    def timed(panel: live.Panel, params: Any) -> None:
        start = time.perf_counter()
        evaluated(panel, params)
        texts.append(time.perf_counter() - start)

    telemetry.StepLog.add = add_and_turn
    live.Panel.evaluated = when_on(timed)
    live.Panel._panel = when_on(live.Panel._panel, "")
    live.Lines.iteration = when_on(live.Lines.iteration)
    sinks.Sinks.write = when_on(sinks.Sinks.write)


def when_on(function: Callable, otherwise: Any = None) -> Callable:
    return lambda *args, **options: function(*args, **options) if is_on else otherwise


@contextlib.contextmanager
def terminal() -> Iterator[Any]:
    """A pseudo-terminal to write to, which somebody reads."""
    master, slave = pty.openpty()

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(master, 65536):
                pass

    threading.Thread(target=read, daemon=True).start()
    with open(slave, "w") as stdout:
        yield stdout


if __name__ == "__main__":
    main()
