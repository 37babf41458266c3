"""The worked task of docs/tuning.md, shortened: a base, all its weights tuned, and by LoRA; and whether it helped."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex

import numpy as np
import pytest

from nanogpt_jax.cli import prepare, sample, train
from nanogpt_jax.evaluate import command as evaluate
from tests.helpers.commands import ROOT

# Two narrow layers, blocks of 128 and a few hundred updates, where the page has minutes.
SHORT = {
    "out-base": "--n_layer=2 --n_embd=64 --block_size=128 --batch_size=6 --max_iters=150 --lr_decay_iters=150",
    "out-full": "--block_size=128 --batch_size=6 --max_iters=80 --lr_decay_iters=80 --warmup_iters=20",
    "out-lora": "--block_size=128 --batch_size=6 --max_iters=80 --lr_decay_iters=80 --warmup_iters=20",
}
QUICK = "--eval_iters=1 --eval_interval=1000 --log_interval=1000 --accelerator=cpu"


@pytest.fixture(scope="module")
def page() -> list[list[str]]:
    """The commands of the page's first two blocks, in words."""
    text = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)[:2]
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def done(page, data_dir, tmp_path_factory):
    """The folder in which all of them were run, and what they printed, by program."""
    folder = tmp_path_factory.mktemp("task")
    spec = importlib.util.spec_from_file_location("pairs", ROOT / "data" / "shakespeare_lines" / "pairs.py")
    pairs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pairs)
    text = (data_dir / "shakespeare_char" / "input.txt").read_text(encoding="utf-8")
    (folder / "data" / "shakespeare_lines").mkdir(parents=True)
    (folder / "data" / "shakespeare_char").symlink_to(data_dir / "shakespeare_char")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(pairs, "HERE", folder / "data" / "shakespeare_lines")
        for words in page:
            program, argv = words[1], words[2:]
            if program == "train.py":
                [out_dir] = [word.partition("=")[2] for word in argv if word.startswith("--out_dir=")]
                assert train.main([*argv, *SHORT[out_dir].split(), *QUICK.split()]) == 0
            elif program == "data/shakespeare_lines/pairs.py":
                pairs.write(text)
            elif program == "data/prepare.py":
                assert prepare.main_texts([*argv, "--block_size=128", f"--data_dir={folder / 'data'}"]) == 0
            elif argv[:1] == ["nanogpt_jax.evaluate"]:
                assert evaluate.main([*argv[1:], "--limit=40", "--json=found.json"]) == 0
            else:
                assert program == "sample.py" and sample.main([*argv, "--max_new_tokens=20"]) == 0
    return folder


def test_tuning_helps_either_way_beyond_doubt(done):
    """A test that can fail: paired over the items, the completions became likelier by many standard errors."""
    [result] = json.loads((done / "found.json").read_text())["results"]
    base, full, lora = (np.array([item["log_prob"] for item in model["items"]]) for model in result["models"])
    for tuned in (full, lora):
        gained = tuned - base
        assert len(gained) == 40 and gained.mean() > 5 * gained.std(ddof=1) / np.sqrt(40)


def test_prompts_are_lines_without_what_the_completion_brings_back(done):
    lines = [json.loads(line) for line in (done / "data" / "shakespeare_lines" / "test.jsonl").read_text().splitlines()]
    assert {"prompt": "good morrow neighbour baptista -- ", "completion": "Good morrow, neighbour Baptista."} in lines
    assert not any(re.search(r"[A-Z.,;:!?']", line["prompt"]) for line in lines)
