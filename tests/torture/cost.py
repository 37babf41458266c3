"""`python -m tests.torture.cost`: what a save every 100 iterations of the CPU preset costs.

One run saves every 200 iterations: of two stretches of 100 one after the other, the first has a save in its middle and
the second has none. The machine's own ups and downs are slower than that, and the median of many pairs leaves them out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

from nanogpt_jax.run import loop
from nanogpt_jax.run.accelerator import use_accelerator
from nanogpt_jax.run.presets import preset


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.cost", description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="of stretches, one with a save and one without (15)")
    parser.add_argument("--stretch", type=int, default=100, help="iterations of one, an even number (100)")
    arguments = parser.parse_args()
    stretch = arguments.stretch
    use_accelerator("cpu")
    with tempfile.TemporaryDirectory() as folder:
        times = seconds_by_step(Path(folder), arguments.pairs, stretch)
    pairs = []
    for save in range(2 * stretch, 2 * stretch * (arguments.pairs + 1), 2 * stretch):
        start, middle, end = (times[save + offset] for offset in (-stretch // 2, stretch // 2, 3 * stretch // 2))
        pairs.append((middle - start, end - middle))
        print(f"{stretch} iterations with a save: {middle - start:.3f} s; the next {stretch}: {end - middle:.3f} s")
    usual = statistics.median(without for _, without in pairs)
    cost = statistics.median(with_save - without for with_save, without in pairs)
    print(f"medians: {usual:.3f} s without a save, {1000 * cost:.0f} ms more with one: {cost / usual:.2%}")


def seconds_by_step(folder: Path, pairs: int, stretch: int) -> dict[int, float]:
    """Iteration -> time in training, without evaluations but the first and the last."""
    last = 2 * stretch * (pairs + 1) + 1
    rare = dict(max_iters=last, decay_lr=False, eval_interval=10**9, eval_iters=1, log_interval=stretch // 2)
    with contextlib.redirect_stdout(io.StringIO()):
        loop.train(preset("shakespeare_char_cpu", out_dir=str(folder / "run"), save_interval=2 * stretch, **rare))
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["seconds"] for line in lines if line["split"] == "train"}


if __name__ == "__main__":
    main()
