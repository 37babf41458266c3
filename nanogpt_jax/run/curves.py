"""The curves of runs as a figure: losses and learning rate over the updates, from their `metrics.jsonl`."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nanogpt_jax.core.errors import in_short
from nanogpt_jax.data.commands import pasteable
from nanogpt_jax.run.recipe import recipe_of
from nanogpt_jax.run.reports import ALARM, OURS, THEIRS, THIRD, blank_figure, tidied, write_figure
from nanogpt_jax.run.sinks import FIGURE_FILE, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = (OURS, ALARM, THIRD, THEIRS, "#CC79A7", "#56B4E9")  # all of Okabe and Ito (2008)
_SMOOTHED_OVER = 1 / 25  # of the curve


class Series(NamedTuple):
    """A quantity at some updates."""

    steps: Int[np.ndarray, " N"]
    values: Float[np.ndarray, " N"]


class Curves(NamedTuple):
    """What a run told: losses in nats per token, of each update's batch and of the evaluations; the learning rate."""

    name: str
    train: Series
    val: Series
    learning_rate: Series
    whole: float | None  # the loss over the whole validation split, at the end
    recipe: str | None  # what its updates are made by but the seed; None where that is not known


def read_curves(out_dir: Path, name: str | None = None) -> Curves:
    """The curves of the run in `out_dir`; `UserError` if there is none."""
    entries = read_metrics(out_dir)

    def series(split: str, quantity: str = "loss") -> Series:
        known = [entry for entry in entries if entry["split"] == split and entry.get(quantity) is not None]
        return Series(
            np.array([entry["step"] for entry in known], int), np.array([entry[quantity] for entry in known], float)
        )

    whole = series("val_whole").values
    train, val, rate = series("train"), series("val"), series("train", "learning_rate")
    return Curves(
        name or out_dir.resolve().name, train, val, rate, whole[-1] if whole.size else None, recipe_of(out_dir)
    )


def read_all(out_dirs: Sequence[Path], called: Sequence[str] | None = None) -> list[Curves]:
    """The curves of several runs, by the names of their folders, or where two have one name by what they are called.

    Without `called` that is their paths.
    """
    called = called or [str(path) for path in out_dirs]
    names = [path.resolve().name for path in out_dirs]
    unique = len(set(names)) == len(names)
    return [read_curves(path, name) for path, name in zip(out_dirs, names if unique else called, strict=True)]


def loss_figure(runs: Sequence[Curves]) -> Figure:
    """Training loss, smoothed over what it was, and validation loss; the learning rate below.

    Of runs that differ in the seed alone, the band of their validation losses.
    """
    figure = blank_figure(figsize=(8, 4.8))
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    # An automatic layout would draw all of it twice, at the end of every run.
    figure.subplots_adjust(left=0.095, right=0.885 if len(runs) == 1 else 0.98, bottom=0.1, top=0.94, hspace=0.16)
    bands = by_recipe(runs)
    single = [band[0] for band in bands.values() if len(band) == 1]
    if len(runs) == 1:
        _draw_training(losses, runs[0], "-", OURS, 1.2)
        draw_validation(losses, {runs[0].name: runs}, [("-", ALARM)])
        _label_ends(losses, runs[0])
        whole = "" if runs[0].whole is None else f": {runs[0].whole:.4f} nats per token over the whole validation split"
        losses.set_title(runs[0].name + whole, loc="left", fontsize=10)
    else:
        for (dashes, colour), band in zip(styles(), bands.values(), strict=False):
            if len(band) == 1:
                _draw_training(losses, band[0], dashes, colour, 0.9)
        draw_validation(losses, bands, styles())
        losses.legend(frameon=False, fontsize=9)
        about = ["dots: validation"]
        about += ["thin lines: training, smoothed"] * bool(single)
        about += ["bands: from the least to the largest of the seeds"] * (len(bands) < len(runs))
        losses.set_title("; ".join(about), loc="left", fontsize=10)
    for (dashes, colour), band in zip(styles(), bands.values(), strict=False):
        rates.plot(*band[0].learning_rate, dashes, color="0.35" if len(runs) == 1 else colour, linewidth=1.2)
    losses.set_ylabel("loss (nats per token)")
    losses.set_ylim(*loss_range([*(run.val for run in runs), *(run.train for run in single)]))
    rates.set(xlabel="updates made", ylabel="learning\nrate")
    rates.set_ylim(0, None)
    rates.ticklabel_format(axis="y", scilimits=(-2, 2), useMathText=True)
    for axes in (losses, rates):
        tidied(axes)
        axes.margins(x=0.01)
    figure.align_ylabels()
    return figure


def by_recipe(runs: Sequence[Curves]) -> dict[str, list[Curves]]:
    """Runs that differ in the seed alone side by side, by the name of the first and how many there are."""
    alike: dict[str, list[Curves]] = {}
    for i, run in enumerate(runs):
        alike.setdefault(run.recipe or f"only {i}", []).append(run)
    return {_name_of(band): band for band in alike.values()}


def _name_of(band: Sequence[Curves]) -> str:
    first = band[0].name
    if len(band) == 1:
        return first
    shared = re.sub(r"(^|[,/])seed=\d+", "", first)  # as a sweep names its runs
    return f"{shared}, {len(band)} seeds" if shared else f"{len(band)} seeds"


def draw_validation(axes: Axes, bands: Mapping[str, Sequence[Curves]], styles: Iterable[tuple[str, str]]) -> None:
    """Validation losses: of a single run a line, of several their mean, and a band from the least to the largest."""
    for (name, band), (dashes, colour) in zip(bands.items(), styles, strict=False):
        steps = sorted(set.intersection(*(set(run.val.steps.tolist()) for run in band)))
        losses = np.array([run.val.values[np.isin(run.val.steps, steps)] for run in band])
        axes.plot(
            steps, losses.mean(axis=0), dashes, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=name
        )
        if len(band) > 1:
            axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def _draw_training(axes: Axes, run: Curves, dashes: str, colour: str, width: float) -> None:
    axes.plot(*run.train, color=colour, linewidth=0.7, alpha=0.22)
    axes.plot(run.train.steps, smoothed(run.train.values), dashes, color=colour, linewidth=width)


def styles() -> Iterator[tuple[str, str]]:
    """Dashes and colours for one curve after the other."""
    return itertools.cycle(itertools.product(("-", "--"), PALETTE))


def leave_figure(out_dir: Path) -> None:
    """Draw the run that has ended in `out_dir`; a figure that can't be had leaves the run as good as it is."""
    try:
        run = read_curves(out_dir)
        if len(run.val.steps) > 1:  # a curve has two ends
            write_figure(out_dir / FIGURE_FILE, loss_figure([run]))
    except Exception as error:  # of a library that draws, on whatever machine
        again = pasteable("plot", out_dir)
        print(f"{out_dir / FIGURE_FILE} could not be drawn ({in_short(error)}); to try again: {again}", file=sys.stderr)


def smoothed(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The mean over a window around each value, which is cut off at the ends."""
    window = np.ones(min(len(values), 1 + 2 * round(len(values) * _SMOOTHED_OVER / 2)))
    if len(window) < 2:
        return values
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _label_ends(axes: Axes, run: Curves) -> None:
    """Name each curve where it ends, in its colour; the lower one below."""
    curves = (("train", OURS, smoothed(run.train.values)), ("val", ALARM, run.val.values))
    ends = [(values[-1], name, colour) for name, colour, values in curves if len(values)]
    last = max((*run.train.steps, *run.val.steps), default=0)
    for place, (value, name, colour) in zip(("top", "bottom"), sorted(ends), strict=False):
        axes.annotate(
            f"{name} {value:.3f}", (last, value), (8, -2 if place == "top" else 2), textcoords="offset points",
            color=colour, fontsize=10, va=place, annotation_clip=False,
        )  # fmt: skip


def loss_range(drawn: Iterable[Series]) -> tuple[float, float]:
    """Of the losses to show: without the plunge of the first updates, which would flatten all that follows."""
    shown: list[Any] = []
    for steps, values in drawn:
        late = steps > 0.03 * max(steps, default=0)
        shown.append(values[late] if late.any() else values)
    values = np.concatenate([part[np.isfinite(part)] for part in shown])
    if not values.size:
        return 0.0, 1.0
    margin = 0.05 * (values.max() - values.min()) or 0.1
    return values.min() - margin, values.max() + margin
