"""Scores to figures: means and what follows from them, each with what every part adds, and so with standard errors.

A figure is a mean, a ratio of sums, or a function of one. To first order each of N parts of the data (an item, or a
piece of a text) pulls it by some amount away from where it is, and the pulls add up to nothing. The standard error is
that of a sum of N independent pulls; that of a difference of two models takes the differences of their pulls, so that
what is hard for both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from nanogpt_jax.evaluate.passages import Windows
from nanogpt_jax.evaluate.scores import Scores
from nanogpt_jax.evaluate.tasks import Choices, LastWords, Pairs


class Figure(NamedTuple):
    """A figure of one model.

    `pulls` are what each of N parts changes of `value`, to first order. A figure that is `per_token` says nothing
    beside that of a model with other tokens.
    """

    value: float
    pulls: Float[np.ndarray, " N"]
    per_token: bool = False


class Measured(NamedTuple):
    """What a model came to on a file: figures by their names, and the scores of each item."""

    figures: dict[str, Figure]
    items: list[dict[str, Any]]


def ratio(sums: Any, weights: Any) -> Figure:
    """The sum of `sums` over the sum of `weights`, each (N,); with weights of one, a mean."""
    sums, weights = np.asarray(sums, np.float64), np.broadcast_to(np.asarray(weights, np.float64), np.shape(sums))
    value = sums.sum() / weights.sum()
    return Figure(float(value), (sums - value * weights) / weights.sum())


def exponential(figure: Figure, per_token: bool) -> Figure:
    """A perplexity of a mean in nats."""
    value = math.exp(min(figure.value, 700.0))  # beyond which there is no float64
    return Figure(value, value * figure.pulls, per_token)


def error(pulls: Float[np.ndarray, " N"]) -> float | None:
    """The standard error that follows from the pulls of N parts; None of a single one."""
    n = len(pulls)
    return math.sqrt(n / (n - 1) * float(np.square(pulls).sum())) if n > 1 else None


def difference(figure: Figure, first: Figure) -> Figure:
    """By how much a model's figure is above the first one's, part by part."""
    return Figure(figure.value - first.value, figure.pulls - first.pulls)


def of_windows(windows: Windows, scores: Sequence[Scores]) -> Measured:
    """Bits per byte and perplexity of a text; its parts are pieces of the text, the same for every model.

    Bits per byte are all nats over ln 2 and the text's bytes, perplexity is the exponential of nats per token.
    """
    parts = len(windows.sizes)
    nats = np.bincount(windows.segments, -np.concatenate([s.log_probs for s in scores]).astype(np.float64), parts)
    tokens = np.bincount(windows.segments, minlength=parts)
    figures = {
        "bits per byte": ratio(nats / math.log(2), windows.sizes),
        "perplexity per token": exponential(ratio(nats, tokens), per_token=True),
    }
    columns = {"bytes": windows.sizes, "tokens": tokens, "nats": nats}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return Measured(figures, [dict(zip(columns, row, strict=True)) for row in rows])


def of_endings(task: Choices, scores: Sequence[Scores]) -> Measured:
    """How often the right ending has the largest log-probability: summed, and for each of its UTF-8 bytes."""
    sums = iter(_sums(scores).tolist())
    items, by_sum, by_byte = [], [], []
    for item in task.items:
        log_probs = [next(sums) for _ in item.endings]
        per_byte = [log_prob / len(e.encode()) for log_prob, e in zip(log_probs, item.endings, strict=True)]
        chosen, chosen_norm = int(np.argmax(log_probs)), int(np.argmax(per_byte))
        by_sum.append(chosen == item.label)
        by_byte.append(chosen_norm == item.label)
        record = {"line": item.line, "label": item.label, "log_probs": log_probs}
        items.append({**record, "chosen": chosen, "chosen_norm": chosen_norm})
    return Measured({"acc": ratio(by_sum, 1), "acc_norm": ratio(by_byte, 1)}, items)


def of_completions(task: LastWords | Pairs, scores: Sequence[Scores]) -> Measured:
    """How often all tokens of a completion are the likeliest ones, and its perplexity: by last word, or by token."""
    sums, exact = _sums(scores), [bool(s.likeliest.all()) for s in scores]
    lengths = [len(s.log_probs) for s in scores]
    items = [
        {"line": item.line, "tokens": length, "log_prob": log_prob, "exact": is_exact}
        for item, length, log_prob, is_exact in zip(task.items, lengths, sums.tolist(), exact, strict=True)
    ]
    if isinstance(task, Pairs):
        return Measured(
            {"exact match": ratio(exact, 1), "perplexity per token": exponential(ratio(-sums, lengths), True)}, items
        )
    return Measured({"accuracy": ratio(exact, 1), "perplexity per word": exponential(ratio(-sums, 1), False)}, items)


def _sums(scores: Sequence[Scores]) -> Float[np.ndarray, " N"]:
    return np.array([s.log_probs.sum(dtype=np.float64) for s in scores])


def differences(measured: Sequence[Measured], name: str, comparable: Sequence[bool]) -> list[Figure | None]:
    """Each model's difference to the first in the figure `name`; None where it says nothing, and for the first."""
    first = measured[0].figures[name]
    return [
        difference(each.figures[name], first) if index and (alike or not first.per_token) else None
        for index, (each, alike) in enumerate(zip(measured, comparable, strict=True))
    ]
