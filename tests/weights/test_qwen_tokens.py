"""Qwen's tokens, of which there are more than two bytes tell apart: read, prepared, trained on, sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax.cli import sample, train
from nanogpt_jax.data.hf_tokenizer import HFTokenizer
from nanogpt_jax.data.prepare import prepare_documents
from nanogpt_jax.data.prepared import load_meta, load_tokenizer
from nanogpt_jax.weights.tokenizer_files import read_tokenizer, stop_tokens
from tests.helpers.qwen import END, PLAIN, SIZE, START, TURN, qwen, save_qwen
from tests.helpers.refusals import refusal

transformers = pytest.importorskip("transformers")

ROWS = 151_936  # of Qwen3's table
TEXTS = (
    f"Hello there, {START}user\nHow's it going? 12345{TURN}\n<think>\n\n</think>", END, f" a{END} b", "",
    "nai\u0308ve u\u0308 日本 🎉\r\n\r\n  x \t y", "<tool_call>{}</tool_call>  ", "it's IT'S", END[:-1], START + START,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("a qwen"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(json.loads(json.dumps(read_tokenizer(folder, ROWS))))


def test_ids_and_texts_are_those_of_transformers(folder: Path, tokenizer: Any) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.vocab_size, tokenizer.eot_token) == (len(theirs), theirs.eos_token_id) == (SIZE + 7, SIZE + 2)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert tokenizer.encode(text).tolist() == ids
        assert tokenizer.decode(ids) == theirs.decode(ids)
        assert tokenizer.decode_bytes(ids).decode() == theirs.decode(ids)
        ordinary = theirs(text, split_special_tokens=True)["input_ids"]
        assert tokenizer.encode_ordinary(text).tolist() == ordinary
    assert tokenizer.encode(TEXTS[0]).max() > 65_535
    assert stop_tokens(folder, tokenizer.to_json()) == (SIZE + 2, SIZE)


def test_the_words_of_another_kind_are_not_taken_for_gpt2s(tmp_path: Path) -> None:
    document, config = qwen(600)
    (tmp_path / "vocab.json").write_text(json.dumps(document["model"]["vocab"]), "utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *document["model"]["merges"]]), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert "its tokenizer is a Qwen2Tokenizer in vocab.json, which is not read here" in refusal(
        read_tokenizer, tmp_path, ROWS
    )


DIGITS = [
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
]


def kinds() -> dict[str, HFTokenizer]:
    """Of Qwen's kind, Llama 3's and SmolLM2's, small."""
    document, _ = qwen(3000)
    split, level = document["pre_tokenizer"]["pretokenizers"]
    three = {**split, "pattern": {"Regex": split["pattern"]["Regex"].replace(r"\p{N}|", r"\p{N}{1,3}|")}}
    words = {"qwen": [split, level], "llama 3": [three, level], "smollm2": DIGITS, "unsafe": [DIGITS[0], level]}
    return {
        name: HFTokenizer({**document, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}})
        for name, steps in words.items()
    }


KINDS = kinds()
TRICKY = st.lists(
    st.sampled_from([*" \t\n\r\u0308\xa0\u3000a5é!'", "12", "the", "'ll", "u\u0308", *PLAIN, START, "日"]), max_size=25
).map("".join)


@settings(max_examples=150)
@given(text=TRICKY, kind=st.sampled_from(["qwen", "llama 3", "smollm2"]))
def test_a_long_text_is_cut_where_its_tokens_allow(text: str, kind: str) -> None:
    encode, end = KINDS[kind].encode_ordinary, KINDS[kind].cut(text)
    assert [*encode(text[:end]), *encode(text[end:])] == encode(text).tolist()


def test_there_is_such_a_place_where_the_words_are_known() -> None:
    assert {name: made.cut("to be or not") for name, made in KINDS.items()} == {
        "qwen": 8, "llama 3": 8, "smollm2": 8, "unsafe": 0
    }  # fmt: skip


def test_documents_are_prepared_trained_on_and_gone_on_from(
    folder: Path, tokenizer: Any, tmp_path: Path, capsys: Any
) -> None:
    documents = [f"Document {i} says {END} and {START}, naïvely {'on and ' * 2}" for i in range(8)]
    made = prepare_documents(documents, tmp_path / "data" / "docs", tokenizer, 0.4)
    meta = load_meta(tmp_path / "data" / "docs")
    assert made.meta.dtype == meta.dtype == "uint32"
    ids = np.concatenate(
        [np.fromfile(tmp_path / "data" / "docs" / f"{split}.bin", "<u4") for split in ("train", "val")]
    )
    assert np.count_nonzero(ids == tokenizer.eot_token) == 8 and not np.isin([SIZE, SIZE + 1], ids).any()
    assert sorted(tokenizer.decode(ids).split(TURN)) == sorted([*documents, ""])

    where = (f"--out_dir={tmp_path / 'out'}", "--accelerator=cpu")
    shape = ("--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", f"--vocab_size={ROWS}")
    few = ("--batch_size=2", "--gradient_accumulation_steps=1", "--eval_iters=1", "--eval_interval=1")
    data = ("--dataset=docs", f"--data_dir={tmp_path / 'data'}")
    assert train.main([*data, *where, *shape, *few, "--max_iters=2"]) == 0
    assert train.main(["--init_from=resume", *where, "--max_iters=3"]) == 0
    assert "step 3: train loss 11.9" in capsys.readouterr().out  # log(151,936) is 11.93
    start = f"{START}naïve"
    assert sample.main([*where, "--stop", "--num_samples=2", "--max_new_tokens=3", f"--start={start}"]) == 0
    assert capsys.readouterr().out.count(start) == 2
