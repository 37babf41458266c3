"""How the cost of an update grows with the block, the width and the batch: a bad law shows before it hurts.

One of the three varies and the others stay at a base shape. Memory is what the compiled program says it takes
(`memory_analysis`), which is exact and the same in every run: arguments (parameters, moments, batch), results and
temporary memory, without the libraries.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nanogpt_jax.bench.jax_side import compiled, device_facts, training_of
from nanogpt_jax.bench.measure import note
from nanogpt_jax.bench.report import in_memory, in_time
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.train_step import Batch
from nanogpt_jax.run.accelerator import use_accelerator
from nanogpt_jax.run.build import build_model, resolve_dtype
from nanogpt_jax.run.reports import ALARM, OURS, blank_figure, markdown, write_figure

BASE: Mapping[str, Any] = dict(
    n_layer=2, n_head=4, n_embd=128, block_size=256, batch_size=4, vocab_size=65, gradient_accumulation_steps=1
)
AXES: Mapping[str, Sequence[int]] = {
    "block_size": (64, 128, 256, 512, 1024, 2048),
    "n_embd": (128, 192, 256, 384, 512, 768),
    "batch_size": (1, 2, 4, 8, 16, 32, 64),
}
_LEAST_UPDATES = 3


@dataclass(frozen=True)
class Cost:
    """What one update costs: seconds (at best), and bytes as the compiled program has them."""

    size: int  # of the axis that varies
    tokens: int  # in an update
    seconds: float
    temporary_bytes: int
    bytes: int  # with arguments and results


@dataclass(frozen=True)
class Growth:
    """The costs along one axis, and the exponents of their laws: cost ~ size ** exponent."""

    axis: str
    costs: list[Cost]
    time_exponent: float
    memory_exponent: float


def measure_growth(settings: Settings, axes: Mapping[str, Sequence[int]], seconds: float) -> list[Growth]:
    """The cost of an update along each axis, the other sizes as in `settings`; each size is timed for `seconds`."""
    platform = use_accelerator(settings.accelerator)
    growths = []
    for axis, sizes in axes.items():
        costs = []
        for size in sizes:
            note(f"{axis}={size}")
            sized: dict[str, Any] = {axis: size}
            costs.append(_cost(dataclasses.replace(settings, **sized), size, platform, seconds))
        times = exponent(sizes, [cost.seconds for cost in costs])
        memory = exponent(sizes, [cost.temporary_bytes for cost in costs])
        growths.append(Growth(axis, costs, times, memory))
    return growths


def facts(settings: Settings) -> dict[str, Any]:
    """What it was measured on."""
    return device_facts(resolve_dtype(settings.dtype, jax.default_backend()).name)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The k of cost ~ size ** k by least squares of the logarithms, over the upper half of the sizes.

    In the lower half what every update costs, whatever its size, hides the law.
    """
    upper = slice(len(sizes) // 2, None)
    x, y = np.log(sizes[upper]), np.log(costs[upper])
    return float(np.polyfit(x, y, 1)[0])


def _cost(settings: Settings, size: int, platform: str, least_seconds: float) -> Cost:
    vocab_size = settings.vocab_size or BASE["vocab_size"]
    state, step = training_of(build_model(settings, vocab_size, platform), settings)
    shape = (settings.batch_size, settings.block_size)
    tokens = np.random.default_rng(settings.seed).integers(vocab_size, size=shape, dtype=np.int32)
    batch = Batch(tokens, tokens)
    program, _ = compiled(step, state, batch)
    memory = program.memory_analysis()
    seconds: list[float] = []
    while len(seconds) <= _LEAST_UPDATES or sum(seconds[1:]) < least_seconds:
        start = time.perf_counter()
        state, _ = jax.block_until_ready(program(state, batch))
        seconds.append(time.perf_counter() - start)
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes
    return Cost(size, math.prod(shape), min(seconds[1:]), temporary, temporary + kept)


def growth_tables(growths: Sequence[Growth]) -> str:
    """A table for each axis, its laws in a line below it."""
    head = ("time per update, least", "time per token", "temporary memory", "all memory of an update")
    parts = []
    for growth in growths:
        rows = [
            (
                str(cost.size),
                in_time(cost.seconds),
                in_time(cost.seconds / cost.tokens),
                in_memory(cost.temporary_bytes),
                in_memory(cost.bytes),
            )
            for cost in growth.costs
        ]
        law = (
            f"Time per update ~ {growth.axis}^{growth.time_exponent:.2f}, temporary memory ~ "
            f"{growth.axis}^{growth.memory_exponent:.2f}, over the upper half of the sizes."
        )
        parts += [markdown((growth.axis, *head), rows), law]
    return "\n\n".join(parts)


def write_growth_plot(path: Path, growths: Sequence[Growth], title: str) -> None:
    """Time and temporary memory over each axis, both logarithmic, with the fitted laws."""
    figure = blank_figure(figsize=(1 + 3.4 * len(growths), 6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(2, len(growths), squeeze=False, sharex="col", sharey="row")
    for column, growth in enumerate(growths):
        sizes = [cost.size for cost in growth.costs]
        series = (
            ([1e3 * cost.seconds for cost in growth.costs], growth.time_exponent),
            ([cost.temporary_bytes / 2**20 for cost in growth.costs], growth.memory_exponent),
        )
        for axes, (values, power) in zip(grid[:, column], series, strict=True):
            upper = slice(len(sizes) // 2, None)
            middle = np.exp(np.mean(np.log(values[upper])) - power * np.mean(np.log(sizes[upper])))
            axes.loglog(sizes, middle * np.array(sizes, float) ** power, "--", color=ALARM, linewidth=1.2)
            axes.loglog(sizes, values, "o", color=OURS, markersize=5)
            axes.text(0.05, 0.9, f"~ {growth.axis}$^{{{power:.2f}}}$", transform=axes.transAxes, color=ALARM)
            axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
            axes.set_xticks([], minor=True)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        grid[1, column].set_xlabel(growth.axis)
    grid[0, 0].set_ylabel("time per update (ms)")
    grid[1, 0].set_ylabel("temporary memory (MiB)")
    write_figure(path, figure)
