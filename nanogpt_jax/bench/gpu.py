"""`bench gpu`: all that is wanted of a GPU, part by part, in one command whose time is bounded.

A GPU is lent for minutes. So what is most wanted comes first, each part is told as soon as it is there, none takes more
than two thirds of the time, and one that fails or finds no time left is named and does not stop the others.
All of JAX and of PyTorch happens in workers: this process holds no memory of the GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nanogpt_jax.bench.measure import OURS, Plan, Result, measure_sampling, measure_training, note, started
from nanogpt_jax.bench.report import in_digits, in_memory, in_rate, in_time, sampling_tables, training_tables
from nanogpt_jax.bench.rounds import OutOfMemory, OutOfTime, Worker, WorkerDied, alternate, at_most
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.run.reports import markdown

AT_ONCE = (8, 64)
BATCH_SIZES = (64, 32, 16, 8)  # the first that fits is measured
_MOST_OF_THE_TIME = 2 / 3  # that one part may take
_PARITY = {"batch_size": 1, "gradient_accumulation_steps": 1}
_PARITY_STEPS, _PARITY_BLOCK = 2, 128  # on the CPU, where PyTorch is, GPT-2 takes seconds for them
# Else a GPU's float32 products are TF32's, with 11 bits of which no tolerance for float32 can be held.
_WHOLE_FLOAT32 = {"NVIDIA_TF32_OVERRIDE": "0", "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}


State = Literal["done", "in part", "missed", "failed", "left out"]


@dataclass(frozen=True)
class Outcome:
    """What came of a part.

    Attributes:
        part: its name.
        state: done, in part (without PyTorch's side), missed (a tolerance), failed, or left out.
        why: it is not done; a line.
        seconds: that it took.
        rows: of the table: the quantity, ours, PyTorch's, and how many times as fast ours is.
        told: all there is to tell of it.
        figures: the same, as JSON.
    """

    part: str
    state: State
    why: str = ""
    seconds: float = 0.0
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    told: str = ""
    figures: Any = None


@dataclass(frozen=True)
class Parity:
    """What the comparison is made of: settings as `chosen` has them, and hf or a nanoGPT checkout; None: no PyTorch."""

    base: Mapping[str, Any]
    explicit: Mapping[str, Any]
    reference: str | None


def device_of(plan: Plan) -> dict[str, Any]:
    """What the plan's device is, in a process that is gone after. Raises `UserError` where there is none such."""
    spec = {"program": OURS, "task": "device", "settings": vars(plan.settings), "vocab_size": plan.vocab_size}
    with Worker(OURS, spec, {}) as worker:
        return worker.facts


def measure_gpu(
    plan: Plan, batch_sizes: Sequence[int], parity: Parity, device: Mapping[str, Any], end: float
) -> Iterator[Outcome]:
    """The outcome of each part as soon as it is there, all of them until `end`, as `time.monotonic` has it.

    Training is measured at the largest of `batch_sizes` that fits, which the parts after it take too. `device` is what
    `device_of` said.
    """
    most = _MOST_OF_THE_TIME * (end - time.monotonic())
    fits = [batch_sizes[-1]]
    parts: dict[str, Callable[[str], Outcome]] = {
        "training": lambda part: _training(part, plan, batch_sizes, fits),
        "parity in float32": lambda part: _parity(part, plan, parity, "float32", device),
        "parity in bfloat16": lambda part: _parity(part, plan, parity, "bfloat16", device),
        "sampling": lambda part: _sampling(part, plan),
        "kernels": lambda part: _kernels(part, _at(plan, fits[-1]), device),
    }
    if parity.reference is None:
        parts = {part: measure for part, measure in parts.items() if not part.startswith("parity")}
    for part, measure in parts.items():
        start = time.monotonic()
        note(f"{part}: {max(0.0, end - start):.0f} s left")
        if start >= end:
            yield Outcome(part, "left out", "no time was left")
            continue
        try:
            with at_most(min(end - start, most)):
                outcome = measure(part)
        except Exception as error:  # whatever it is: the GPU is lent for the other parts as well
            said = str(error) if isinstance(error, UserError | WorkerDied) else f"{type(error).__name__}: {error}"
            state: State = "left out" if isinstance(error, OutOfTime) else "failed"
            outcome = Outcome(part, state, " ".join(said.split()))
        yield dataclasses.replace(outcome, seconds=time.monotonic() - start)


def gpu_table(outcomes: Sequence[Outcome]) -> str:
    """A row for each quantity, and for each part that has none; below it, why."""
    rows = [row for outcome in outcomes for row in outcome.rows or [(outcome.part, outcome.state, "", "")]]
    why = [f"{outcome.part}, {outcome.state}: {outcome.why}" for outcome in outcomes if outcome.why]
    return "\n\n".join([markdown(("measured", OURS, "PyTorch", "times as fast"), rows), *why])


def _training(part: str, plan: Plan, batch_sizes: Sequence[int], fits: list[int]) -> Outcome:
    """Updates of both sides at the largest batch with which both fit beside each other, which `fits` is told."""
    for size in batch_sizes:
        note(f"batch of {size}")
        try:
            result = _with_or_without(measure_training, _at(plan, size))
        except OutOfMemory as error:
            note(f"batch of {size}: {error}")
            if size == batch_sizes[-1]:
                raise
            continue
        fits.append(size)
        break
    [case] = result.cases
    ours, theirs = case.sides[0], case.sides[1] if len(case.sides) > 1 else None

    def row(name: str, of: Callable[[Any], str], ratio: bool = False) -> tuple[str, str, str, str]:
        other = of(theirs) if theirs is not None else ""
        return name, of(ours), other, in_digits(theirs.ratio) if ratio and theirs and theirs.ratio else ""

    update = f"update of {size} x {plan.settings.block_size} tokens"
    if theirs is not None:
        update += f", beside {theirs.name}"
    share = "MFU, of" if case.limit.source.startswith("published") else "share of"
    rows = [
        row(update, lambda side: in_time(side.median_seconds), True),
        row("tokens per second", lambda side: in_digits(side.tokens_per_second)),
        row(f"{share} {in_rate(case.limit)}", lambda side: f"{side.share_of_limit:.1%}"),
        row("peak memory", lambda side: in_memory(side.peak_memory)),
    ]
    if result.start is not None:
        first = "" if theirs is None else in_time(theirs.first_seconds)
        rows += [
            ("process start to first update", in_time(result.start.warm), first, ""),
            ("the same, nothing compiled before", in_time(result.start.cold), "", ""),
        ]
    figures = {"batch_size": size, "tried": list(batch_sizes), "result": dataclasses.asdict(result)}
    return _outcome(part, result, rows, training_tables(result), figures)


def _parity(part: str, plan: Plan, parity: Parity, dtype: str, device: Mapping[str, Any]) -> Outcome:
    """`compare` on the device with PyTorch on the CPU, held to the tolerances of the type."""
    settings = plan.settings
    asked = {
        **parity.explicit, **_PARITY, "accelerator": settings.accelerator, "dtype": dtype,
        "block_size": min(settings.block_size, _PARITY_BLOCK),
    }  # fmt: skip
    spec = {
        "program": OURS, "task": "parity", "base": dict(parity.base), "explicit": asked,
        "reference": parity.reference, "steps": _PARITY_STEPS,
    }  # fmt: skip
    environment: dict[str, str | None] = {}
    how = ""
    if device["platform"] == "gpu" and dtype == "float32":
        flags = f"{os.environ.get('XLA_FLAGS', '')} {_WHOLE_FLOAT32['XLA_FLAGS']}".strip()
        environment, how = {**_WHOLE_FLOAT32, "XLA_FLAGS": flags}, ", TF32 off"
    with contextlib.ExitStack() as stack:
        facts = started(stack, part, spec, environment).facts
    missed = [row["quantity"] for row in facts["rows"] if row["verdict"] == "MISSED"]
    count = len(facts["rows"])
    said = f"{len(missed)} of {count} tolerances MISSED" if missed else f"all {count} tolerances hold"
    why = ", ".join(sorted(set(missed)))
    told = facts.pop("told")
    rows = [(part + how, said, "", "")]
    return Outcome(part, "missed" if missed else "done", why, rows=rows, told=told, figures=facts)


def _sampling(part: str, plan: Plan) -> Outcome:
    """Tokens per second of one text and of several at once."""
    result = _with_or_without(measure_sampling, plan)
    rows = []
    for case in result.cases:
        ours, theirs = case.sides[0], case.sides[1] if len(case.sides) > 1 else None
        cells = ("", "") if theirs is None else (in_digits(theirs.tokens_per_second), in_digits(theirs.ratio or 0.0))
        rows.append((f"{case.name}, tokens per second", in_digits(ours.tokens_per_second), *cells))
    return _outcome(part, result, rows, sampling_tables(result), dataclasses.asdict(result))


def _kernels(part: str, plan: Plan, device: Mapping[str, Any]) -> Outcome:
    """Updates with each attention kernel that the device has: whether the one that is chosen is the fastest."""
    chosen, able = device["attention"], device["kernels"]
    if len(able) == 1:
        rows = [(f"attention={chosen}", "the only kernel that runs here", "", "")]
        return Outcome(part, "done", rows=rows, told=f"attention: {chosen} alone runs here", figures={"chosen": chosen})
    with contextlib.ExitStack() as stack:
        workers = []
        for kernel in able:
            settings = {**vars(plan.settings), "attention": kernel}
            spec = {"program": OURS, "task": "train", "settings": settings, "timed_compilation": False}
            workers.append(started(stack, kernel, spec))
        seconds = alternate(workers, "step", plan.rounds, plan.seconds)
    medians = {kernel: statistics.median(seconds[kernel]) for kernel in able}
    rows = [
        (f"update with attention={kernel}" + (", chosen" if kernel == chosen else ""), in_time(medians[kernel]), "", "")
        for kernel in able
    ]
    told = f"attention: {chosen} is chosen; " + ", ".join(f"{name} {in_time(medians[name])}" for name in able)
    figures = {"chosen": chosen, "seconds": seconds, "batch_size": plan.settings.batch_size}
    return Outcome(part, "done", rows=rows, told=told, figures=figures)


def _at(plan: Plan, batch_size: int) -> Plan:
    return dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, batch_size=batch_size))


def _with_or_without(measure: Callable[[Plan], Result], plan: Plan) -> Result:
    """What `measure` finds of both sides or, where the process of one dies, of ours alone."""
    try:
        return measure(plan)
    except WorkerDied as error:
        if plan.against == "none" or isinstance(error, OutOfMemory | OutOfTime):
            raise
        note(f"{error}; once more without the other side")
        result = measure(dataclasses.replace(plan, against="none"))
        return dataclasses.replace(result, unavailable={"PyTorch": str(error)})


def _outcome(part: str, result: Result, rows: list[tuple[str, str, str, str]], told: str, figures: Any) -> Outcome:
    """That of a result, which may lack the other side."""
    why = "; ".join(f"{name} was not measured: {reason}" for name, reason in result.unavailable.items())
    return Outcome(part, "in part" if why else "done", why, rows=rows, told=told, figures=figures)
