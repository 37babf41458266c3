"""`python -m nanogpt_jax.sweep [PRESET] --seed=0..7`: many runs in one program, and what their losses come to."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nanogpt_jax.cli import entry
from nanogpt_jax.cli.flags import base_type, read_value, tell
from nanogpt_jax.cli.settings import chosen, settings_parser
from nanogpt_jax.core.config import ACCELERATORS, PLACEMENT_SETTINGS, Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import require_at_least, require_choice
from nanogpt_jax.data.addresses import require_on_disk
from nanogpt_jax.data.commands import pasteable
from nanogpt_jax.run.presets import PRESETS, name_of, usual
from nanogpt_jax.run.sweep_plan import MOST_RUNS, PLAN_FILE, VARYING, Plan, planned, read_plan

OUT_DIR = "out-sweep"
_OF_ONE_RUN = ("eval_only", "which", "profile", "wandb", "lora_rank", *PLACEMENT_SETTINGS)

_DESCRIPTION = f"""\
Train many runs at once, as one program where they differ in numbers alone, and tell what their losses come to.

  {{sweep}} gpt_dev --seed=0..7                           eight seeds
  {{sweep}} --learning_rate=5e-4,1e-3,2e-3 --seed=0..2    the product of all values: nine runs
  {{sweep}} --n_layer=2,4 --seed=0..2                     values of shapes: a program for each
  {{sweep}} --init_from=resume                            go on with the sweep in {OUT_DIR}, or in out_dir

Each run has a folder like any other, as {OUT_DIR}/learning_rate=0.001,seed=0, for sample, lens, plot, convert and
train --init_from. {PLAN_FILE} and sweep.png hold the result.

presets: {", ".join(PRESETS)}"""


class Several(tuple[Any, ...]):
    """The values that one setting takes in a sweep."""


def main(argv: Sequence[str]) -> int:
    """The command: parse, choose the device, train, tell."""
    parser = settings_parser("sweep", "[PRESET | FILE] [--name=VALUE,VALUE ...]", _DESCRIPTION, values)
    group = parser.add_argument_group("sweep")
    parser.add_switch(
        group, "same_data", type=partial(read_value, "same_data", bool),
        help="all runs learn from the batches of the first one's seed, where each has its own otherwise (False)",
    )  # fmt: skip
    group.add_argument(
        "--at_once", metavar="INT", type=partial(read_value, "at_once", int),
        help="runs that lie in memory together (as many as fit)",
    )  # fmt: skip
    given = parser.parse(argv)
    same_data, at_once = given.pop("same_data", False), given.pop("at_once", None)
    base, explicit, notes = chosen(given)
    if at_once is not None:
        require_at_least("at_once", at_once, 1)
    alone = next((name for name in _OF_ONE_RUN if name in explicit), None)
    if alone is not None:
        raise UserError(f"{alone} is for a single run, and not for a sweep; leave it out")
    accelerator = explicit.get("accelerator", "auto")
    require_choice("accelerator", accelerator, ACCELERATORS)

    from nanogpt_jax.run.accelerator import use_accelerator
    from nanogpt_jax.run.faults import Stopped
    from nanogpt_jax.run.many import a_device_for_each_core
    from nanogpt_jax.run.sweep import run_sweep

    a_device_for_each_core()
    platform = use_accelerator(accelerator)
    tell(notes)
    out_dir = require_on_disk("out_dir", str(explicit.get("out_dir", OUT_DIR)))
    resuming = explicit.get("init_from") == "resume"
    if resuming:
        other = [name for name in explicit if name not in ("init_from", "out_dir", "accelerator")]
        other += ["same_data"] * same_data + ["at_once"] * (at_once is not None)
        if other or base is not None:
            what = other[0] if other else name_of(base)
            raise UserError(f"{what} is part of the sweep in {out_dir}, which goes on as it was begun; leave it out")
        plan = read_plan(Path(out_dir))
    else:
        if base is None:
            preset = usual(platform)
            print(f"no preset named: taking {preset}, which suits a {platform.upper()}")
            base = PRESETS[preset]
        plan = _planned(dict(base), name_of(base), {**explicit, "out_dir": out_dir}, same_data)
    try:
        print(run_sweep(plan, resuming=resuming, at_once=at_once), flush=True)
    except Stopped as stopped:
        again = pasteable("sweep", init_from="resume", out_dir=out_dir)
        with contextlib.suppress(BrokenPipeError):
            print(f"stopped and saved; go on with: {again}", flush=True)
        return 128 + stopped.number
    return entry.OK if any(run.state == "done" for run in plan.runs) else entry.FAILED


def _planned(base: dict[str, Any], preset: str | None, explicit: dict[str, Any], same_data: bool) -> Plan:
    varied = {name: value for name, value in explicit.items() if isinstance(value, Several)}
    if not varied:
        example = pasteable("sweep", *([preset] if preset else []), "--seed=0..7")
        raise UserError(f"nothing varies; give a setting several values, as in: {example}")
    first = {name: several[0] for name, several in varied.items()}
    settings = vars(Settings(**{**base, **explicit, **first}))
    return planned(settings, varied, explicit, same_data, preset)


def values(name: str, hint: Any, text: str) -> Any:
    """What a flag of a sweep gives: one value, or `Several` by commas, and for whole numbers by ``0..7``.

    Raises `UserError` for a setting that can't vary, an empty range, and a value that is there twice.
    """
    if name not in VARYING:
        if base_type(hint) in (int, float, bool) and ("," in text or ".." in text):
            raise UserError(f"{name}={text} names several values, and a sweep can't vary {name}; give one")
        return read_value(name, hint, text)
    each: list[Any] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        if dots and base_type(hint) is int:
            start, stop = read_value(name, int, first), read_value(name, int, last)
            if start > stop:
                raise UserError(f"{name}={part} is a range of nothing; give the smaller number first")
            if stop - start >= MOST_RUNS:
                number = f"{stop - start + 1:,}"
                raise UserError(
                    f"{name}={part} are {number} values, and a sweep has {MOST_RUNS:,} runs at most; name fewer"
                )
            each += range(start, stop + 1)
        else:
            each.append(read_value(name, hint, part))
    if len(set(each)) < len(each):
        twice = next(value for i, value in enumerate(each) if value in each[:i])
        raise UserError(f"{name}={text} names {twice} twice; name each value once")
    return each[0] if len(each) == 1 else Several(each)


if __name__ == "__main__":
    raise SystemExit(entry.run(main))
