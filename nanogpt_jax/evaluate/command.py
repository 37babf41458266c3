"""`python -m nanogpt_jax.evaluate RUN|MODEL [RUN|MODEL ...]`: figures of models on files, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from nanogpt_jax.cli import entry
from nanogpt_jax.cli.flags import Parser, add_fields, tell, translated
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.evaluate.settings import EvaluateSettings
from nanogpt_jax.run import reports

_DESCRIPTION = """\
Measure models on files, and tell how sure that is: bits per byte of a text, which ending of HellaSwag's a model takes
for the likeliest, whether it has LAMBADA's last word, and whether it says a completion as it stands. After the first
model, each has a column of differences to the first, paired item by item.

  {evaluate} out-shakespeare-char --text=letters.txt
  {evaluate} gpt2 out-mine --text=wiki.txt --hellaswag=hellaswag_val.jsonl --lambada=lambada_test.jsonl
  {evaluate} out-base out-tuned --pairs=held-out.jsonl --json=evaluation.json

A file is named with --text, --hellaswag, --lambada or --pairs, each as often as there are files. A model is the folder
of a run, a nanoGPT ckpt.pt, a Hugging Face folder or gpt2..., as train.py --init_from takes it."""

_FILES = {
    "text": "UTF-8 text: bits per byte, and perplexity",
    "hellaswag": "JSON lines with ctx, endings and label: accuracy",
    "lambada": "JSON lines with text: accuracy and perplexity of its last word",
    "pairs": "JSON lines with prompt and completion: exact match and perplexity",
}


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

    # Slow to import, so not before the arguments are known good.
    from nanogpt_jax.evaluate import report
    from nanogpt_jax.evaluate.models import evaluate
    from nanogpt_jax.evaluate.tasks import read_task
    from nanogpt_jax.run.accelerator import use_accelerator
    from nanogpt_jax.run.faults import memory_in_one_line

    tasks = [read_task(name, file, settings.limit) for name, file in files]
    use_accelerator(settings.accelerator)
    with memory_in_one_line(settings, ("batch_size",)):
        results = evaluate(models, tasks, settings)
    print(report.told(results, models))
    reports.write_where_asked(
        "json", path, lambda path: report.write_json(path, results, models, dataclasses.asdict(settings))
    )
    return entry.OK
