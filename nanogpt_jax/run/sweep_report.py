"""What a sweep came to: a table with standard errors, and a figure of curves with bands and of loss over a number."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanogpt_jax.core.errors import in_short
from nanogpt_jax.run.curves import PALETTE, draw_validation, loss_range, read_curves, styles
from nanogpt_jax.run.reports import blank_figure, markdown, tidied, write_figure
from nanogpt_jax.run.sweep_plan import Plan, PlannedRun, name_of_values

FIGURE_FILE = "sweep.png"


@dataclass(frozen=True)
class Row:
    """The runs that differ in the seed alone.

    Attributes:
        varied: the settings that they share and others have not.
        runs: how many have ended as they should; `failed`: how many have not.
        mean: of their losses over the whole validation split, of the last weights, in nats per token; None without any.
        error: its standard error; None for a single run.
        best: the least of them.
        over_least: the mean of the differences to the row with the least mean, seed by seed.
        over_error: its standard error.
    """

    varied: Mapping[str, Any]
    runs: int
    failed: int
    mean: float | None
    error: float | None
    best: float | None
    over_least: float | None = None
    over_error: float | None = None


def rows(plan: Plan) -> list[Row]:
    """A row for every value of what varies beside the seed, in the plan's order."""
    groups = by_setting(plan)
    made = {}
    for key, (varied, runs) in groups.items():
        losses = [run.loss for run in runs if run.loss is not None]
        mean, error = mean_and_error(losses) if losses else (None, None)
        failed = sum(run.state == "failed" for run in runs)
        made[key] = Row(varied, len(losses), failed, mean, error, min(losses, default=None))
    known = {key: row.mean for key, row in made.items() if row.mean is not None}
    if not known:
        return [*made.values()]
    least = min(known, key=known.__getitem__)
    return [row if key == least else _compared(row, groups[key][1], groups[least][1]) for key, row in made.items()]


def by_setting(plan: Plan) -> dict[str, tuple[dict[str, Any], list[PlannedRun]]]:
    """The runs by what varies beside the seed."""
    groups: dict[str, tuple[dict[str, Any], list[PlannedRun]]] = {}
    for run in plan.runs:
        varied = {name: value for name, value in run.varied.items() if name != "seed"}
        groups.setdefault(name_of_values(varied), (varied, []))[1].append(run)
    return groups


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, which a single value has none of."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.mean(values), error


def with_error(mean: float | None, error: float | None, sign: str = "") -> str:
    """A mean in nats and its standard error."""
    return "" if mean is None else f"{mean:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")


def told(plan: Plan, table: Sequence[Row]) -> str:
    """The table for the terminal, and what it is of."""
    names = [name for name in plan.varied if name != "seed"]
    head = [*names, "runs", "val loss", "best"]
    compares = len(table) > 1
    lines = []
    for row in table:
        failed = f", {row.failed} failed" if row.failed else ""
        cells = [f"{row.runs}{failed}", with_error(row.mean, row.error), with_error(row.best, None)]
        lines.append([*(str(row.varied[name]) for name in names), *cells])
        if compares:
            lines[-1].append(with_error(row.over_least, row.over_error, "+") if row.over_least is not None else "")
    head += ["over the least"] * compares
    folder = Path(plan.settings["out_dir"])
    failures = [f"{run.name} has failed: {run.why}" for run in plan.runs if run.state == "failed"]
    about = "val loss: nats per token over the whole validation split, mean and standard error over the runs" + (
        "; over the least: the mean difference to the row with the least loss, seed by seed" if compares else ""
    )
    took = f"{plan.facts['seconds']:.0f} s of training; runs, sweep.json and {FIGURE_FILE} are in {folder}"
    return "\n".join([markdown(head, lines), about, *failures, took])


def leave_figure(out_dir: Path, plan: Plan) -> None:
    """Draw the sweep; a figure that can't be had leaves it as good as it is."""
    try:
        figure = sweep_figure(plan)
        if figure is not None:
            write_figure(out_dir / FIGURE_FILE, figure)
    except Exception as error:  # of a library that draws, on whatever machine
        print(f"{out_dir / FIGURE_FILE} could not be drawn ({in_short(error)})", file=sys.stderr)


def sweep_figure(plan: Plan) -> Any:
    """A band of validation losses for each setting; where a number varied, the loss at the end over that number."""
    groups = {
        key: (varied, [run for run in runs if run.loss is not None]) for key, (varied, runs) in by_setting(plan).items()
    }
    groups = {key: group for key, group in groups.items() if group[1]}
    if not groups:
        return None
    over = next((name for name, values in plan.varied.items() if name != "seed" and _are_numbers(values)), None)
    figure = blank_figure(figsize=(11 if over else 7, 4.4), layout="constrained")
    axes = figure.subplots(1, 2 if over else 1, squeeze=False)[0]
    folder = Path(plan.settings["out_dir"])
    bands = {
        key or f"{len(runs)} seeds": [read_curves(folder / run.name) for run in runs]
        for key, (_, runs) in groups.items()
    }
    draw_validation(axes[0], bands, styles())
    if len(bands) <= 12:
        axes[0].legend(frameon=False, fontsize=9)
    axes[0].set(xlabel="updates made", ylabel="validation loss (nats per token)")
    axes[0].set_ylim(*loss_range([run.val for band in bands.values() for run in band]))
    if any(len(band) > 1 for band in bands.values()):
        axes[0].set_title("lines: means; bands: from the least to the largest of the seeds", loc="left", fontsize=10)
    if over:
        _draw_over(axes[1], over, groups)
    for each in axes:
        tidied(each)
    return figure


def _draw_over(axes: Any, over: str, groups: Mapping[str, tuple[dict[str, Any], list[PlannedRun]]]) -> None:
    """The loss at the end over a number, a line for each value of what else varied."""
    lines: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for varied, runs in groups.values():
        mean, error = mean_and_error([run.loss for run in runs if run.loss is not None])
        others = name_of_values({name: value for name, value in varied.items() if name != over})
        lines[others].append((varied[over], mean, error or 0.0))
    for (name, points), colour in zip(lines.items(), itertools.cycle(PALETTE), strict=False):
        numbers, means, errors = zip(*sorted(points), strict=True)
        axes.errorbar(
            numbers, means, yerr=errors, fmt="o-", color=colour, capsize=3, linewidth=1.2, markersize=4, label=name
        )
    drawn = [varied[over] for varied, _ in groups.values()]
    if min(drawn) > 0 and max(drawn) / min(drawn) > 4:
        axes.set_xscale("log")
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9)
    axes.set(xlabel=over, ylabel="loss at the end, over the whole split")
    axes.set_title("means and standard errors", loc="left", fontsize=10)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _compared(row: Row, runs: Sequence[PlannedRun], least: Sequence[PlannedRun]) -> Row:
    """`row` with its difference to the row with the least mean, over the seeds that both have."""
    losses = [{run.varied.get("seed"): run.loss for run in each if run.loss is not None} for each in (runs, least)]
    differences = [losses[0][seed] - losses[1][seed] for seed in losses[0].keys() & losses[1].keys()]
    if not differences:
        return row
    mean, error = mean_and_error(differences)
    return replace(row, over_least=mean, over_error=error)
