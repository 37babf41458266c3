"""The benchmark's results as tables in Markdown and as a figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from nanogpt_jax.bench_measure import BATCH, TEXTS_AT_ONCE, WITHIN, Case, Limit, Result, SideResult, Start
from nanogpt_jax.report import ALARM, THEIRS, THIRD, markdown, write_figure
from nanogpt_jax.report import OURS as OUR_COLOUR


def training_table(result: Result) -> str:
    """A column for each side, a row for each quantity."""
    [case] = result.cases
    sides = case.sides
    start = result.start
    rows = [
        ("time per update, median", *(in_time(side.median_seconds) for side in sides)),
        ("least .. most of the rounds", *(_spread([in_time(s) for s in _ends(side.seconds)]) for side in sides)),
        ("tokens per second", *(f"{side.tokens_per_second:,.0f}" for side in sides)),
    ]
    if len(sides) > 1:
        rows += [
            ("ours is times as fast, median", *(_ratio(side) for side in sides)),
            ("the same, round by round", *(_each_round(side) for side in sides)),
        ]
    rows += [
        (f"share of {in_rate(case.limit)}", *(f"{side.share_of_limit:.0%}" for side in sides)),
        ("peak memory", *(in_memory(side.peak_memory) for side in sides)),
        ("process start to first update", _started(start), *(in_time(side.first_seconds) for side in sides[1:])),
        ("of that, tracing and compiling", _compiled(start), *("" for _ in sides[1:])),
    ]
    notes = [
        f"One token is {case.per_token / 1e6:,.2f} million floating-point operations (6N + 12LHQT); the limit: "
        f"{case.limit.source}. The first update is without the evaluation that train.py makes before it."
    ]
    best = min(sides[1:], key=lambda side: side.median_seconds, default=None)
    if best is not None:
        notes.append(f"Against the best of the others, {best.name}: {best.ratio:.2f} times as fast as it.")
    return _told(("training", *(side.name for side in sides)), rows, [*notes, *_unavailable(result)])


def sampling_table(result: Result) -> str:
    """A row for each case, columns for each side."""
    names = [side.name for side in result.cases[0].sides]
    head = ["tokens per second, median (least .. most)", *names]
    head += [f"times {name}, median (by round)" for name in names[1:]]
    head += ["share of limit, ours"]
    rows = []
    for case in result.cases:
        speeds = [_speed(case, side) for side in case.sides]
        gains = [f"{side.ratio:.2f} ({_each_round(side)})" for side in case.sides[1:]]
        limit = f"{case.sides[0].share_of_limit:.0%} of {in_rate(case.limit)}"
        rows.append((case.name, *speeds, *gains, limit))
    by_name = {case.name: case for case in result.cases}
    gains = [
        f"{one.name} {many.tokens_per_second / one.tokens_per_second:.2f}"
        for one, many in zip(by_name[WITHIN].sides, by_name[BATCH].sides, strict=True)
    ]
    memory = [f"{side.name} {in_memory(side.peak_memory)}" for side in result.cases[-1].sides]
    limits = {case.limit.unit: case.limit for case in result.cases}
    notes = [
        f"{TEXTS_AT_ONCE} texts at once give so many times the tokens per second of one: {', '.join(gains)}.",
        f"Peak memory: {', '.join(memory)}.",
        "What a token asks for: within the block the weights, once for all texts, and the keys and values of the "
        "positions before it; past it the operations that read the block anew.",
        *(f"The limit in {limit.unit}: {limit.source}." for limit in limits.values()),
    ]
    return _told(head, rows, [*notes, *_unavailable(result)])


def write_plot(path: Path, results: Sequence[Result], title: str) -> None:
    """For each case the speed of all sides round by round, and below it how many times as fast ours was."""
    from matplotlib.figure import Figure

    cases = [case for result in results for case in result.cases]
    paired = any(len(case.sides) > 1 for case in cases)
    figure = Figure(figsize=(1.2 + 3.6 * len(cases), 6 if paired else 3.8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(2 if paired else 1, len(cases), squeeze=False, sharex="col")
    colours = (OUR_COLOUR, THEIRS, THIRD)
    for column, case in enumerate(cases):
        above = grid[0, column]
        above.set_title(case.name, fontsize=10)
        for side, colour in zip(case.sides, colours, strict=False):
            rates = [side.tokens_per_second * side.median_seconds / seconds for seconds in side.seconds]
            rounds = range(1, len(rates) + 1)
            above.plot(rounds, rates, "o-", color=colour, markersize=4, linewidth=1.2, label=side.name)
        above.set_ylim(0, None)
        if paired:
            below = grid[1, column]
            for side, colour in zip(case.sides[1:], colours[1:], strict=False):
                rounds = range(1, len(side.ratios) + 1)
                below.plot(rounds, side.ratios, "o-", color=colour, markersize=4, linewidth=1.2)
                below.axhline(side.ratio, color=colour, linewidth=1, linestyle="--")
                below.annotate(
                    f"{side.ratio:.2f}", (1, side.ratio), (4, 0), xycoords=("axes fraction", "data"),
                    textcoords="offset points", color=colour, va="center", fontsize=9,
                )  # fmt: skip
            below.axhline(1, color=ALARM, linewidth=1)
            below.set_ylim(0, None)
        grid[-1, column].set_xlabel("round")
        grid[-1, column].xaxis.get_major_locator().set_params(integer=True)
    grid[0, 0].set_ylabel("tokens per second")
    if paired:
        grid[1, 0].set_ylabel("ours is times as fast\n(dashed: median; red: as fast)")
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(frameon=False, fontsize=9)
    write_figure(path, figure)


def in_time(seconds: float) -> str:
    """With three digits, in the unit that suits."""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds / 1e-6)} µs"


def in_memory(size: int) -> str:
    """In MiB."""
    return f"{size / 2**20:,.0f} MiB"


def in_rate(limit: Limit) -> str:
    """A limit in units of 10^9."""
    return f"{limit.rate / 1e9:,.0f} G{limit.unit}"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _told(head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    return "\n\n".join([markdown(head, rows), *notes])


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _spread(ends: Sequence[str]) -> str:
    return " .. ".join(ends)


def _ratio(side: SideResult) -> str:
    return "" if side.ratio is None else f"{side.ratio:.2f}"


def _each_round(side: SideResult) -> str:
    return "" if side.ratios is None else " ".join(f"{ratio:.2f}" for ratio in side.ratios)


def _speed(case: Case, side: SideResult) -> str:
    tokens = side.tokens_per_second * statistics.median(side.seconds)
    slowest, fastest = (f"{_digits(tokens / seconds)}" for seconds in reversed(_ends(side.seconds)))
    return f"{_digits(side.tokens_per_second)} ({slowest} .. {fastest})"


def _started(start: Start) -> str:
    return f"{in_time(start.warm)} (cache empty: {in_time(start.cold)})"


def _compiled(start: Start) -> str:
    return f"{in_time(start.warm_compile)} (cache empty: {in_time(start.cold_compile)})"


def _unavailable(result: Result) -> list[str]:
    return [f"{name} was not measured: {why}." for name, why in result.unavailable.items()]
