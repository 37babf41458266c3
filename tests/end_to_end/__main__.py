"""`python -m tests.end_to_end`: GPT-2's 124M shape through all that is done with a model, and the time of each step."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .journey import GPT2, Journey

_T = TypeVar("_T")


def main() -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as base:
        travel(Journey(GPT2, Path(base)))
    print(f"GPT-2's 124M shape went all the way in {time.monotonic() - started:.0f} s")


def travel(journey: Journey) -> None:
    """The journey, with its figures held against each other on the way."""
    timed("prepared", journey.prepare)
    suggested = timed("begun and stopped", journey.begin_and_stop)
    assert GPT2.parameters in journey.words()
    loss = journey.final_loss(timed("resumed", lambda: journey.resume(suggested)))
    text = timed("sampled", lambda: journey.sample("--out_dir=out"))
    again = journey.sample(f"--init_from={journey.folder / 'out'}", cwd=journey.elsewhere)
    assert again == text, "an absolute path gives another text"

    timed("converted to nanoGPT's format", lambda: journey.run("convert", "out", "ckpt.pt"))
    evaluated = timed("evaluated there", lambda: journey.run("train.py", "gpt2", "--init_from=ckpt.pt", "--eval_only"))
    assert journey.final_loss(evaluated) == loss
    timed("converted back", lambda: journey.run("convert", "ckpt.pt", "back", "--tokenizer=data/openwebtext"))
    assert timed("sampled there", lambda: journey.sample("--out_dir=back")) == text
    timed("converted to Hugging Face's", lambda: journey.run("convert", "out", "hf", "--to=hf"))
    evaluated = timed("evaluated there", lambda: journey.run("train.py", "gpt2", "--init_from=hf", "--eval_only"))
    assert abs(journey.final_loss(evaluated) - loss) < 2e-4
    timed("looked into", lambda: journey.run("lens", "--out_dir=out", "--start=ROMEO:", "--max_new_tokens=8"))


def timed(what: str, act: Callable[[], _T]) -> _T:
    """What an act gives, once the time that it took is told."""
    started = time.monotonic()
    result = act()
    print(f"{what}: {time.monotonic() - started:.1f} s", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
