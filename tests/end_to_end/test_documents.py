"""Every line that README and the other documents tell people to type runs as it stands there, in its order.

Of some, which take long and show no more than other tests do, only the arguments are tried; `pytest -m ''` runs all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nanogpt_jax import convert
from nanogpt_jax.cli.text_settings import SampleSettings
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data import assets
from nanogpt_jax.lens.settings import LensSettings
from tests.helpers.commands import HANGS, ROOT
from tests.helpers.nanogpt import write_checkout

from .documents import DOCUMENTS, LONG, QUICK, RULES, Line, flags_in, is_long, lines, markdown_of, rule_of, shortened
from .meanings import WORK, program_of, require_meaning

LINES = lines()
MADE = (".git", "build", "dist", "out-*", "*.bin", "meta.json", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")


@pytest.fixture(scope="module")
def checkout(trained, tmp_path_factory) -> Path:
    """A fresh copy of this checkout, beside it a nanoGPT, and in it what the documents take for granted."""
    folder = tmp_path_factory.mktemp("checkouts")
    copy = folder / "nanogpt-jax"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*MADE))
    whole = assets.tiny_shakespeare()
    play = _short_play(whole)
    for name in ("mine.txt", "more.txt", "letters.txt", "a.txt", "b.txt"):
        (copy / name).write_text(play)
    (copy / "val.txt").write_text(whole[-111_540:-107_540])  # where the last tenth begins
    choice = {"ctx": "To be", "endings": ["or not", "and not"], "label": 0}
    (copy / "hellaswag_val.jsonl").write_text(json.dumps(choice))
    (copy / "lambada_test.jsonl").write_text(json.dumps({"text": "or not to be"}))
    exchange = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    (copy / "chats.jsonl").write_text((json.dumps({"messages": exchange}) + "\n") * 40)
    (copy / "prompt.txt").write_text("ROMEO:\n")
    (copy / "mine.toml").write_text('preset = "shakespeare_char_cpu"\nlearning_rate = 2e-3\n')
    for name in ("shakespeare_char", "mine"):
        prepared = _run(copy, f"python data/prepare.py letters.txt --name={name}")
        assert prepared.returncode == 0, prepared.stderr
    shutil.copytree(copy / "data" / "shakespeare_char", copy / "nano", ignore=shutil.ignore_patterns("*.json", "*.py"))
    (copy / "data" / "shakespeare_char" / "input.txt").write_text(play)
    documents = [json.dumps({"text": document}) for document in play.split("\n", 40)]
    (copy / "documents.jsonl").write_text("\n".join(documents))
    for name in ("out-a", "out-b"):
        shutil.copytree(trained.out_dir, copy / name)
    write_checkout(folder / "nanoGPT")
    (folder / "nanoGPT" / "out").mkdir()
    assert convert.main([str(trained.out_dir), str(folder / "nanoGPT" / "out" / "ckpt.pt")]) == 0
    return copy


def named(line: Line) -> str:
    return f"{line.document}: {line.text}"


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, id=named(line), marks=[pytest.mark.release] if is_long(line.text) else []) for line in LINES],
)
def test_it_runs_as_written(line, checkout):
    rule = rule_of(line.text)
    assert rule is not None, f"{line.document} has a command that tests/documents.py has no rule for: {line.text}"
    if rule.why_not:
        _require_what_it_names(line.text)
        return
    done = _run(checkout, shortened(line.text, rule), rule.env)
    assert done.returncode == rule.status, done.stdout[-1000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr
    if rule.status:
        [error] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert rule.says in error


def has_meaning(line: Line) -> bool:
    """Whether its right end is that it works; of long commands, that they begin to."""
    status = getattr(rule_of(line.text), "status", 0)
    return program_of(line.text) in WORK and "--help" not in line.text and (is_long(line.text) or not status)


MEANT = [line for line in LINES if has_meaning(line)]


@pytest.mark.parametrize("line", MEANT, ids=named)
def test_it_means_something_as_written(line, checkout):
    """What a rule makes shorter may hide that its own settings do not go together."""
    require_meaning(line.text, checkout)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("python train.py --max_itres=3", "max_iters"),
        ("python train.py shakespear_char", "shakespear_char"),
        ("python train.py gpt2 --mesh=fsdp:7", "fsdp:7"),
        ("python -m nanogpt_jax.compare --position=rotary", "position='rotary'"),
        ("python -m nanogpt_jax.bench growth --reference=../nanoGPT", "growth"),
    ],
)
def test_a_slip_is_found(command, why, checkout):
    with pytest.raises(UserError, match=why):
        require_meaning(command, checkout)


def test_every_rule_has_a_command():
    """The table keeps nothing of lines that have gone, and finding commands has not quietly stopped to find them."""
    used = [rule_of(line.text) for line in LINES]
    assert [rule.pattern for rule in RULES if rule not in used] == []
    assert [pattern for pattern in LONG if not any(re.search(pattern, line.text) for line in LINES)] == []
    assert [line.text for line in LINES if is_long(line.text) and line not in MEANT] == []


def test_every_flag_that_is_told_of_exists():
    """Those in running text too, which no command has."""
    told = {flag for document in DOCUMENTS for flag in flags_in(markdown_of(document))}
    fields = {
        field.name for settings in (Settings, SampleSettings, LensSettings) for field in dataclasses.fields(settings)
    }
    sources = "".join(
        path.read_text(encoding="utf-8") for at in ("nanogpt_jax", "tests") for path in (ROOT / at).rglob("*.py")
    )
    assert len(told) > 40
    assert {flag for flag in told - fields if not re.search(f'"(--)?{flag}"', sources)} <= {"help"}


PYTHON = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def test_python_in_the_readme_runs():
    [code] = PYTHON.findall(markdown_of("README.md"))
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)  # our own text
    assert names["texts"].shape == (4, 100)
    assert float(names["metrics"]["loss"]) > 3.5


def test_no_other_document_has_python_that_is_not_tried():
    assert [document for document in DOCUMENTS if PYTHON.search(markdown_of(document))] == ["README.md"]


def _run(checkout: Path, command: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What a shell in the checkout makes of a command, where the package is installed from there."""
    variables = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(checkout),
        **QUICK,
        **(environment or {}),
    }
    return subprocess.run(
        ["bash", "-c", command], cwd=checkout, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=HANGS, check=False,
    )  # fmt: skip


def _require_what_it_names(command: str) -> None:
    """Of a command that is not run: the extras and files that it names are there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in shlex.split(command):
        if named := re.fullmatch(r"\.\[(.*)\]", word):
            assert set(named[1].split(",")) <= set(extras), command
        elif "/" in word and not word.startswith("-"):
            assert (ROOT / word).exists(), command


def _short_play(play: str) -> str:
    """A sixtieth of Tiny Shakespeare that has all of its characters, so that what is trained on it has its tokens."""
    some = "".join(play.splitlines(keepends=True)[::60])
    return some + "".join(sorted(set(play) - set(some)))
