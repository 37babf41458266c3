"""What an evaluation came to: a table in Markdown with a column a model, and all of it in JSON."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nanogpt_jax.evaluate.figures import Figure, Measured, differences, error
from nanogpt_jax.evaluate.tasks import LastWords, Pairs, Task, Text
from nanogpt_jax.run import reports
from nanogpt_jax.run.accelerator import describe

_OTHER_TOKENS = "other tokens"
_MOST_DECIMALS = 6


class Result(NamedTuple):
    """What the models came to on one file, in their order.

    `cut` are the items of each whose context was cut; `alike` says whose tokens are those of the first model.
    """

    task: Task
    measured: Sequence[Measured]
    cut: Sequence[int]
    alike: Sequence[bool]


def kind_of(task: Task) -> str:
    """The flag that names such a file."""
    if isinstance(task, Text):
        return "text"
    return "pairs" if isinstance(task, Pairs) else "lambada" if isinstance(task, LastWords) else "hellaswag"


def told(results: Sequence[Result], models: Sequence[str]) -> str:
    """The table for the terminal, what it is of, and what was cut."""
    head = ["file", "figure", models[0]]
    for name in models[1:]:
        head += [name, f"less {models[0]}"]
    lines = [line for result in results for line in _lines(result)]
    about = "± standard error" + (f"; less {models[0]}: the difference, paired" if models[1:] else "")
    return "\n".join([reports.markdown(head, lines), about, *_notes(results, models)])


def _lines(result: Result) -> list[list[str]]:
    lines = []
    for name, first in result.measured[0].figures.items():
        cells = [result.task.path.name, name, with_error(first)]
        over = differences(result.measured, name, result.alike)
        for each, less in zip(result.measured[1:], over[1:], strict=True):
            cells += [with_error(each.figures[name]), _OTHER_TOKENS if less is None else with_error(less, "+")]
        lines.append(cells)
    return lines


def _notes(results: Sequence[Result], models: Sequence[str]) -> list[str]:
    notes = []
    for task, _, cut, _ in results:
        if not isinstance(task, Text):
            number = len(task.items)
            notes.append(f"{task.path.name}: {number:,} item{'' if number == 1 else 's'} ({kind_of(task)})")
            notes += [
                f"{task.path.name}: {count:,} of {number:,} contexts are longer than {model} reads, and were cut at "
                "their left"
                for count, model in zip(cut, models, strict=True)
                if count
            ]
    return notes


def with_error(figure: Figure, sign: str = "") -> str:
    """A figure and its standard error, to the second digit of that; without one, to four decimals."""
    spread = error(figure.pulls)
    decimals = 4 if not spread else min(_MOST_DECIMALS, max(0, 1 - math.floor(math.log10(spread))))
    return f"{figure.value:{sign},.{decimals}f}" + ("" if spread is None else f" ± {spread:,.{decimals}f}")


def document(results: Sequence[Result], models: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    """All figures and the scores of every item, as JSON has them."""
    return {
        "command": sys.argv,
        "models": list(models),
        "settings": settings,
        "device": {"platform": jax.default_backend(), "kind": describe(), "processor": platform.machine()},
        "versions": reports.versions(),
        "results": [_of_file(result, models) for result in results],
    }


def _of_file(result: Result, models: Sequence[str]) -> dict[str, Any]:
    by_model = []
    for index, (model, measured) in enumerate(zip(models, result.measured, strict=True)):
        figures = {}
        for name, figure in measured.figures.items():
            less = differences(result.measured, name, result.alike)[index]
            figures[name] = _number(figure) | ({} if less is None else {"less_first": _number(less)})
        by_model.append({"model": model, "figures": figures, "cut": result.cut[index], "items": measured.items})
    return {"file": str(result.task.path), "kind": kind_of(result.task), "models": by_model}


def _number(figure: Figure) -> dict[str, float | None]:
    return {"value": figure.value, "error": error(figure.pulls)}


def write_json(path: Path, *told: Any) -> None:
    """Write the document of an evaluation."""
    reports.write_json(path, document(*told))
