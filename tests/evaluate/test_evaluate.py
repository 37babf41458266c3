"""The command: models side by side, what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanogpt_jax import convert
from nanogpt_jax.cli import train
from nanogpt_jax.core.bigram import Bigram
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import init_params
from nanogpt_jax.data.prepare import prepare_text
from nanogpt_jax.evaluate import command as evaluate
from nanogpt_jax.evaluate import scores
from nanogpt_jax.evaluate.passages import Passage
from tests.helpers.commands import command
from tests.helpers.items import write_lines
from tests.helpers.refusals import refusal
from tests.helpers.tiny import TINY, prepare_tiny

VERSE = "to be or not to be,\nthat is the question:\n"
LINES = [
    {"prompt": "to be or not ", "completion": "to be,"},
    {"prompt": "that is ", "completion": "the question:"},
    {"prompt": "that is ", "completion": "not to be,"},
]


class Runs(NamedTuple):
    """A run that has learned the verse, one that has hardly begun, and one that has other tokens."""

    folder: Path
    trained: Path
    fresh: Path
    bpe: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    flags = [*TINY, f"--data_dir={prepare_tiny(folder, VERSE, 300)}", "--block_size=16", "--dropout=0"]
    (folder / "verse.txt").write_text(VERSE * 8)
    prepare_text([folder / "text.txt"], folder / "data" / "pieces", "bpe:280")
    learns = ["--max_iters=150", "--eval_interval=150", "--log_interval=50", "--batch_size=16", "--learning_rate=2e-2"]
    made = {"trained": learns, "fresh": ["--max_iters=1"], "bpe": ["--dataset=pieces", "--max_iters=1"]}
    for name, own in made.items():
        assert train.main([*flags, *own, f"--out_dir={folder / name}"]) == 0
    return Runs(folder, *(folder / name for name in made))


def run(*arguments: object) -> int:
    return evaluate.main([*map(str, arguments), "--accelerator=cpu"])


def test_did_it_help(runs, tmp_path, capsys):
    pairs, verse = write_lines(tmp_path / "pairs.jsonl", LINES), runs.folder / "verse.txt"
    path = tmp_path / "new" / "all.json"
    capsys.readouterr()
    assert run(runs.fresh, runs.trained, f"--text={verse}", f"--pairs={pairs}", f"--json={path}") == 0
    table, notes = capsys.readouterr().out.split("± standard error; ")
    head, _, bits, perplexity, exact, per_token = table.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "file", "figure", str(runs.fresh), str(runs.trained), f"less {runs.fresh}"
    ]  # fmt: skip
    assert bits.startswith("| verse.txt ") and " | bits per byte " in bits and perplexity.count(" ± ") == 3
    assert "pairs.jsonl: 3 items (pairs)" in notes and exact.count(" ± ") == 3 and "perplexity" in per_token
    text, completions = (result["models"] for result in json.loads(path.read_text())["results"])
    assert [model["model"] for model in text] == [str(runs.fresh), str(runs.trained)]
    bits = [model["figures"]["bits per byte"] for model in text]
    assert bits[1]["value"] < 0.5 < 3 < bits[0]["value"] and "less_first" not in bits[0]
    assert bits[1]["less_first"]["value"] == bits[1]["value"] - bits[0]["value"]
    # Paired over the parts of the text, of nearly as many bytes each.
    nats, sizes = (np.array([[part[key] for part in m["items"]] for m in text]) for key in ("nats", "bytes"))
    bits_apart, n = (nats[1] - nats[0]) / math.log(2), len(sizes[0])
    pulls = bits_apart - bits_apart.sum() / sizes[0].sum() * sizes[0]
    by_hand = math.sqrt(n / (n - 1) * (pulls**2).sum()) / sizes[0].sum()
    assert n == 50 and bits[1]["less_first"]["error"] == pytest.approx(by_hand)
    assert [item["exact"] for item in completions[1]["items"]] == [True, True, False]
    assert completions[0]["figures"]["exact match"]["value"] == 0.0
    assert completions[1]["figures"]["exact match"]["value"] == pytest.approx(2 / 3)


def test_models_of_other_tokens_are_compared_by_bytes_and_words_alone(runs, tmp_path, capsys):
    words = write_lines(tmp_path / "words.jsonl", [{"text": "to be or not"}, {"text": "that is the question:"}] * 3)
    path = tmp_path / "all.json"
    assert (
        run(runs.trained, runs.bpe, f"--text={runs.folder / 'verse.txt'}", f"--lambada={words}", f"--json={path}") == 0
    )
    rows = {
        line.split(" | ")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")
    }
    assert rows["perplexity per token"].rstrip(" |").endswith("other tokens")
    assert all("other" not in rows[name] for name in ("bits per byte", "accuracy", "perplexity per word"))
    text, last_words = (result["models"] for result in json.loads(path.read_text())["results"])
    # Characters have no end of text for the first one to follow.
    assert [sum(part["bytes"] for part in m["items"]) for m in text] == [len(VERSE) * 8 - 1, len(VERSE) * 8]
    assert len(text[0]["items"]) == len(text[1]["items"]) == 50
    assert last_words[0]["figures"]["accuracy"]["value"] == 1.0
    assert last_words[0]["figures"]["accuracy"]["error"] == 0.0


def test_limit_cut_contexts_and_the_last_weights(runs, tmp_path, capsys):
    item = {"ctx": VERSE, "endings": ["to be", "question"], "label": 0}
    choices = write_lines(tmp_path / "choices.jsonl", [item, {**item, "ctx": "to be"}, "never read"])
    (tmp_path / "choices.jsonl").write_text("\n" + choices.read_text())
    flags = (f"--hellaswag={choices}", "--limit=2", "--which=last", f"--json={tmp_path / 'all.json'}")
    assert run(runs.trained, *flags) == 0
    out = capsys.readouterr().out
    assert "choices.jsonl: 2 items (hellaswag)\n" in out
    assert f"choices.jsonl: 1 of 2 contexts are longer than {runs.trained} reads, and were cut at their left" in out
    [result] = json.loads((tmp_path / "all.json").read_text())["results"]
    [model] = result["models"]
    assert [item["line"] for item in model["items"]] == [2, 3] and set(model["figures"]) == {"acc", "acc_norm"}


def test_nanogpt_s_file_finds_its_tokens_in_the_data_set(runs, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    path = tmp_path / "ckpt.pt"
    assert convert.main([str(runs.trained), str(path)]) == 0
    document = torch.load(path, weights_only=True)
    theirs = {name: value for name, value in document.items() if name in ("model", "model_args", "config", "iter_num")}
    torch.save({**theirs, "config": {"dataset": "tiny"}}, path)
    capsys.readouterr()
    verse = runs.folder / "verse.txt"
    assert run(runs.trained, path, f"--text={verse}", f"--data_dir={runs.folder / 'data'}", "--which=last") == 0
    bits = next(line for line in capsys.readouterr().out.splitlines() if "bits per byte" in line)
    ours, same, less = (cell.strip() for cell in bits.strip("| ").split("|")[2:])
    assert ours == same and less.startswith(("+0.0000", "-0.0000"))
    assert "does not say what its tokens are" in refusal(run, path, f"--text={verse}", "--data_dir=nowhere")


def test_a_bigram_and_a_large_vocabulary_are_scored_by_rows(monkeypatch):
    """Beside the whole batch's logits at once."""
    draw = np.random.default_rng(0)
    config = GPTConfig(block_size=40, vocab_size=19, n_layer=1, n_head=1, n_embd=8)
    passages = [Passage(draw.integers(0, 19, n).astype(np.int32), min(n - 1, 5)) for n in (2, 9, 33, 34, 41)]
    for model in (GPT(config), Bigram(config)):
        params = init_params(model, 0)
        found = []
        for logits in (1 << 26, 1, 19 * 40 * 2):
            monkeypatch.setattr(scores, "_LOGITS", logits)
            scores.next_tokens.clear_cache()
            found.append(scores.score(model, params, passages, 4))
        for i, passage in enumerate(passages):
            whole = jax.nn.log_softmax(model.apply({"params": params}, passage.tokens[None, :-1])[0])
            asked, targets = whole[-passage.asked :], passage.tokens[-passage.asked :]
            for each in found:
                plain = np.asarray(asked)[np.arange(passage.asked), targets]
                np.testing.assert_allclose(each[i].log_probs, plain, atol=1e-5)
                assert (each[i].likeliest == (np.asarray(asked).argmax(-1) == targets)).all()


def test_damaged_weights_are_named():
    model = GPT(GPTConfig(block_size=8, vocab_size=3, n_layer=1, n_head=1, n_embd=8))
    spoilt = jax.tree.map(lambda p: p * jnp.nan, init_params(model, 0))
    passage = Passage(np.array([0, 1], np.int32), 1)
    assert "not finite numbers; name another" in refusal(scores.score, model, spoilt, [passage], 1)


BAD = {
    "no-json.jsonl": "to be\n",
    "a-list.jsonl": "\n[1]\n",
    "latin.jsonl": b'{"text": "caf\xe9 au lait"}\n',
    "no-text.jsonl": '{"text": "to be"}\n{"txt": "to be"}\n',
    "one-word.jsonl": '{"text": "to"}\n',
    "no-label.jsonl": '{"ctx": "to", "endings": ["be", "go"]}\n',
    "far-label.jsonl": '{"ctx": "to", "endings": ["be", "go"], "label": 2}\n',
    "true-label.jsonl": '{"ctx": "to", "endings": ["be", "go"], "label": true}\n',
    "one-ending.jsonl": '{"ctx": "to", "endings": ["be"], "label": 0}\n',
    "numbers.jsonl": '{"ctx": "to", "endings": ["be", 3], "label": 0}\n',
    "a-number.jsonl": '{"prompt": "to", "completion": 3}\n',
    "long.jsonl": '{"prompt": "to", "completion": "be"}\n{"prompt": "to", "completion": "be be be be be be be"}\n',
    "empty.jsonl": "\n\n",
    "empty.txt": "",
    "one.txt": "t",
    "latin.txt": b"caf\xe9\n",
    "strange.txt": "to be or not to Be",
}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "there is nothing to evaluate on; name a file with --text, --hellaswag, --lambada, --pairs"),
        (["--text=missing.txt"], "missing.txt cannot be read (No such file or directory); check the name"),
        (["--pairs=missing.jsonl"], "missing.jsonl cannot be read (No such file or directory); check the name"),
        (["--lambada=."], ". cannot be read (Is a directory); it is a folder, name a file"),
        (["--lambada=no-json.jsonl"], "no-json.jsonl line 1 is not a JSON object with a string text of two words"),
        (["--lambada=a-list.jsonl"], "line 2 is not a JSON object with a string text of two words and more (it is a"),
        (["--lambada=latin.jsonl"], "latin.jsonl line 1 is not a JSON object with"),
        (["--lambada=no-text.jsonl"], "no-text.jsonl line 2 is not a JSON object with a string text of two words and "
         "more ('text' is missing); mend it"),
        (["--lambada=one-word.jsonl"], "line 1 is not a JSON object with a string text of two words and more (text "),
        (["--hellaswag=no-label.jsonl"], "('label' is missing); mend it"),
        (["--hellaswag=far-label.jsonl"], "(label is none of 0 to 1); mend it"),
        (["--hellaswag=true-label.jsonl"], "(label is none of 0 to 1); mend it"),
        (["--hellaswag=one-ending.jsonl"], "(endings are no list of two and more); mend it"),
        (["--hellaswag=numbers.jsonl"], "(an ending is no string, or an empty one); mend it"),
        (["--pairs=a-number.jsonl"], "(completion is of type int); mend it"),
        (["--pairs=long.jsonl"], "long.jsonl line 2 asks for 21 tokens and "),
        (["--pairs=empty.jsonl"], "empty.jsonl has no items (0 lines); give a file of JSON objects"),
        (["--text=empty.txt"], "empty.txt has no text (0 characters); give a file with text in it"),
        (["--text=one.txt"], "one.txt has no token for "),
        (["--text=latin.txt"], "latin.txt is not UTF-8 text: byte 0xe9 at offset 3"),
        (["--text=strange.txt"], "strange.txt: the character 'B' (U+0042) at position 16 is not among the "),
        (["--text=empty.txt", "--json=."], "json=. is a folder; name a file"),
        (["--text=one.txt", "--stride=0"], "stride=0 is smaller than 1; choose at least 1"),
        (["--text=one.txt", "--limit=0"], "limit=0 is smaller than 1; choose at least 1"),
        (["--text=one.txt", "--batch_size=0"], "batch_size=0 is smaller than 1; choose at least 1"),
        (["--text=one.txt", "--which=first"], "which='first' is not one of best, last; choose one of them"),
        (["--text=one.txt", "--strides=3"], "there is no setting --strides; did you mean --stride?"),
    ],
)  # fmt: skip
def test_mistakes_are_named_and_nothing_is_written(runs, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    for name, content in BAD.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        run(runs.trained, "--json=all.json", *flags)
    assert message in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == set(BAD)


def test_strangers_are_dropped_where_that_is_asked_for(runs, tmp_path, capsys):
    (tmp_path / "strange.txt").write_text("to be Or not to Be")
    (tmp_path / "known.txt").write_text("to be r not to e")
    flags = (f"--text={tmp_path / 'strange.txt'}", f"--text={tmp_path / 'known.txt'}", "--unknown=drop")
    assert run(runs.trained, *flags) == 0
    values = [line.split("|")[3].split(" ± ")[0] for line in capsys.readouterr().out.splitlines() if "bits" in line]
    assert len(values) == 2 and values[0] == values[1]


def test_no_model_and_a_mistake_of_the_process(tmp_path):
    assert "RUN|MODEL" in refusal(evaluate.main, [])
    done = command("nanogpt_jax/evaluate/__main__.py", "nowhere", "--text=missing.txt", cwd=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: missing.txt cannot be read") and done.err.count("\n") == 1
