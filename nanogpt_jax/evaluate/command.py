"""`python -m nanogpt_jax.evaluate RUN|MODEL [RUN|MODEL ...]`: figures of models on files, side by side.

All files are read, all models opened and all items encoded before anything is computed, so that what can be refused is
refused at once; then one model after the other lies in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, no_type_check

import jax

from nanogpt_jax.cli import entry
from nanogpt_jax.cli.flags import Parser, add_fields, tell, translated
from nanogpt_jax.cli.sample import open_source
from nanogpt_jax.core.config import ACCELERATORS, DTYPES, WHICH, Settings, setting
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import require_32_bits, require_at_least, require_choice
from nanogpt_jax.data.prepared import is_same_tokenizer
from nanogpt_jax.data.sources import progress
from nanogpt_jax.data.tokenizer import Tokenizer
from nanogpt_jax.data.unknown import UNKNOWN
from nanogpt_jax.evaluate import figures, passages, report
from nanogpt_jax.evaluate.figures import Measured
from nanogpt_jax.evaluate.passages import Passage, Reader
from nanogpt_jax.evaluate.report import Result
from nanogpt_jax.evaluate.scores import Scores, score
from nanogpt_jax.evaluate.tasks import Choices, Task, Text, hellaswag_task, lambada_task, pairs_task, text_task
from nanogpt_jax.run import reports
from nanogpt_jax.run.accelerator import use_accelerator
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.faults import memory_in_one_line
from nanogpt_jax.weights.loading import Weights

_DESCRIPTION = """\
Measure models on files, and tell how sure that is: bits per byte of a text, which ending of HellaSwag's a model takes
for the likeliest, whether it has LAMBADA's last word, and whether it says a completion as it stands. After the first
model, each has a column of differences to the first, paired item by item.

  {evaluate} out-shakespeare-char --text=letters.txt
  {evaluate} gpt2 out-mine --text=wiki.txt --hellaswag=hellaswag_val.jsonl --lambada=lambada_test.jsonl
  {evaluate} out-base out-tuned --pairs=held-out.jsonl --json=evaluation.json

A file is named with --text, --hellaswag, --lambada or --pairs, each as often as there are files. A model is the folder
of a run, a nanoGPT ckpt.pt, a Hugging Face folder or gpt2..., as train.py --init_from takes it."""


@dataclass(frozen=True)
class EvaluateSettings:
    """The settings of an evaluation, beside models and files."""

    # fmt: off
    stride: int | None = setting(None, "evaluation", "tokens by which the windows of a text move on; none: half of block_size")
    limit: int | None = setting(None, "evaluation", "items of each file that are taken, the first ones; texts are taken whole; none: all")
    batch_size: int = setting(16, "evaluation", "passages that are read at once")
    unknown: Literal["refuse", "drop", "space"] = setting("refuse", "evaluation", "what becomes of characters that a vocabulary lacks", UNKNOWN)
    which: Literal["best", "last"] = setting("best", "model", "the weights of a run: with its lowest validation loss, or the last", WHICH)
    data_dir: str = setting("data", "model", "folder that holds the data sets, where a nanoGPT ckpt.pt names one for its tokens")
    accelerator: Literal["auto", "cpu", "gpu", "tpu"] = setting("auto", "system", "which kind of device to run on", ACCELERATORS)
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "system", "type of matrix products; auto: bfloat16 on GPU and TPU", DTYPES)
    # fmt: on

    def __post_init__(self) -> None:
        for name in ("stride", "limit", "batch_size"):
            if getattr(self, name) is not None:
                require_at_least(name, getattr(self, name), 1)
        require_32_bits(self)
        require_choice("unknown", self.unknown, UNKNOWN)
        require_choice("which", self.which, WHICH)
        require_choice("accelerator", self.accelerator, ACCELERATORS)
        require_choice("dtype", self.dtype, DTYPES)


no_type_check(EvaluateSettings.__init__)  # its __post_init__ says what is wrong, in a user's words


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


def main(argv: Sequence[str]) -> int:
    """The command: parse, read, score, tell."""
    parser = Parser("evaluate", "RUN|MODEL [RUN|MODEL ...] [--text=FILE ...] [--name=value ...]", _DESCRIPTION)
    parser.add_argument("models", nargs="+", metavar="RUN|MODEL", help="what is measured, the first for the others too")
    group = parser.add_argument_group("files")
    for name, about in _FILES.items():
        group.add_argument(f"--{name}", nargs="+", action="extend", type=Path, metavar="FILE", help=about)
    group.add_argument("--json", type=Path, metavar="FILE", help="write all figures and the scores of every item here")
    add_fields(parser, EvaluateSettings)
    given, notes = translated(parser.parse(argv), EvaluateSettings)
    tell(notes)
    models, path = given.pop("models"), given.pop("json", None)
    files = [(name, file) for name in _FILES for file in given.pop(name, [])]
    settings = EvaluateSettings(**given)
    if not files:
        raise UserError(f"there is nothing to evaluate on; name a file with --{', --'.join(_FILES)}")
    reports.require_writable(json=path)
    tasks = [read_task(name, file, settings.limit) for name, file in files]
    use_accelerator(settings.accelerator)
    with memory_in_one_line(settings, ("batch_size",)):
        results = evaluate(models, tasks, settings)
    print(report.told(results, models))
    reports.write_where_asked(
        "json", path, lambda path: report.write_json(path, results, models, dataclasses.asdict(settings))
    )
    return entry.OK


_FILES = {
    "text": "UTF-8 text: bits per byte, and perplexity",
    "hellaswag": "JSON lines with ctx, endings and label: accuracy",
    "lambada": "JSON lines with text: accuracy and perplexity of its last word",
    "pairs": "JSON lines with prompt and completion: exact match and perplexity",
}


def read_task(kind: str, path: Path, limit: int | None) -> Task:
    """The file as a task of that kind. Raises `UserError` where it is none."""
    if kind == "text":
        return text_task(path)
    read: dict[str, Callable[[Path, int | None], Task]] = {
        "hellaswag": hellaswag_task, "lambada": lambada_task, "pairs": pairs_task,
    }  # fmt: skip
    return read[kind](path, limit)


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
