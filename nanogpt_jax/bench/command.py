"""`python -m nanogpt_jax.bench`: how fast this is, beside PyTorch and beside what the machine can do.

Both sides run in processes of their own and take turns, round by round, on the same shapes; what other work does to the
machine then hits both, and the ratio of a round is fair. Tables in Markdown go to stdout, progress to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nanogpt_jax.bench.rounds import WorkerDied, kill_workers
from nanogpt_jax.bench.settings import (
    AGAINST,
    AXES,
    BREAKDOWN_ROUNDS,
    DEFAULT_PRESET,
    DEFAULT_ROUNDS,
    DEFAULT_SECONDS,
    DEFAULT_SEEDS,
    GPU_BUDGET,
    GPU_JSON,
    GPU_PRESET,
    TASKS,
)
from nanogpt_jax.cli import entry
from nanogpt_jax.cli.flags import tell
from nanogpt_jax.cli.settings import chosen, settings_parser
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import require_choice
from nanogpt_jax.core.sampling_config import QUANTIZE
from nanogpt_jax.data.commands import pasteable
from nanogpt_jax.data.process import undone_by_signals
from nanogpt_jax.run import reports

_OWN = (
    "against", "reference", "axis", "rounds", "seconds", "max_new_tokens", "quantize", "seeds", "steps", "budget",
    "json", "plot", "preset", "breakdown",
)  # fmt: skip

_DESCRIPTION = f"""\
Measure training and sampling beside PyTorch and beside the machine's limit, in alternating rounds.

  {{bench}} train                             the model of {DEFAULT_PRESET}, and PyTorch
  {{bench}} all --reference=../nanoGPT        both tasks, and the model.py of a nanoGPT checkout
  {{bench}} sample gpt2 --against=hf --rounds=3 --max_new_tokens=64
  {{bench}} train --against=none              without PyTorch
  {{bench}} train --breakdown                 where an update's time goes, by kinds of work
  {{bench}} growth --plot=growth.png          an update's cost over block sizes, widths, batches
  {{bench}} record speedrun_cpu --seeds=3     a preset trained from nothing, as docs/records.md states it
  {{bench}} gpu                               all that is wanted of a GPU, {GPU_PRESET}, in {GPU_BUDGET / 60:g} minutes

Exit status: 0 done, 1 a measuring process died or something of gpu's is not there, 2 wrong use."""


def main(argv: Sequence[str]) -> int:
    """The command: parse, measure, tell."""
    arguments = f"{{{','.join(TASKS)}}} [PRESET | FILE] [--name=value ...]"
    parser = settings_parser("bench", arguments, _DESCRIPTION)
    group = parser.add_argument_group("benchmark")
    group.add_argument("--preset", metavar="NAME", help="the same as PRESET")
    group.add_argument("--against", metavar=f"{{{','.join(AGAINST)}}}", help="the other side ('torch')")
    group.add_argument("--reference", metavar="DIR", help="nanoGPT checkout whose model is 'torch'; else one like it")
    group.add_argument("--axis", metavar=f"{{{','.join(AXES)}}}", help="let growth vary this alone")
    group.add_argument("--rounds", type=int, metavar="INT", help=f"turns of each side ({DEFAULT_ROUNDS})")
    group.add_argument("--seconds", type=float, metavar="FLOAT", help=f"of a turn, or of a size ({DEFAULT_SECONDS})")
    group.add_argument("--max_new_tokens", type=int, metavar="INT", help="of a text (fills the block, at most 256)")
    group.add_argument("--quantize", metavar=f"{{{','.join(QUANTIZE)}}}", help="our weights in sampling ('none')")
    group.add_argument(
        "--seeds", type=int, metavar="INT", help=f"runs of a record, from seed 1337 on ({DEFAULT_SEEDS})"
    )
    group.add_argument(
        "--steps", action="store_true", help="of a record: each step from nanoGPT's recipe to it as well"
    )
    group.add_argument(
        "--breakdown", action="store_true",
        help=f"of train: in the place of speeds, a table of each side's time by kinds of work: products, attention, "
        f"elementwise passes, copies, reductions, the optimizer, waiting ({BREAKDOWN_ROUNDS} rounds; on the CPU)",
    )  # fmt: skip
    group.add_argument("--budget", type=float, metavar="FLOAT", help=f"seconds that gpu may take ({GPU_BUDGET:g})")
    group.add_argument(
        "--json", type=Path, metavar="FILE", help=f"write all numbers and what made them here (of gpu: {GPU_JSON})"
    )
    group.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the rounds, or the growth")
    task, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    given = parser.parse(rest)
    own = {name: given.pop(name, None) for name in _OWN}
    if own["preset"] is not None:
        if "preset_or_file" in given:
            raise UserError(f"preset={own['preset']} is a second one, after {given['preset_or_file']}; name one")
        given["preset_or_file"] = own["preset"]
    base, explicit, notes = chosen(given)
    tell(notes)
    if task is None:
        raise UserError(f"say what to measure: {pasteable('bench')} {{{','.join(TASKS)}}}")
    require_choice("task", task, TASKS)
    if task == "gpu" and own["json"] is None:
        own["json"] = Path(GPU_JSON)
    reports.require_writable(json=own["json"], plot=own["plot"])
    for name, its_task in (("seeds", "record"), ("steps", "record"), ("budget", "gpu"), ("breakdown", "train")):
        if own[name] is not None and task != its_task:
            raise UserError(f"{name} is of {its_task} alone; leave it out")

    # Slow to import, so not before the arguments are known good.
    from nanogpt_jax.bench.tasks import measure

    try:
        with undone_by_signals(kill_workers):
            measure(task, base, explicit, own)
    except WorkerDied as error:
        print(f"error: {error}", file=sys.stderr)
        return entry.FAILED
    return entry.OK
