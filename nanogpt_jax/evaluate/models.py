"""Models asked all items of all files, and what each came to.

All models are opened and all items encoded before anything is computed, so that what can be refused is refused at once;
then one model after the other lies in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from nanogpt_jax.cli.texts import open_source
from nanogpt_jax.core.config import Settings
from nanogpt_jax.data.prepared import is_same_tokenizer
from nanogpt_jax.data.sources import progress
from nanogpt_jax.data.tokenizer import Tokenizer
from nanogpt_jax.evaluate import figures, passages
from nanogpt_jax.evaluate.figures import Measured
from nanogpt_jax.evaluate.passages import Passage, Reader
from nanogpt_jax.evaluate.report import Result
from nanogpt_jax.evaluate.scores import Scores, score
from nanogpt_jax.evaluate.settings import EvaluateSettings
from nanogpt_jax.evaluate.tasks import Choices, Task, Text
from nanogpt_jax.run.build import build_model
from nanogpt_jax.weights.loading import Weights


class Opened(NamedTuple):
    """A model that is ready to be loaded."""

    name: str
    weights: Weights
    tokenizer: Tokenizer
    settings: Settings


class Plan(NamedTuple):
    """What one model is asked on one file, how many contexts were cut, and what follows from its scores."""

    passages: list[Passage]
    cut: int
    measured: Callable[[Sequence[Scores]], Measured]


def evaluate(models: Sequence[str], tasks: Sequence[Task], settings: EvaluateSettings) -> list[Result]:
    """A result for each task, with what each model came to on it.

    Raises `UserError` for a model that is none or has no tokenizer, and for what a model cannot read.
    """
    opened = [_opened(name, settings) for name in models]
    plans = [[_plan(task, each, settings) for task in tasks] for each in opened]
    measured = [_measured(each, of_model, settings.batch_size) for each, of_model in zip(opened, plans, strict=True)]
    alike = [is_same_tokenizer(opened[0].tokenizer.to_json(), each.tokenizer.to_json()) for each in opened]
    return [
        Result(task, [each[i] for each in measured], [each[i].cut for each in plans], alike)
        for i, task in enumerate(tasks)
    ]


def _opened(name: str, settings: EvaluateSettings) -> Opened:
    weights, tokenizer = open_source(name, settings.which, settings.data_dir)
    return Opened(name, weights, tokenizer, Settings(**weights.settings, dtype=settings.dtype))


def _plan(task: Task, model: Opened, settings: EvaluateSettings) -> Plan:
    reader = Reader(model.name, model.tokenizer, model.settings.block_size, settings.unknown)
    if isinstance(task, Text):
        windows = passages.of_text(task, reader, settings.stride)
        return Plan(windows.passages, 0, partial(figures.of_windows, windows))
    if isinstance(task, Choices):
        return Plan(*passages.of_choices(task, reader), partial(figures.of_endings, task))
    return Plan(*passages.of_completions(task, reader), partial(figures.of_completions, task))


def _measured(model: Opened, plans: Sequence[Plan], batch_size: int) -> list[Measured]:
    """What a model, which is in memory for so long, came to on each task."""
    module = build_model(model.settings, model.weights.vocab_size, jax.default_backend())
    params: Any = jax.device_put(model.weights.load(module, None))
    with progress(model.name, sum(len(plan.passages) for plan in plans)) as advance:
        return [plan.measured(score(module, params, plan.passages, batch_size, advance)) for plan in plans]
