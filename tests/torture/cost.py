"""`python -m tests.torture.cost`: what a save every 100 iterations of the CPU preset costs.

One run saves every 200 iterations: of two stretches of 100 one after the other, the first has a save in its middle and
the second has none. The machine's own ups and downs are slower than that, and the median of many pairs leaves them out.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

from nanogpt_jax import trainer
from nanogpt_jax.accelerator import use_accelerator
from nanogpt_jax.config import preset

PAIRS, STRETCH = 15, 100


def main() -> None:
    use_accelerator("cpu")
    with tempfile.TemporaryDirectory() as folder:
        times = seconds_by_step(Path(folder))
    pairs = []
    for save in range(2 * STRETCH, 2 * STRETCH * (PAIRS + 1), 2 * STRETCH):
        start, middle, end = (times[save + offset] for offset in (-STRETCH // 2, STRETCH // 2, 3 * STRETCH // 2))
        pairs.append((middle - start, end - middle))
        print(f"{STRETCH} iterations with a save: {middle - start:.3f} s; the next {STRETCH}: {end - middle:.3f} s")
    usual = statistics.median(without for _, without in pairs)
    cost = statistics.median(with_save - without for with_save, without in pairs)
    print(f"medians: {usual:.3f} s without a save, {1000 * cost:.0f} ms more with one: {cost / usual:.2%}")


def seconds_by_step(folder: Path) -> dict[int, float]:
    """Iteration -> time in training, without evaluations but the first and the last."""
    last = 2 * STRETCH * (PAIRS + 1) + 1
    rare = dict(max_iters=last, lr_decay_iters=last, eval_interval=10**9, eval_iters=1, log_interval=STRETCH // 2)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(preset("shakespeare_char_cpu", out_dir=str(folder / "run"), save_interval=2 * STRETCH, **rare))
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["seconds"] for line in lines if line["split"] == "train"}


if __name__ == "__main__":
    main()
