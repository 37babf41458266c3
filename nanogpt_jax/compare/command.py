"""`python -m nanogpt_jax.compare`: the same numbers as PyTorch, or a table that says where they are not.

One model is built twice, here and in Hugging Face's or nanoGPT's PyTorch, from the same weights, and trained on the
same batches; `parity.py` compares. The table goes to the terminal, all there is to know to a JSON file and a plot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanogpt_jax.cli import entry
from nanogpt_jax.cli.flags import tell
from nanogpt_jax.cli.settings import chosen, settings_parser
from nanogpt_jax.core.limits import MAX_INT, require_at_least, require_at_most
from nanogpt_jax.run.presets import PRESETS

MISSED = 1  # exit status
DEFAULT_PRESET = "shakespeare_char_cpu"

_DESCRIPTION = f"""\
Compare this project's numbers with PyTorch's: logits, loss, gradients, AdamW, schedule, greedy text, loss curves.

  {{compare}}                                the model of {DEFAULT_PRESET}, with Hugging Face's GPT-2
  {{compare}} --position=rope --n_kv_head=2   its twin with rotary positions, with Llama; --qk_norm=True: Qwen3
  {{compare}} --reference=../nanoGPT         with the model.py of a nanoGPT checkout
  {{compare}} gpt2 --block_size=128 --batch_size=1 --gradient_accumulation_steps=1 --steps=2
  {{compare}} --dtype=bfloat16 --all --json=compare.json --plot=compare.png

Exit status: 0 if all tolerances hold, 1 if one is missed, 2 for wrong use."""


def main(argv: Sequence[str]) -> int:
    """The command: parse, build both sides, compare, and tell."""
    parser = settings_parser("compare", "[PRESET | FILE] [--name=value ...]", _DESCRIPTION)
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--reference", metavar="hf|DIR", help="Hugging Face's model of these settings, or a nanoGPT checkout ('hf')"
    )
    group.add_argument("--steps", type=int, metavar="INT", help="updates to compare (200)")
    group.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, versions and settings here")
    group.add_argument("--plot", type=Path, metavar="FILE.png", help="draw both loss curves and their difference")
    parser.add_switch(group, "all", help="a line for every tensor's gradient, not for every kind of tensor")
    given = parser.parse(argv)
    own = {name: given.pop(name, None) for name in ("reference", "steps", "json", "plot", "all")}
    base, explicit, notes = chosen(given)
    tell(notes)
    reference, steps = own["reference"] or "hf", 200 if own["steps"] is None else own["steps"]
    require_at_least("steps", steps, 1)
    require_at_most("steps", steps, MAX_INT, "it is kept in 32 bits")
    base = PRESETS[DEFAULT_PRESET] if base is None else base

    # Slow to import, so not before the arguments are known good.
    from nanogpt_jax.compare.comparison import compared

    files = {name: own[name] for name in ("json", "plot")}
    missed = compared(base, explicit, reference, steps, every_tensor=bool(own["all"]), **files)
    return MISSED if missed else entry.OK
