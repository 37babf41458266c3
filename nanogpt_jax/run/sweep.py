"""A sweep, from its plan to its table: one program after the other, what each run came to, and going on if killed."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from nanogpt_jax.data.files import names_in
from nanogpt_jax.data.process import readers_may_leave
from nanogpt_jax.run import hosts, sweep_report
from nanogpt_jax.run.accelerator import describe
from nanogpt_jax.run.faults import memory_in_one_line, only_run_in, refusals_in_one_line, signals, unwritable
from nanogpt_jax.run.many import runs_at_once, train_together
from nanogpt_jax.run.reports import versions
from nanogpt_jax.run.run_folder import set_previous_run_aside
from nanogpt_jax.run.sinks import require_sinks
from nanogpt_jax.run.start import Start, begun, resumed
from nanogpt_jax.run.sweep_plan import PLAN_FILE, Plan, programs, write_plan
from nanogpt_jax.weights.checkpoint import newest

Tell = Callable[[str], None]


def run_sweep(plan: Plan, *, resuming: bool, at_once: int | None) -> str:
    """Train all that the plan has waiting; the table of the result.

    Raises `Stopped` after a signal, with all that is under way saved.
    """
    out_dir = Path(plan.settings["out_dir"])
    received: list[int] = []
    tell: Tell = partial(print, flush=True)
    with contextlib.ExitStack() as held:
        held.enter_context(readers_may_leave(lambda: received.append(signal.SIGPIPE)))
        first = plan.settings_of(plan.runs[0])
        require_sinks(first)
        if not resuming:
            begun(first, plan.given_of(plan.runs[0]))  # which refuses what can't be before anything is written
        with unwritable(out_dir):
            out_dir.mkdir(parents=True, exist_ok=True)
        held.enter_context(only_run_in(out_dir))
        if not resuming:
            with unwritable(out_dir):
                set_previous_run_aside(out_dir, _names_of_a_sweep(out_dir), "a sweep")
            plan.facts = {"command": sys.argv, "device": describe(), "versions": versions(), "seconds": 0.0}
            write_plan(plan)
        held.enter_context(refusals_in_one_line(out_dir))
        held.enter_context(signals(received))
        stop = partial(hosts.stop_if_told, received)
        groups = programs(plan)
        varying = ", ".join(f"{len(values)} of {name}" for name, values in plan.varied.items())
        tell(f"{len(plan.runs)} runs ({varying}) in {_counted(len(groups), 'program')}; {describe()}")
        for group in groups:
            if not any(set(group) & set(together) for together in plan.programs):
                plan.programs += _dealt_out(plan, group, at_once, tell)
                write_plan(plan)
        for together in plan.programs:
            if any(plan.runs[i].state == "waiting" for i in together):
                _train(plan, together, stop, tell)
    table = sweep_report.rows(plan)
    plan.facts["table"] = [vars(row) for row in table]
    write_plan(plan)
    sweep_report.leave_figure(out_dir, plan)
    return sweep_report.told(plan, table)


def _dealt_out(plan: Plan, group: list[int], at_once: int | None, tell: Tell) -> list[list[int]]:
    """The runs of one program, as many at a time as were asked for, or as fit."""
    if at_once is None:
        settings = plan.settings_of(plan.runs[group[0]])
        start = begun(settings, plan.given_of(plan.runs[group[0]]))
        at_once, room = runs_at_once(start, len(group))
        tell(f"{_counted(at_once, 'run')} of {len(group)} at once, for the memory: {room}")
    return [group[first : first + at_once] for first in range(0, len(group), at_once)]


def _train(plan: Plan, together: list[int], stop: Callable[[], None], tell: Tell) -> None:
    """Train these runs to their ends, side by side, and put down what became of them."""
    began = time.perf_counter()
    runs = [plan.runs[i] for i in together]
    starts: list[Start] = []
    for run in runs:
        settings, data = plan.settings_of(run), starts[0].data if starts else None
        going_on = newest(Path(settings.out_dir)) is not None
        starts.append(resumed(settings, {}, data) if going_on else begun(settings, plan.given_of(run), data))
    tell(f"training {runs[0].name}" + (f" to {runs[-1].name}, {len(runs)} at once" if len(runs) > 1 else ""))
    data_seed = plan.settings_of(plan.runs[0]).seed if plan.same_data else None
    with memory_in_one_line(plan.settings_of(runs[0]), ("batch_size", "block_size", "n_layer", "n_embd")):
        members = train_together([run.name for run in runs], starts, data_seed=data_seed, stop=stop, tell=tell)
    for run, member in zip(runs, members, strict=True):
        run.state, run.why = ("done", None) if member.why is None else ("failed", member.why)
        run.loss, run.best_loss = member.loss, member.best_loss
    plan.facts["seconds"] = round(plan.facts["seconds"] + time.perf_counter() - began, 1)
    write_plan(plan)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _names_of_a_sweep(out_dir: Path) -> list[str]:
    """What an earlier sweep left in its folder."""
    files = (PLAN_FILE, sweep_report.FIGURE_FILE)
    return [name for name in names_in(out_dir) if name in files or "=" in name]
