"""Examples of a task: out of JSON lines, with marks of what is learnt, in rows that a batch has once an epoch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_jax.cli import prepare as command
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import IGNORED, Batch, init_params, loss_fn
from nanogpt_jax.data import dataset
from nanogpt_jax.data.chat import TEMPLATES
from nanogpt_jax.data.epochs import rows_of_batch
from nanogpt_jax.data.examples import Rows, batch_of, open_rows, packed
from nanogpt_jax.data.prepared import BEGINS, LEARNT, load_meta, load_tokenizer
from nanogpt_jax.data.tasks import prepare_examples
from tests.helpers.prepared import decoded, tokens
from tests.helpers.refusals import refusal

PAIRS = [{"prompt": f"{i} + {i} = ", "completion": str(2 * i)} for i in range(40)]


def lines(folder: Path, documents: list, name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    return path


def learnt(folder: Path, split: str = "train") -> str:
    """The text of a split with all that is not learnt as dots."""
    meta = load_meta(folder)
    marks = np.fromfile(folder / f"{split}_marks.bin", np.uint8)
    text = load_tokenizer(meta.tokenizer).decode(tokens(folder / f"{split}.bin"))
    assert len(text) == len(marks)  # of characters
    return "".join(c if mark & LEARNT else "." for c, mark in zip(text, marks, strict=True))


def test_completions_are_learnt_and_what_ends_them(tmp_path):
    summary = prepare_examples([lines(tmp_path, PAIRS)], tmp_path / "set", "pairs", val_fraction=0.2)
    text = learnt(tmp_path / "set")
    kept = [pair for pair in PAIRS if f" {pair['completion']}\n" in f"{decoded(tmp_path / 'set')}"]
    assert text.startswith("........0\n........2\n")
    assert len(kept) == 40 and summary.length == 40 and "pairs" not in text
    of = load_meta(tmp_path / "set").examples
    assert of == {"train": text.count("\n"), "val": 40 - text.count("\n"), "longest": 13, "template": None}
    assert f"train has {len(text):,} tokens in {of['train']} examples" in str(summary)


def test_each_example_ends_with_the_end_of_text_token_where_there_is_one(tmp_path, gpt2_ranks):
    prepare_examples(
        [lines(tmp_path, [{"prompt": "hello", "completion": " world"}] * 9)], tmp_path / "set", "pairs", "gpt2"
    )
    assert tokens(tmp_path / "set" / "train.bin")[:6].tolist() == [31373, 995, 50256] * 2
    marks = np.fromfile(tmp_path / "set" / "train_marks.bin", np.uint8)
    assert marks[:6].tolist() == [BEGINS, LEARNT, LEARNT] * 2


CHAT = [
    {"messages": [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me"},
    ]}
] * 12  # fmt: skip


def test_of_a_chat_what_the_assistant_says_is_learnt(tmp_path):
    prepare_examples([lines(tmp_path, CHAT)], tmp_path / "set", "chat")
    one = "System: Be short.\nUser: Hi\nAssistant: Ho\nUser: Who?\nAssistant: Me\n"
    assert decoded(tmp_path / "set") == one * 12
    dots = "." * len("System: Be short.\nUser: Hi\nAssistant: ")
    assert learnt(tmp_path / "set").startswith(f"{dots}Ho\n{'.' * len('User: Who?+Assistant: ')}Me\n{dots}")
    assert load_meta(tmp_path / "set").examples["template"] == TEMPLATES["plain"].to_json()


def test_a_template_of_ones_own_is_data_in_a_file(tmp_path):
    own = {
        "user": {"before": "<", "after": ">"},
        "assistant": {"before": "[", "after": "]"},
        "system": {"before": "", "after": "|"},
    }
    (tmp_path / "own.json").write_text(json.dumps(own))
    path = lines(tmp_path, CHAT)
    assert (
        command.main_texts(
            [str(path), "--format=chat", f"--template={tmp_path / 'own.json'}", f"--data_dir={tmp_path}"]
        )
        == 0
    )
    assert "Be short.|<Hi>[Ho]<Who?>[Me]\n" in decoded(tmp_path / "pairs")
    assert learnt(tmp_path / "pairs").startswith("." * len("Be short.|<Hi>[") + "Ho]" + "." * len("<Who?>[") + "Me].")
    stored = load_meta(tmp_path / "pairs").examples["template"]
    assert stored == {role: {**around, "ends": False} for role, around in own.items()}


def test_a_long_prompt_is_cut_at_its_left_and_counted(tmp_path):
    path = lines(tmp_path, [{"prompt": "abcdefgh" * (1 + i % 2), "completion": "xy"} for i in range(20)])
    at_most = {"block_size": 12}
    assert "line 2 is an example of 19 tokens, and block_size=12 has room for 13" in refusal(
        lambda: prepare_examples([path], tmp_path / "set", "pairs", **at_most)
    )
    assert not (tmp_path / "set").exists()
    summary = prepare_examples([path], tmp_path / "set", "pairs", too_long="cut", **at_most)
    assert sorted(set(decoded(tmp_path / "set").splitlines())) == ["abcdefghxy", "gh" + "abcdefgh" + "xy"]
    assert summary.remarks == ("cut 10 prompts at their left, to fit block_size=12",)


@pytest.mark.parametrize(
    ("line", "form", "says"),
    [
        ('{"prompt": "a"}', "pairs", "has completion None where a string belongs"),
        ('{"prompt": "a", "completion": ""}', "pairs", "has an empty completion, and so nothing to learn"),
        ('{"prompt": 3, "completion": "b"}', "pairs", "has prompt 3 where a string belongs"),
        ("[1]", "pairs", r"holds [1] where a JSON object belongs"),
        ("{", "pairs", "is not JSON"),
        ('{"messages": []}', "chat", "has messages [] where a list of them belongs"),
        ('{"messages": [{"role": "me", "content": "a"}]}', "chat", "where a role of system, user, assistant"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "chat", "has nothing that the assistant says"),
        ('{"messages": [{"role": "user", "content": 1}]}', "chat", "has the message"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_example_is_named(tmp_path, line, form, says):
    good = PAIRS[:3] if form == "pairs" else CHAT[:3]
    path = lines(tmp_path, good)
    path.write_text(path.read_text() + line + "\n")
    said = refusal(lambda: prepare_examples([path], tmp_path / "set", form))
    assert said.startswith(f"{path} line 4 ") and says in said and said.endswith("mend it")
    assert not (tmp_path / "set").exists()


def test_what_is_learnt_must_fit_with_one_token_before_it(tmp_path):
    path = lines(tmp_path, [{"prompt": "p", "completion": "x" * 20}] * 3)
    said = refusal(lambda: prepare_examples([path], tmp_path / "set", "pairs", block_size=12, too_long="cut"))
    assert "line 1 has 21 tokens from what is learnt last on, and block_size=12 has room for 12" in said


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--format=lines", "format='lines'"), ("--too_long=drop", "too_long='drop'"),
        ("--template=none", "template=none is none of"),
        ("--block_size=1", "block_size=1"),
    ],
)  # fmt: skip
def test_flags_that_mean_nothing_are_refused(tmp_path, flag, says):
    flags = [str(lines(tmp_path, CHAT)), f"--data_dir={tmp_path}", "--format=chat", flag]
    assert says in refusal(lambda: command.main_texts(flags))


def test_flags_of_examples_need_a_format(tmp_path):
    assert "--template is for examples; add --format" in refusal(
        lambda: command.main_texts([str(lines(tmp_path, CHAT)), "--template=plain", f"--data_dir={tmp_path}"])
    )


def test_examples_in_shards_are_the_same_examples(tmp_path):
    long = [{"prompt": f"{i:04} " * 20, "completion": f"{i}"} for i in range(40)]
    for name, shard_tokens in (("whole", None), ("cut", 1024)):
        prepare_examples([lines(tmp_path, long)], tmp_path / name, "pairs", shard_tokens=shard_tokens)
    meta = load_meta(tmp_path / "cut")
    assert meta.files["train_marks"] == [name.replace("train", "train_marks") for name in meta.files["train"]]
    opened = [opened_split(tmp_path / name, 128) for name in ("whole", "cut")]
    assert dataset.digest(opened[0]) == dataset.digest(opened[1])
    for one, other in zip(*(dataset.windows(file, np.arange(3), 128) for file in opened), strict=True):
        np.testing.assert_array_equal(one, other)


def opened_split(folder: Path, block_size: int, apart: bool = True) -> dataset.TokenFile:
    meta = load_meta(folder)
    file = dataset.open_tokens(
        folder / "train.bin", meta.vocab_size, 1, meta.train_tokens, meta.shards("train"), meta.dtype
    )
    names = meta.shards("train_marks") or ["train_marks.bin"]
    return file._replace(rows=open_rows([folder / name for name in names], len(file.tokens), block_size, apart))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(9, 30))
def test_rows_hold_every_example_whole_and_once(sizes, room):
    ends = packed(np.array(sizes), room)
    begins = {0, *np.cumsum(sizes).tolist()}
    widths = np.diff(ends, prepend=0)
    assert set(ends.tolist()) <= begins and ends[-1] == sum(sizes)
    assert (widths > 0).all() and (widths <= room).all()
    for end, width in zip(ends[:-1].tolist(), widths[:-1].tolist(), strict=True):  # none that would have fitted is left
        following = sizes[np.searchsorted(np.cumsum(sizes), end, side="right")]
        assert width + following > room


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 5))
def test_every_epoch_has_every_row_once(rows, batch, seed):
    drawn = np.concatenate([rows_of_batch(rows, seed, i, (1, batch)).ravel() for i in range(3 * rows)])
    for epoch in range(len(drawn) // rows):
        assert sorted(drawn[epoch * rows : (epoch + 1) * rows].tolist()) == list(range(rows))
    again = rows_of_batch(rows, seed, 2, (1, batch))
    np.testing.assert_array_equal(again.ravel(), drawn[2 * batch : 3 * batch])


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second, other = (rows_of_batch(50, seed, epoch, (50,)).tolist() for seed, epoch in ((1, 0), (1, 1), (2, 0)))
    assert first != second and first != other and sorted(first) == sorted(second)


SIZES = (5, 4, 7, 3, 6)


def rows_in_memory(apart=True, block_size=16):
    """Five examples, of whose tokens the last two are learnt."""
    marks = np.concatenate([[BEGINS] + [0] * (size - 3) + [LEARNT] * 2 for size in SIZES]).astype(np.uint8)
    ends = packed(np.array(SIZES), block_size + 1)
    is_learnt = np.flatnonzero(marks == LEARNT)
    rows = Rows(marks, ends, np.diff(np.searchsorted(is_learnt, ends), prepend=0), apart)
    return np.random.default_rng(0).integers(0, 32, sum(SIZES)).astype(np.uint16), rows


def test_a_batch_has_as_targets_what_is_learnt_of_the_same_example():
    ids, rows = rows_in_memory()
    assert rows.ends.tolist() == [16, 25] and rows.targets.tolist() == [6, 4]
    batch = batch_of(ids, rows, np.array([0, 1, 2]), 16)
    learnt_at = [3, 4, 7, 8, 14, 15]
    assert np.flatnonzero(batch.targets[0] != IGNORED).tolist() == [at - 1 for at in learnt_at]
    assert [batch.targets[0, at - 1] for at in learnt_at] == [ids[at] for at in learnt_at]
    assert batch.segments[0].tolist() == [1] * 5 + [2] * 4 + [3] * 7
    assert (batch.targets[2] == IGNORED).all() and not batch.tokens[2].any()  # past the last
    assert isinstance(batch_of(ids, dataclasses.replace(rows, apart=False), np.array([0]), 16), Batch)


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_the_loss_of_packed_rows_is_that_of_each_example_by_itself(position):
    shape = dict(block_size=16, vocab_size=32, n_layer=2, n_head=2, n_embd=16)
    model = GPT(GPTConfig(**shape, position=position, token_shift=position == "rope"))
    params = jax.tree.map(
        lambda p: 20 * p if p.ndim > 1 else p + 0.5, init_params(model, 0)
    )  # so that they look around
    ids, rows = rows_in_memory()
    together = loss_fn(model, params, batch_of(ids, rows, np.arange(2), 16))
    alone, start = [], 0
    for size in SIZES:
        text = ids[start : start + size].astype(np.int32)[None]
        targets = np.where(np.arange(1, size) >= size - 2, text[:, 1:], IGNORED)
        alone.append(loss_fn(model, params, Batch(text[:, :-1], targets)))
        start += size
    np.testing.assert_allclose(together, np.mean(alone), rtol=1e-5)
    across = loss_fn(model, params, batch_of(ids, dataclasses.replace(rows, apart=False), np.arange(2), 16))
    assert abs(across - together) > 1e-4


def test_a_whole_split_counts_every_learnt_token_once(tmp_path):
    prepare_examples([lines(tmp_path, PAIRS)], tmp_path / "set", "pairs", val_fraction=0.2)
    file = opened_split(tmp_path / "set", 32)
    batches = list(dataset.whole_split(file, 4, 32))
    counted = sum(int(((batch.targets != IGNORED) * weights).sum()) for batch, weights in batches)
    assert counted == dataset.targets_in_split(file) == len(learnt(tmp_path / "set").replace(".", ""))
    drawn = [dataset.random_batch(file, "val", 1, i, (3,), 32) for i in range(4)]
    number = sum(dataset.targets_in_batch(file, "val", 1, i, (3,), 32) for i in range(4))
    assert number == sum(int((batch.targets != IGNORED).sum()) for batch in drawn)


def test_rows_that_do_not_fit_or_are_of_other_tokens_are_refused(tmp_path):
    prepare_examples([lines(tmp_path, PAIRS)], tmp_path / "set", "pairs")
    assert "block_size=8 has room for examples of 9 tokens, and the longest" in refusal(
        lambda: opened_split(tmp_path / "set", 8)
    )
    marks = tmp_path / "set" / "train_marks.bin"
    whole = marks.read_bytes()
    marks.write_bytes(whole[:-1])
    assert f"{marks} has {len(whole) - 1:,} marks for {len(whole):,} tokens" in refusal(
        lambda: opened_split(tmp_path / "set", 32)
    )
    marks.write_bytes(b"\0" + whole[1:])
    assert "does not begin with an example" in refusal(lambda: opened_split(tmp_path / "set", 32))
    marks.unlink()
    assert str(marks) in refusal(lambda: opened_split(tmp_path / "set", 32))
