"""`python -m nanogpt_jax.bench`: how fast this is, beside PyTorch and beside what the machine can do.

Both sides run in processes of their own and take turns, round by round, on the same shapes; what other work does to the
machine then hits both, and the ratio of a round is fair. Tables in Markdown go to stdout, progress to stderr.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt_jax.bench.measure import Plan, measure_sampling, measure_training
from nanogpt_jax.bench.record import measure_record, record_tables, write_record_plot
from nanogpt_jax.bench.records import RECORDS
from nanogpt_jax.bench.report import sampling_tables, training_tables, write_plot
from nanogpt_jax.bench.rounds import WorkerDied, kill_workers
from nanogpt_jax.cli import entry
from nanogpt_jax.cli.flags import tell
from nanogpt_jax.cli.settings import chosen, settings_parser
from nanogpt_jax.compare.command import Counterpart, hf_counterpart, open_data
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.decoding_weights import QUANTIZE, Quantize
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import MAX_INT, require_at_least, require_at_most, require_choice
from nanogpt_jax.data.commands import pasteable
from nanogpt_jax.data.files import is_file
from nanogpt_jax.data.process import undone_by_signals
from nanogpt_jax.run import reports
from nanogpt_jax.run.presets import PRESETS, name_of
from nanogpt_jax.weights.hf_format import hf_config_of
from nanogpt_jax.weights.nanogpt_format import nanogpt_model_args_of

FAILED = 1  # exit status
TASKS = ("train", "sample", "all", "growth", "record")
AXES = ("block_size", "n_embd", "batch_size")  # of growth
AGAINST = ("torch", "hf", "none")
DEFAULT_PRESET = "shakespeare_char_cpu"
DEFAULT_ROUNDS, DEFAULT_SECONDS, DEFAULT_SEEDS = 11, 0.7, 5
_LONGEST_TEXT = 256
_OWN = (
    "against", "reference", "axis", "rounds", "seconds", "max_new_tokens", "quantize", "seeds", "steps", "json", "plot",
    "preset",
)  # fmt: skip

_DESCRIPTION = f"""\
Measure training and sampling beside PyTorch and beside the machine's limit, in alternating rounds.

  {{bench}} train                             the model of {DEFAULT_PRESET}, and PyTorch
  {{bench}} all --reference=../nanoGPT        both tasks, and the model.py of a nanoGPT checkout
  {{bench}} sample gpt2 --against=hf --rounds=3 --max_new_tokens=64
  {{bench}} train --against=none              without PyTorch
  {{bench}} growth --plot=growth.png          an update's cost over block sizes, widths, batches
  {{bench}} record speedrun_cpu --seeds=3     a preset trained from nothing, as docs/records.md states it

Exit status: 0 done, 1 a measuring process died, 2 wrong use."""


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
    group.add_argument("--json", type=Path, metavar="FILE", help="write all numbers and what made them here")
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
    reports.require_writable(json=own["json"], plot=own["plot"])
    for name in ("seeds", "steps"):
        if own[name] is not None and task != "record":
            raise UserError(f"{name} is of record alone; leave it out")
    measure = {"growth": _growth, "record": _record}.get(task, _rounds)
    try:
        with undone_by_signals(kill_workers):
            measure(task, base, explicit, own)
    except WorkerDied as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return entry.OK


def _rounds(task: str, base: Mapping[str, Any] | None, explicit: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """`train`, `sample` and `all`: both sides in turns."""
    plan, source, changed = plan_of(base, explicit, own)
    settings = plan.settings
    title = f"{reports.model_in_words(settings)}, batch {reports.batch_in_words(settings)}"
    print(f"model      {title}" + (f"; {changed}" if changed else ""))
    print(f"batches    from {source}", flush=True)
    results = []
    for name, measure, table in (
        ("train", measure_training, training_tables),
        ("sample", measure_sampling, sampling_tables),
    ):
        if task in (name, "all"):
            results.append(measure(plan))
            print(f"\n{table(results[-1])}", flush=True)
    facts = results[0].facts
    threads = "" if results[0].threads is None else f", {results[0].threads} threads in PyTorch"
    where = f"{facts['devices']} x {facts['device']} ({_processor()})"
    print(f"\n{where}, {facts['dtype']}{threads}, {plan.rounds} rounds of {plan.seconds:g} s a side")
    document = _document(settings, facts) | {"batches": source, "plan": dataclasses.asdict(plan)}
    document["results"] = [dataclasses.asdict(result) for result in results]
    reports.write_where_asked("json", own["json"], lambda path: reports.write_json(path, document))
    title = f"{title}, {facts['dtype']}"
    reports.write_where_asked("plot", own["plot"], lambda path: write_plot(path, results, title))


def _growth(task: str, base: Mapping[str, Any] | None, explicit: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """`growth`: our side alone."""
    for name in ("against", "reference", "rounds", "max_new_tokens"):
        if own[name] is not None:
            raise UserError(f"{name}={own[name]} has no meaning for growth, which has one side; leave it out")
    from nanogpt_jax.bench import growth

    settings = Settings(**{**(growth.BASE if base is None else {"vocab_size": 65, **base}), **explicit})
    _require_gpt(settings)
    axis = own["axis"]
    if axis is not None:
        require_choice("axis", axis, AXES)
    axes = growth.AXES if axis is None else {axis: growth.AXES[axis]}
    growths = growth.measure_growth(settings, axes, _seconds(own))
    title = f"{reports.model_in_words(settings)}, batch {reports.batch_in_words(settings)}, but for what varies"
    print(f"base       {title}\n\n{growth.growth_tables(growths)}")
    facts = growth.facts(settings)
    print(f"\n{facts['devices']} x {facts['device']} ({_processor()})")
    document = _document(settings, facts) | {"growth": [dataclasses.asdict(growth) for growth in growths]}
    reports.write_where_asked("json", own["json"], lambda path: reports.write_json(path, document))
    plot = growth.write_growth_plot
    reports.write_where_asked("plot", own["plot"], lambda path: plot(path, growths, title))


def _record(task: str, base: Mapping[str, Any] | None, explicit: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """`record`: whole runs of a preset under several seeds, and nanoGPT's where there is a checkout."""
    for flag in ("against", "axis", "rounds", "seconds", "max_new_tokens", "quantize"):
        if own[flag] is not None:
            raise UserError(f"{flag}={own[flag]} has no meaning for record, which times whole runs; leave it out")
    name = name_of(base)
    if base is None or name is None:
        raise UserError(f"record measures a preset; name one of {', '.join(RECORDS)}, or another")
    for setting in ("seed", "out_dir", "init_from"):
        if setting in explicit:
            raise UserError(f"{setting}={explicit[setting]} is record's own to choose; leave it out")
    seeds = _count(own, "seeds", DEFAULT_SEEDS)
    reference = None if own["reference"] is None else Path(own["reference"])
    if reference is not None:
        if not is_file(reference / "train.py"):
            raise UserError(f"reference={reference} is not a folder with nanoGPT's train.py; name one")
        reports.require_installed("torch", f"--reference={reference}")
    settings, record = Settings(**{**base, **explicit}), RECORDS.get(name)
    if own["steps"] and record is None:
        raise UserError(f"steps has no meaning for {name}, of which no record is kept; choose {', '.join(RECORDS)}")
    measured = measure_record(name, record, explicit, seeds, bool(own["steps"]), reference)
    print(record_tables(name, record, settings, measured))
    shape = f"{reports.model_in_words(settings)}, batch {reports.batch_in_words(settings)}"
    print(f"\n{shape}; {_cores()} cores ({_processor()})")
    document = _document(settings, {}) | {"measured": dataclasses.asdict(measured)}
    reports.write_where_asked("json", own["json"], lambda path: reports.write_json(path, document))
    reports.write_where_asked("plot", own["plot"], lambda path: write_record_plot(path, name, measured))


def plan_of(
    base: Mapping[str, Any] | None, explicit: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[Plan, str, str]:
    """What to measure, where batches come from, and in words what was changed of our own accord.

    Raises `UserError` for what cannot be measured, before anything is started.
    """
    against = "torch" if own["against"] is None else own["against"]
    require_choice("against", against, AGAINST)
    quantize: Quantize = "none" if own["quantize"] is None else own["quantize"]
    require_choice("quantize", quantize, QUANTIZE)
    rounds = _count(own, "rounds", DEFAULT_ROUNDS)
    seconds = _seconds(own)
    if own["axis"] is not None:
        raise UserError(f"axis={own['axis']} is of growth alone; leave it out")
    reference = own["reference"]
    if reference is not None:
        if against != "torch":
            raise UserError(f"reference={reference} is for --against=torch alone; leave it out")
        if not is_file(Path(reference) / "model.py"):
            raise UserError(f"reference={reference} is not a folder with nanoGPT's model.py; name one")
    for package in {"none": (), "torch": ("torch",), "hf": ("torch", "transformers")}[against]:
        reports.require_installed(package, f"--against={against}")
    base = PRESETS[DEFAULT_PRESET] if base is None else base
    plain = Settings(**{**base, **explicit})
    program, adapted = hf_counterpart(plain) if against == "hf" else Counterpart("PyTorch", {})
    settings = Settings(**{**base, **adapted, **explicit})
    _require_gpt(settings)
    if against != "none" and settings.optimizer != "adamw":
        raise UserError(f"optimizer={settings.optimizer} is not what {program} trains with; add --optimizer=adamw")
    require_at_least("block_size", settings.block_size, 2)
    data = open_data(settings)
    config = settings.gpt_config(data.tokens.vocab_size)
    model_args: Mapping[str, Any] = {}
    if against == "hf":
        for name, value in adapted.items():
            if getattr(settings, name) != value:
                raise UserError(f"{name}={getattr(settings, name)} is not what {program} has; leave it out")
        model_args = hf_config_of(config)
    elif against == "torch":
        model_args = nanogpt_model_args_of(config)
    room = settings.block_size - 1  # a text starts from one token
    tokens = min(room, _LONGEST_TEXT) if own["max_new_tokens"] is None else own["max_new_tokens"]
    require_at_least("max_new_tokens", tokens, 1)
    require_at_most("max_new_tokens", tokens, room, f"that is the room in a block of {settings.block_size}")
    mapped = isinstance(data.tokens.tokens, np.memmap)
    changes = [f"{name}={value}" for name, value in adapted.items() if getattr(plain, name) != value]
    plan = Plan(
        settings=settings,
        against=against,
        reference=reference,
        model_args=model_args,
        tokens=str(data.tokens.path) if mapped else None,
        vocab_size=config.vocab_size,
        rounds=rounds,
        seconds=seconds,
        max_new_tokens=tokens,
        quantize=quantize,
    )
    return plan, data.source, f"{', '.join(changes)} to agree with {program}" if changes else ""


def _count(own: Mapping[str, Any], name: str, usual: int) -> int:
    """How often, by the flag of that name."""
    count: int = usual if own[name] is None else own[name]
    require_at_least(name, count, 1)
    require_at_most(name, count, MAX_INT, "it is kept in 32 bits")
    return count


def _seconds(own: Mapping[str, Any]) -> float:
    """How long to measure at a time."""
    seconds = DEFAULT_SECONDS if own["seconds"] is None else own["seconds"]
    if not 0 < seconds < math.inf:
        raise UserError(f"seconds={seconds} is not a time above 0; choose for example {DEFAULT_SECONDS}")
    return seconds


def _require_gpt(settings: Settings) -> None:
    if settings.model != "gpt":
        raise UserError(f"model={settings.model} has nothing to measure, it multiplies no matrices; add --model=gpt")


def _document(settings: Settings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What tells this measurement from another."""
    return {
        "command": sys.argv,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": _cores(),
            "system": platform.platform(),
        },
        "device": facts,
        "versions": reports.versions(),
        "settings": vars(settings),
    }


def _cores() -> int | None:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
