"""`python -m tests.seeing_cost live|lines [STRETCHES]`: what it costs to see the CPU preset train.

Stretches of 10 iterations, each with one update that is told of, take turns: with all that is shown and written (the
live view in a pseudo-terminal, or plain lines; the metrics file; TensorBoard), and without. Each is held against the
mean of its two neighbours, so that the machine's own ups and downs are left out. The texts, one for every 250
iterations as in the preset, are timed by themselves.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from nanogpt_jax.run import live, loop, sinks, telemetry
from nanogpt_jax.run.accelerator import use_accelerator
from nanogpt_jax.run.presets import preset
from tests.helpers.terminal import terminal

STRETCH, EVERY = 10, 250
is_on, began, texts = True, [], []


def main() -> None:
    use_accelerator("cpu")
    last = STRETCH * int(sys.argv[2] if len(sys.argv) > 2 else 240)
    short = dict(max_iters=last, decay_lr=False, eval_interval=EVERY, eval_iters=1, tensorboard=True)
    take_turns()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as held:
        stdout: Any = io.StringIO()
        if sys.argv[1:2] == ["live"]:
            slave, _ = held.enter_context(terminal())
            stdout = held.enter_context(open(slave, "w", closefd=False))
        held.enter_context(contextlib.redirect_stdout(stdout))
        loop.train(preset("shakespeare_char_cpu", out_dir=folder, **short))
    lengths = [end - start for start, end in itertools.pairwise(began)]
    on = range(1, len(lengths) - 1, 2)
    usual = statistics.median(length for i, length in enumerate(lengths) if i not in on)
    shares = [lengths[i] / statistics.mean((lengths[i - 1], lengths[i + 1])) - 1 for i in on]
    text = statistics.median(texts) if texts else 0.0
    low, cost, high = statistics.quantiles(shares, n=4)
    print(
        f"{len(shares)} stretches of {STRETCH} iterations, {usual:.3f} s each without: with all of it {cost:.2%} more "
        f"(quartiles {low:.2%} .. {high:.2%}); a text takes {text:.3f} s, {text / usual * STRETCH / EVERY:.2%} more, "
        f"the first, with what is compiled, {texts[0] if texts else 0:.2f} s"
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
    live.Panel.evaluated = timed
    live.Panel._panel = when_on(live.Panel._panel, "")
    live.Lines.iteration = when_on(live.Lines.iteration)
    sinks.Sinks.write = when_on(sinks.Sinks.write)


def when_on(function: Callable, otherwise: Any = None) -> Callable:
    return lambda *args, **options: function(*args, **options) if is_on else otherwise


if __name__ == "__main__":
    main()
