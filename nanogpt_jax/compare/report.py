"""What a comparison came to: a table in Markdown, all of it in JSON, and both loss curves as a figure."""

from __future__ import annotations

import math
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from nanogpt_jax.compare.parity import LOSSES, Comparison, Row
from nanogpt_jax.core.config import Settings
from nanogpt_jax.run import reports
from nanogpt_jax.run.accelerator import describe
from nanogpt_jax.run.reports import batch_in_words, model_in_words

_SMALLEST_GAP = 1e-8  # drawn for none, which a logarithmic axis cannot show


def folded(rows: Sequence[Row]) -> list[Row]:
    """The rows with the gradients of one kind of tensor in one: the worst of all layers."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kind = re.sub(r"^h_\d+/", "h_*/", row.at) if row.quantity == "gradient" else row.quantity
        kinds.setdefault(kind, []).append(row)
    return [max(same, key=lambda row: (math.isnan(row.relative), row.relative)) for same in kinds.values()]


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    head = ("quantity", "largest difference at", "absolute", "relative", "tolerance", "verdict")
    return reports.markdown(head, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    tolerance = (
        "none" if row.tolerance is None else f"{row.tolerance:.0e} {row.measure}" if row.tolerance else "identical"
    )
    absolute = str(row.absolute) if isinstance(row.absolute, int) else f"{row.absolute:.1e}"
    return row.quantity, row.at, absolute, f"{row.relative:.1e}", tolerance, row.verdict


def write_json(path: Path, comparison: Comparison, settings: Settings, reference: str, source: str) -> None:
    """Everything about a comparison; differences that are not finite are null."""
    document = {
        "command": sys.argv,
        "reference": reference,
        "batches": source,
        "settings": vars(settings),
        "device": {"platform": jax.default_backend(), "kind": describe(), "processor": platform.machine()},
        "versions": reports.versions(),
        "missed": comparison.missed,
        "rows": [row._asdict() | {"verdict": row.verdict} for row in comparison.rows],
        "losses": {"here": comparison.our_losses.tolist(), "reference": comparison.reference_losses.tolist()},
    }
    reports.write_json(path, document)


def write_plot(path: Path, comparison: Comparison, settings: Settings, reference: str, source: str) -> None:
    """Both loss curves over each other, and under them how far they are apart."""
    program = re.sub(r" \(.*\)$", "", reference)
    theirs, ours = comparison.reference_losses, comparison.our_losses
    gaps = np.abs(ours - theirs)
    bound = next(row.tolerance for row in comparison.rows if row.quantity == LOSSES)
    figure = reports.blank_figure(figsize=(8, 6), layout="constrained")
    curves, difference = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    # Told apart by width and dashes as well as by colour.
    curves.plot(theirs, color=reports.THEIRS, linewidth=5, alpha=0.7, label=program)
    curves.plot(ours, color=reports.OURS, linewidth=1.5, linestyle=(0, (4, 2)), label="nanogpt_jax")
    curves.set_ylabel("training loss (nats per token)")
    curves.set_title(
        f"{model_in_words(settings)}\n{batch_in_words(settings)} from {source}, {settings.dtype}", fontsize=10
    )
    curves.legend()
    difference.semilogy(
        np.maximum(gaps, _SMALLEST_GAP), ".", color=reports.OURS, label="|difference|, none at the bottom"
    )
    difference.axhline(bound, color=reports.ALARM, linestyle="--", label=f"tolerance {bound:g}")
    difference.set(xlabel="updates made", ylabel="difference (nats)", ylim=(_SMALLEST_GAP / 2, None))
    difference.xaxis.get_major_locator().set_params(integer=True)
    difference.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    for axes in (curves, difference):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    reports.write_figure(path, figure)
