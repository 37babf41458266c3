"""`python -m tests.torture.cost`: what a save every 100 iterations costs, in alternating runs of the CPU preset."""

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

ROUNDS, EVERY, FIRST, LAST = 5, 100, 100, 500


def main() -> None:
    use_accelerator("cpu")
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for _ in range(ROUNDS):
            without, with_saves = (seconds(Path(folder), every) for every in (None, EVERY))
            print(f"{LAST - FIRST} iterations: {without:.3f} s; saving: {with_saves:.3f} s", flush=True)
            pairs.append((without, with_saves))
    without, with_saves = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"medians: {without:.3f} s and {with_saves:.3f} s, {with_saves / without - 1:+.2%}")


def seconds(folder: Path, save_interval: int | None) -> float:
    """Time of the iterations from FIRST to LAST, compilation and evaluations left out."""
    rare = dict(max_iters=LAST + 1, lr_decay_iters=LAST + 1, eval_interval=10**9, eval_iters=1, log_interval=EVERY)
    run = preset("shakespeare_char_cpu", out_dir=str(folder / "run"), save_interval=save_interval, **rare)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(run)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    at = {line["step"]: line["seconds"] for line in lines if line["split"] == "train"}
    return at[LAST] - at[FIRST]


if __name__ == "__main__":
    main()
