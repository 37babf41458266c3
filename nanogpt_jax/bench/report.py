"""The benchmark's results as tables in Markdown and as a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nanogpt_jax.bench.measure import PAST, ROLLING, WITHIN, Limit, Result, SideResult
from nanogpt_jax.run.reports import OURS as OUR_COLOUR
from nanogpt_jax.run.reports import THEIRS, THIRD, blank_figure, markdown, write_figure


def training_tables(result: Result) -> str:
    """A column for each side and a row for each quantity; then the ratios round by round."""
    [case] = result.cases
    sides = case.sides
    rows = [
        ("time per update, median", *(in_time(side.median_seconds) for side in sides)),
        ("least .. most of the rounds", *(_spread(side.seconds, in_time) for side in sides)),
        ("tokens per second", *(in_digits(side.tokens_per_second) for side in sides)),
        ("ours is so many times as fast, median", *(_ratio(side) for side in sides)),
        (f"share of {in_rate(case.limit)}", *(f"{side.share_of_limit:.0%}" for side in sides)),
        ("peak memory of the process", *(in_memory(side.peak_memory) for side in sides)),
    ]
    if result.start is not None:
        start, of_others = result.start, ["" for _ in sides[1:]]
        rows += [
            ("the same, compilation cache empty", in_memory(start.cold_peak_memory), *of_others),
            (
                "process start to first update",
                in_time(start.warm),
                *(in_time(side.first_seconds) for side in sides[1:]),
            ),
            ("the same, compilation cache empty", in_time(start.cold), *of_others),
            ("of that, tracing and compiling", in_time(start.cold_compile), *of_others),
        ]
    notes = [
        f"A token takes {case.per_token / 1e6:,.2f} million floating-point operations, forward and backward (6N + "
        f"12LHQT); the limit is the rate of {case.limit.source}. Before its first update train.py evaluates, which is "
        "not counted here."
    ]
    best = min(sides[1:], key=lambda side: side.median_seconds, default=None)
    if best is not None:
        notes.append(f"The best of the others is {best.name}: ours is {best.ratio:.2f} times as fast.")
    return _told(result, ("training", *(side.name for side in sides)), rows, notes)


def sampling_tables(result: Result) -> str:
    """A row for each case and columns for each side; then the ratios round by round."""
    names = [side.name for side in result.cases[0].sides]
    head = ["tokens per second, median (least .. most)", *names]
    head += [f"ours to {name}" for name in names[1:]] + ["our share of the limit"]
    rows = [
        (
            case.name,
            *(f"{in_digits(side.tokens_per_second)} ({_spread(_rates(side), in_digits)})" for side in case.sides),
            *["" for _ in names[len(case.sides) :]],
            *(_ratio(side) for side in case.sides[1:]),
            *["" for _ in names[len(case.sides) :]],
            f"{case.sides[0].share_of_limit:.0%} of {in_rate(case.limit)}",
        )
        for case in result.cases
    ]
    by_name = {case.name: case for case in result.cases}
    gains = []
    for case in result.cases:
        if case.name in (WITHIN, PAST, ROLLING):
            continue
        pairs = zip(by_name[WITHIN].sides, case.sides, strict=True)
        each = [f"{many.tokens_per_second / one.tokens_per_second:.2f} in {one.name}" for one, many in pairs]
        texts = case.name.partition(",")[0]
        gains.append(f"{texts} at once give so many times the tokens per second of one: {', '.join(each)}.")
    memory = [f"{in_memory(side.peak_memory)} in {side.name}" for side in result.cases[0].sides]
    limits = {case.limit.unit: case.limit.source for case in result.cases}
    notes = [
        f"{' '.join(gains)} Peak memory of the process: {', '.join(memory)}.",
        "A token within the block must read the weights, once for all texts, and the keys and values before it; past "
        "the block it must read all of that anew, which is counted in operations. The limits are the rates of "
        f"{' and of '.join(limits.values())}.",
    ]
    return _told(result, head, rows, notes)


def write_plot(path: Path, results: Sequence[Result], title: str) -> None:
    """For each case the speed of all sides round by round, and below it how many times as fast ours was."""
    cases = [case for result in results for case in result.cases]
    named = {result.cases[0].name for result in results}  # the sides of a task have the same names in all its cases
    paired = any(len(case.sides) > 1 for case in cases)
    figure = blank_figure(figsize=(1.2 + 3.6 * len(cases), 6 if paired else 3.8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(2 if paired else 1, len(cases), squeeze=False, sharex="col")
    colours = (OUR_COLOUR, THEIRS, THIRD)
    for column, case in enumerate(cases):
        above = grid[0, column]
        above.set_title(case.name, fontsize=10)
        for side, colour in zip(case.sides, colours, strict=False):
            rates = _rates(side)
            rounds = range(1, len(rates) + 1)
            above.plot(rounds, rates, "o-", color=colour, markersize=4, linewidth=1.2, label=side.name)
        above.set_ylim(0, None)
        if case.name in named:
            above.legend(frameon=False, fontsize=9)
        if paired:
            below = grid[1, column]
            for side, colour in zip(case.sides[1:], colours[1:], strict=False):
                ratios = side.ratios or []
                below.plot(range(1, len(ratios) + 1), ratios, "o-", color=colour, markersize=4, linewidth=1.2)
                below.axhline(side.ratio, color=colour, linewidth=1, linestyle="--")
                below.annotate(
                    f"{side.ratio:.2f}", (1, side.ratio), (4, 0), xycoords=("axes fraction", "data"),
                    textcoords="offset points", color=colour, va="center", fontsize=9,
                )  # fmt: skip
            below.axhline(1, color="0.3", linewidth=1)
            below.set_ylim(0, None)
        grid[-1, column].set_xlabel("round")
        grid[-1, column].xaxis.get_major_locator().set_params(integer=True)
    grid[0, 0].set_ylabel("tokens per second")
    if paired:
        grid[1, 0].set_ylabel("ours is times as fast\n(dashed: median; grey: as fast)")
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure)


def in_time(seconds: float) -> str:
    """With three digits, in the unit that suits."""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{in_digits(seconds / size)} {unit}"
    return f"{in_digits(seconds / 1e-6)} µs"


def in_memory(size: int) -> str:
    """In MiB."""
    return f"{size / 2**20:,.0f} MiB"


def in_rate(limit: Limit) -> str:
    """A limit in units of 10^9."""
    return f"{limit.rate / 1e9:,.0f} G{limit.unit}"


def in_digits(value: float) -> str:
    """With three digits, or whole."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _told(result: Result, head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """The table of a result, what there is to say of it, and the table of its ratios."""
    absent = [f"{name} was not measured: {why}." for name, why in result.unavailable.items()]
    ratios = [
        (f"{case.name}, to {side.name}", _ratio(side), *(f"{ratio:.2f}" for ratio in side.ratios or ()))
        for case in result.cases
        for side in case.sides[1:]
    ]
    parts = [markdown(head, rows), *notes, *absent]
    if ratios:
        rounds = (str(index + 1) for index in range(len(ratios[0]) - 2))
        parts.append(markdown(("how many times as fast, round by round", "median", *rounds), ratios))
    return "\n\n".join(parts)


def _rates(side: SideResult) -> list[float]:
    """Tokens per second of every round."""
    return [side.tokens_per_second * side.median_seconds / seconds for seconds in side.seconds]


def _spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    return f"{shown(min(values))} .. {shown(max(values))}"


def _ratio(side: SideResult) -> str:
    return "" if side.ratio is None else f"{side.ratio:.2f}"
