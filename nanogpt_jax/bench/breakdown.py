"""`bench train --breakdown`: where an update's time goes, by kinds of work, in both programs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanogpt_jax.bench.measure import OURS, Plan, note, started, their_sides
from nanogpt_jax.bench.report import in_time
from nanogpt_jax.bench.rounds import REST_SECONDS, warmed_up
from nanogpt_jax.bench.trace import BREAKDOWN, KINDS, Work
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.files import temporary_folder
from nanogpt_jax.run.reports import markdown

_LONGEST = 5  # pieces of work that are named below the table

_NOTES = (
    "Traced updates, batches included, of each side's fastest round: what else the machine does slows the others. "
    "Attention is what lies between its linear layers, the optimizer all after the gradients, with clipping. Where "
    "threads have an operation each they share the time, and an operation on several threads counts once. Waiting is "
    "the time in which none runs: Python, drawing batches, starting operations. A layer norm or a loss is one "
    "operation in PyTorch, a reduction; here its sums are reductions, and what follows them elementwise passes."
)


@dataclass(frozen=True)
class SideBreakdown:
    """Where the time of one side's updates goes: in each round, seconds of an update by work."""

    name: str
    rounds: list[dict[Work, float]]

    @property
    def fastest(self) -> dict[Work, float]:
        """The shortest round, the one in which the machine's other work took least."""
        return min(self.rounds, key=lambda seconds: sum(seconds.values()))

    def kinds(self) -> dict[str, float]:
        """Seconds of each of `KINDS` in that round; they add up to its length."""
        return {kind: sum(seconds for work, seconds in self.fastest.items() if work.kind == kind) for kind in KINDS}

    def longest(self) -> list[tuple[Work, float]]:
        """The pieces of work that take longest in that round."""
        named = [(work, seconds) for work, seconds in self.fastest.items() if work.kind != "waiting"]
        return sorted(named, key=lambda each: -each[1])[:_LONGEST]

    def document(self) -> dict[str, Any]:
        """For JSON: the fastest round by kind, and all rounds by work."""
        rounds = [[{**work._asdict(), "seconds": seconds} for work, seconds in each.items()] for each in self.rounds]
        return {"name": self.name, "kinds": self.kinds(), "rounds": rounds}


@dataclass(frozen=True)
class Breakdown:
    """All sides, ours first; what is told of ours, and what this machine does not offer."""

    facts: dict[str, Any]
    sides: list[SideBreakdown]
    unavailable: dict[str, str]
    threads: int | None


def measure_breakdown(plan: Plan) -> Breakdown:
    """Traced updates of all sides in alternating rounds. Raises `UserError` where they don't run on a CPU."""
    work = {"task": "train", "settings": vars(plan.settings), "timed_compilation": True, "breakdown": True}
    with contextlib.ExitStack() as stack:
        # JAX's cache may hold a program that was compiled where its parts had other names, which are what is read here.
        cache = str(stack.enter_context(temporary_folder()))
        environment = {"XDG_CACHE_HOME": cache, "JAX_COMPILATION_CACHE_DIR": None}
        ours = started(stack, OURS, {"program": OURS, **work}, environment)
        facts = ours.facts
        if facts["platform"] != "cpu":
            raise UserError(f"breakdown reads traces of the CPU, not of {facts['device']}; add --accelerator=cpu")
        theirs, unavailable = their_sides(stack, plan, work, facts)
        workers = [ours, *theirs]
        note(f"breakdown: {plan.rounds} rounds of {'; '.join(worker.name for worker in workers)}")
        times = {worker.name: warmed_up(worker, "step", plan.seconds) for worker in workers}
        sides = [SideBreakdown(worker.name, []) for worker in workers]
        for _ in range(plan.rounds):
            for worker, side in zip(workers, sides, strict=True):
                time.sleep(REST_SECONDS)
                worker.measure(BREAKDOWN, times[worker.name])
                found = worker.facts[BREAKDOWN]
                side.rounds.append({Work(kind, name): seconds for kind, name, seconds in found})
        return Breakdown(facts, sides, unavailable, theirs[0].facts["threads"] if theirs else None)


def breakdown_table(found: Breakdown) -> str:
    """A row for each kind: time and share of each side, and how many times as long as the others ours takes."""
    others = found.sides[1:]
    names = [side.name for side in found.sides]
    kinds = [side.kinds() for side in found.sides]
    head = ("an update's time", *names, *(f"ours to {side.name}" for side in others))
    rows = [(label, *_cells([each[kind] for each in kinds], kinds)) for kind, label in KINDS.items()]
    rows.append(("all of it", *_cells([sum(each.values()) for each in kinds], kinds)))
    longest = [
        f"The longest in {side.name}: "
        + "; ".join(f"`{work.name}` {in_time(seconds)} ({KINDS[str(work.kind)]})" for work, seconds in side.longest())
        + "."
        for side in found.sides
    ]
    absent = [f"{name} was not measured: {why}." for name, why in found.unavailable.items()]
    return "\n\n".join([markdown(head, rows), _NOTES, *longest, *absent])


def _cells(seconds: Sequence[float], kinds: Sequence[dict[str, float]]) -> list[str]:
    """Of one row: the time of each side with its share of the whole, then our time as a multiple of the others'."""
    wholes = [sum(each.values()) for each in kinds]
    times = [f"{in_time(each)} ({each / whole:.0%})" for each, whole in zip(seconds, wholes, strict=True)]
    return times + [f"{seconds[0] / other:.2f}" if other else "" for other in seconds[1:]]
