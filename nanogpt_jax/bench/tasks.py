"""The tasks of the benchmark, each from what is asked for to what is told of it."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt_jax.bench.breakdown import breakdown_table, measure_breakdown
from nanogpt_jax.bench.gpu import AT_ONCE, BATCH_SIZES, Parity, device_of, gpu_table, measure_gpu
from nanogpt_jax.bench.measure import Plan, measure_sampling, measure_training
from nanogpt_jax.bench.record import measure_record, record_tables, write_record_plot
from nanogpt_jax.bench.records import RECORDS
from nanogpt_jax.bench.report import sampling_tables, training_tables, write_plot
from nanogpt_jax.bench.settings import (
    AGAINST,
    AXES,
    BREAKDOWN_ROUNDS,
    DEFAULT_PRESET,
    DEFAULT_ROUNDS,
    DEFAULT_SECONDS,
    DEFAULT_SEEDS,
    GPU_BUDGET,
    GPU_PRESET,
    GPU_ROUNDS,
)
from nanogpt_jax.compare.inputs import Counterpart, hf_counterpart, open_data
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import RunFailed, UserError
from nanogpt_jax.core.limits import MAX_INT, require_at_least, require_at_most, require_choice
from nanogpt_jax.core.sampling_config import QUANTIZE, Quantize
from nanogpt_jax.data.files import is_file
from nanogpt_jax.run import reports
from nanogpt_jax.run.presets import PRESETS, name_of
from nanogpt_jax.weights.hf_format import hf_config_of
from nanogpt_jax.weights.nanogpt_format import nanogpt_model_args_of

_LONGEST_TEXT = 256


def measure(task: str, base: Mapping[str, Any] | None, explicit: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Do one of `TASKS` and tell what came of it: by settings as `chosen` has them, and the command's `own` flags.

    Raises `UserError` for what cannot be measured, before anything is started, `WorkerDied`, and `RunFailed` where a
    part of `gpu` is not there.
    """
    tasks = {"growth": _growth, "record": _record, "gpu": _gpu}
    (_breakdown if own["breakdown"] else tasks.get(task, _rounds))(task, base, explicit, own)


def _rounds(task: str, base: Mapping[str, Any] | None, explicit: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """`train`, `sample` and `all`: both sides in turns."""
    plan, source, changed = plan_of(base, explicit, own)
    settings = plan.settings
    title = _announced(settings, source, changed)
    results = []
    for name, measure, table in (
        ("train", measure_training, training_tables),
        ("sample", measure_sampling, sampling_tables),
    ):
        if task in (name, "all"):
            results.append(measure(plan))
            print(f"\n{table(results[-1])}", flush=True)
    facts = results[0].facts
    print(f"\n{_where(facts, results[0].threads)}, {plan.rounds} rounds of {plan.seconds:g} s a side")
    document = _document(settings, facts) | {"batches": source, "plan": dataclasses.asdict(plan)}
    document["results"] = [dataclasses.asdict(result) for result in results]
    reports.write_where_asked("json", own["json"], lambda path: reports.write_json(path, document))
    title = f"{title}, {facts['dtype']}"
    reports.write_where_asked("plot", own["plot"], lambda path: write_plot(path, results, title))


def _breakdown(task: str, base: Mapping[str, Any] | None, explicit: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """`train --breakdown`: traced updates of both sides in turns."""
    if own["plot"] is not None:
        raise UserError(f"plot={own['plot']} has no meaning for a breakdown, which is a table; leave it out")
    rounds = BREAKDOWN_ROUNDS if own["rounds"] is None else own["rounds"]
    plan, source, changed = plan_of(base, explicit, {**own, "rounds": rounds})
    settings = plan.settings
    _announced(settings, source, changed)
    found = measure_breakdown(plan)
    print(f"\n{breakdown_table(found)}")
    print(f"\n{_where(found.facts, found.threads)}, {plan.rounds} rounds of {plan.seconds:g} s a side")
    document = _document(settings, found.facts) | {"batches": source, "plan": dataclasses.asdict(plan)}
    document["breakdown"] = [side.document() for side in found.sides]
    reports.write_where_asked("json", own["json"], lambda path: reports.write_json(path, document))


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


def _gpu(task: str, base: Mapping[str, Any] | None, explicit: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """`gpu`: each part told and written as soon as it is there, and one table of all at the end."""
    if own["plot"] is not None:
        raise UserError(f"plot={own['plot']} has no meaning for gpu; leave it out, or measure train and sample")
    budget = GPU_BUDGET if own["budget"] is None else own["budget"]
    if not 0 < budget < math.inf:
        raise UserError(f"budget={budget} is not a time above 0; choose for example {GPU_BUDGET:g}")
    base = PRESETS[GPU_PRESET] if base is None else base
    explicit = {"accelerator": "gpu", **explicit}
    sizes = (explicit["batch_size"],) if "batch_size" in explicit else BATCH_SIZES
    usual = {"batch_size": sizes[0], "gradient_accumulation_steps": 1}
    rounds = GPU_ROUNDS if own["rounds"] is None else own["rounds"]
    plan, source, changed = plan_of(base, {**usual, **explicit}, {**own, "rounds": rounds})
    plan = dataclasses.replace(plan, at_once=AT_ONCE, eager=False)
    reference = None if plan.against == "none" else plan.reference or "hf"
    if reference == "hf":
        reports.require_installed("transformers", "parity")
    end = time.monotonic() + budget
    device = device_of(plan)
    title = reports.model_in_words(plan.settings) + (f"; {changed}" if changed else "")
    where = f"{device['devices']} x {device['device']} ({_processor()})"
    print(f"model      {title}\nbatches    from {source}\ndevice     {where}, {device['dtype']}", flush=True)
    document = _document(plan.settings, device) | {"batches": source, "plan": dataclasses.asdict(plan)}
    document |= {"budget": budget, "parts": {}}
    outcomes = []
    for outcome in measure_gpu(plan, sizes, Parity(base, explicit, reference), device, end):
        outcomes.append(outcome)
        print(f"\n{outcome.part}: {outcome.state}, {outcome.seconds:.0f} s {outcome.why}".rstrip())
        if outcome.told:
            print(f"\n{outcome.told}")
        sys.stdout.flush()
        document["parts"][outcome.part] = {**dataclasses.asdict(outcome), "told": None}
        reports.write_where_asked("json", own["json"], lambda path: reports.write_json(path, document))
    print(f"\n{gpu_table(outcomes)}\n\n{where}, {device['dtype']}; all of it in {own['json']}")
    lacking = [f"{each.part} {each.state}" for each in outcomes if each.state != "done"]
    if lacking:
        raise RunFailed(f"not all of it is there ({', '.join(lacking)}); see why below the table, and run it again")


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


def _announced(settings: Settings, source: str, changed: str) -> str:
    """The model and its batches in words, which are printed with where the batches come from and what is changed."""
    title = f"{reports.model_in_words(settings)}, batch {reports.batch_in_words(settings)}"
    print(f"model      {title}" + (f"; {changed}" if changed else ""))
    print(f"batches    from {source}", flush=True)
    return title


def _where(facts: Mapping[str, Any], threads: int | None) -> str:
    """The device, the type of products, and PyTorch's threads where it was measured."""
    of_torch = "" if threads is None else f", {threads} threads in PyTorch"
    return f"{facts['devices']} x {facts['device']} ({_processor()}), {facts['dtype']}{of_torch}"


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
