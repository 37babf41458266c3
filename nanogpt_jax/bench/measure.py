"""What the benchmark measures: training and sampling, here and there, and what share of the machine's limit it is."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanogpt_jax.bench.limits import MATMUL_FLOPS, MEMORY_BYTES, bytes_per_token
from nanogpt_jax.bench.rounds import Worker, alternate, least_seconds, ratios
from nanogpt_jax.bench.side import Unavailable
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.sampling_config import Quantize
from nanogpt_jax.data.files import temporary_folder

OURS = "nanogpt-jax"
TEMPERATURE, TOP_K = 0.8, 200
WITHIN, PAST = "one text, within the block", "one text, past the block"
ROLLING = "one text, past the block, rolling"
_TOKENS_PAST = 32  # each costs the same
_LIMIT_TURNS = 8
_PREALLOCATION_OFF = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # two programs share one GPU here


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        settings: shape, batch, optimizer, accelerator and `dtype` of both sides.
        against: torch, hf or none.
        reference: the folder of a nanoGPT checkout, for `torch`.
        model_args: the model's shape as the other side takes it.
        tokens: the file of the training split; None for random tokens.
        vocab_size: how many different tokens there are.
        rounds: how often every side has its turn.
        seconds: that a turn lasts, unless a single update or text takes longer.
        max_new_tokens: in a text within the block.
        quantize: our weights in sampling, none or int8.
        at_once: how many texts are drawn at a time, beside one by itself.
        eager: whether PyTorch, where it is compiled for training, is measured as it is as well.
    """

    settings: Settings
    against: str
    reference: str | None
    model_args: Mapping[str, Any]
    tokens: str | None
    vocab_size: int
    rounds: int
    seconds: float
    max_new_tokens: int
    quantize: Quantize
    at_once: tuple[int, ...] = (8,)
    eager: bool = True


@dataclass(frozen=True)
class Limit:
    """What the machine can do at most: a rate in FLOP/s or bytes/s, and how it is known."""

    rate: float
    unit: str
    source: str


@dataclass(frozen=True)
class SideResult:
    """What a side did in one case.

    Attributes:
        name: of the side.
        seconds: of one unit of work (an update, a text or several at once), in every round.
        tokens_per_second: at the median of the rounds.
        share_of_limit: of the case's limit, at the median.
        ratios: how many times as fast as this side ours was, in every round; None for ours.
        peak_memory: bytes, up to here.
        first_seconds: from the start of the process until its first unit of work was done.
    """

    name: str
    seconds: list[float]
    tokens_per_second: float
    share_of_limit: float
    ratios: list[float] | None
    peak_memory: int
    first_seconds: float
    median_seconds: float = field(init=False)
    ratio: float | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "median_seconds", statistics.median(self.seconds))
        object.__setattr__(self, "ratio", statistics.median(self.ratios) if self.ratios else None)


@dataclass(frozen=True)
class Case:
    """All sides of one case, ours first, and the limit that they are held to.

    `per_token` is what a token asks of the machine, in the limit's unit times seconds.
    """

    name: str
    sides: list[SideResult]
    limit: Limit
    per_token: float


@dataclass(frozen=True)
class Start:
    """Fresh processes of ours that end with their first update: with an empty compilation cache, and a filled one.

    Seconds since the start of the process, of those in tracing and compiling, and the most bytes in memory.
    """

    cold: float
    cold_compile: float
    cold_peak_memory: int
    warm: float
    warm_compile: float
    warm_peak_memory: int


@dataclass(frozen=True)
class Result:
    """What `bench train` or `bench sample` found.

    Attributes:
        task: train or sample.
        facts: of our side: platform, device, number of devices, type of matrix products.
        cases: one in training, several in sampling.
        start: of a process that trains; None for sampling.
        unavailable: the side and the reason, of what this machine does not offer.
        threads: that PyTorch uses; None without it.
    """

    task: str
    facts: dict[str, Any]
    cases: list[Case]
    start: Start | None
    unavailable: dict[str, str]
    threads: int | None


def measure_training(plan: Plan) -> Result:
    """Updates of all sides in alternating rounds, then the limit; before that, how long a fresh process takes."""
    work = {"task": "train", "settings": vars(plan.settings), "timed_compilation": False}
    with contextlib.ExitStack() as stack:
        cache = str(stack.enter_context(temporary_folder()))
        environment = {"XDG_CACHE_HOME": cache, "JAX_COMPILATION_CACHE_DIR": None}
        start = _start(work, environment)
        ours = started(stack, OURS, {"program": OURS, **work}, environment)
        theirs, unavailable = their_sides(stack, plan, work, ours.facts)
        tokens = plan.settings.tokens_per_iter
        sides = [ours, *theirs]
        seconds = _alternated(sides, "step", "training", plan)
        peaks = {side.name: side.peak_memory for side in sides}  # before the limit takes memory of its own
        limit, per_token = _matmul_limit(ours), ours.facts["flops_per_token"]
        case = _case("training", sides, seconds, peaks, tokens, limit, per_token)
        return Result("train", ours.facts, [case], start, unavailable, _threads(theirs))


def measure_sampling(plan: Plan) -> Result:
    """Texts of all sides: one within the block, one past it in the reference's meaning, and several at once.

    Hugging Face's model cannot go past its block. With rotary positions one more, ours alone, lets its memory roll.
    """
    T, N = plan.settings.block_size, plan.max_new_tokens
    shapes = {WITHIN: (1, N, 1), PAST: (T, _TOKENS_PAST, 1), **{several(n): (1, N, n) for n in plan.at_once}}
    if plan.against == "hf":
        del shapes[PAST]
    if plan.settings.position == "rope":
        shapes[ROLLING] = (T, _TOKENS_PAST, 1)
    work = {
        "task": "sample",
        "settings": vars(plan.settings),
        "vocab_size": plan.vocab_size,
        "cases": shapes,
        "rolling": ROLLING,
        "temperature": TEMPERATURE,
        "top_k": TOP_K,
        "quantize": plan.quantize,
    }
    with contextlib.ExitStack() as stack:
        ours = started(stack, OURS, {"program": OURS, **work})
        theirs, unavailable = their_sides(stack, plan, work, ours.facts)
        sides_of = {name: [ours] if name == ROLLING else [ours, *theirs] for name in shapes}
        seconds = {name: _alternated(sides, name, name, plan) for name, sides in sides_of.items()}
        peaks = {side.name: side.peak_memory for side in (ours, *theirs)}  # before the limits take memory of their own
        matmul, memory = _matmul_limit(ours), _memory_limit(ours)
        cases = []
        for name, (prompt, tokens, batch) in shapes.items():
            if name == PAST:
                limit, per_token = matmul, ours.facts["reading_flops"]
            else:
                weights, cache = ours.facts["weight_bytes"], ours.facts["cache_bytes_per_position"]
                grows = 1 if name == ROLLING else tokens  # a memory that rolls is as long for the last as for the first
                limit, per_token = memory, bytes_per_token(weights, cache, prompt, grows, batch)
            cases.append(_case(name, sides_of[name], seconds[name], peaks, tokens * batch, limit, per_token))
        return Result("sample", ours.facts, cases, None, unavailable, _threads(theirs))


def _start(work: Mapping[str, Any], environment: Mapping[str, str | None]) -> Start:
    """The first update with the empty compilation cache of `environment`, and again with what that left in it."""
    found = []
    for state in ("an empty", "a filled"):
        note(f"{OURS}: a fresh process with {state} compilation cache")
        with Worker(OURS, {"program": OURS, **work, "timed_compilation": True}, environment) as worker:
            found += [worker.first_seconds, worker.facts["compile_seconds"]]
            worker.measure("step", 1)
            found.append(worker.peak_memory)
    return Start(*found)


def several(texts: int) -> str:
    """The case of so many texts at once."""
    return f"{texts} texts, within the block"


def started(
    stack: contextlib.ExitStack, name: str, spec: Mapping[str, Any], environment: Mapping[str, str | None] | None = None
) -> Worker:
    """A worker that the stack closes, which leaves the others memory of the device."""
    note(f"{name}: starting")
    return stack.enter_context(Worker(name, spec, {**_PREALLOCATION_OFF, **(environment or {})}))


def their_sides(
    stack: contextlib.ExitStack, plan: Plan, work: Mapping[str, Any], facts: Mapping[str, Any]
) -> tuple[list[Worker], dict[str, str]]:
    """The other sides that this machine can run, and why it cannot run the rest."""
    spec = {
        **work,
        "program": plan.against,
        "reference": plan.reference,
        "model_args": plan.model_args,
        "tokens": plan.tokens,
        "vocab_size": plan.vocab_size,
        "platform": facts["platform"],
        "dtype": facts["dtype"],
    }
    sides, unavailable = [], {}
    for name, compiled in _their_names(plan, work["task"]).items():
        try:
            sides.append(started(stack, name, {**spec, "compile": compiled}))
        except Unavailable as reason:
            note(f"{name}: {reason}")
            unavailable[name] = str(reason)
    return sides, unavailable


def _their_names(plan: Plan, task: str) -> dict[str, bool]:
    """The other sides, and whether each goes through `torch.compile`: nanoGPT does for training alone."""
    if plan.against == "none":
        return {}
    if plan.against == "hf":
        return {"Hugging Face": False}
    program = "nanoGPT" if plan.reference is not None else "PyTorch"
    if task == "sample":
        return {program: False}
    return ({f"{program}, eager": False} if plan.eager else {}) | {f"{program}, compiled": True}


def _alternated(sides: Sequence[Worker], case: str, name: str, plan: Plan) -> dict[str, list[float]]:
    note(f"{name}: {plan.rounds} rounds of {'; '.join(side.name for side in sides)}")
    return alternate(sides, case, plan.rounds, plan.seconds)


def _case(
    name: str,
    sides: Sequence[Worker],
    seconds: Mapping[str, list[float]],
    peaks: Mapping[str, int],
    tokens: int,
    limit: Limit,
    per_token: float,
) -> Case:
    """The result of a case whose unit of work has so many tokens; `sides` starts with ours."""
    results = []
    for side in sides:
        rate = tokens / statistics.median(seconds[side.name])
        against = None if side is sides[0] else ratios(seconds[sides[0].name], seconds[side.name])
        share = rate * per_token / limit.rate
        measured = seconds[side.name]
        results.append(SideResult(side.name, measured, rate, share, against, peaks[side.name], side.first_seconds))
    return Case(name, results, limit, per_token)


def _matmul_limit(ours: Worker) -> Limit:
    """The chip's published rate where there is one, else that of large products in the run's type, measured."""
    if ours.facts["peak_flops"] is not None:
        return Limit(ours.facts["peak_flops"], "FLOP/s", f"published for {ours.facts['device']}, bfloat16")
    note("the rate of large matrix products")
    rate = MATMUL_FLOPS / least_seconds(ours, "matmul", _LIMIT_TURNS)
    return Limit(rate, "FLOP/s", f"products of large {ours.facts['dtype']} matrices, best of {_LIMIT_TURNS}")


def _memory_limit(ours: Worker) -> Limit:
    """The rate at which memory that is in no cache can be read, measured."""
    note("the rate of reading memory")
    rate = MEMORY_BYTES / least_seconds(ours, "memory", _LIMIT_TURNS)
    return Limit(rate, "B/s", f"reading {MEMORY_BYTES >> 20} MiB for a matrix-vector product, best of {_LIMIT_TURNS}")


def _threads(theirs: Sequence[Worker]) -> int | None:
    return theirs[0].facts["threads"] if theirs else None


def note(text: str) -> None:
    """Say on stderr what is being done."""
    print(text, file=sys.stderr, flush=True)
