"""Vocabularies that two bytes can't tell apart: token files of uint32, and files of either type taken for the other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nanogpt_jax.core.config import Settings
from nanogpt_jax.data.dataset import TokenFile, digest, open_tokens, random_batch, whole_split
from nanogpt_jax.data.from_tokens import adopt, prepare_data_set
from nanogpt_jax.data.prepare import prepare_documents, prepare_text
from nanogpt_jax.data.prepared import load_meta, load_tokenizer
from nanogpt_jax.data.tokenizer import CharTokenizer
from nanogpt_jax.run import start
from tests.helpers.refusals import refusal

WIDE = CharTokenizer(chr(i) for i in range(82_000) if not 0xD800 <= i < 0xE000)
TEXT = "plain, and then \U00013ff0\U00013ff1 beyond two bytes\n" * 40
BEYOND = WIDE.stoi["\U00013ff0"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of more than 65,536 tokens, some of which occur."""
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    prepare_text([tmp_path / "text.txt"], tmp_path / "wide", WIDE)
    return tmp_path / "wide"


def test_the_type_is_chosen_by_the_vocabulary_stated_and_read_back(folder: Path) -> None:
    assert BEYOND > 65_535
    meta = load_meta(folder)
    assert json.loads((folder / "meta.json").read_text("utf-8"))["dtype"] == meta.dtype == "uint32"
    ids = [WIDE.stoi[character] for character in TEXT]
    assert np.fromfile(folder / "train.bin", "<u4").tolist() == ids[: meta.train_tokens]
    data = start.begun(Settings(dataset="wide", data_dir=str(folder.parent), block_size=32), {}).data
    seen = [target for part, there in whole_split(data.val, 2, 32) for target in part.targets[there > 0].tolist()]
    assert seen == ids[meta.train_tokens + 1 :] and BEYOND in seen
    batch = random_batch(data.train, "train", 0, 0, (4,), 32)
    assert batch.tokens.dtype == np.int32 and BEYOND in batch.tokens
    assert load_tokenizer(meta.tokenizer).decode(data.train.tokens[:50]) == TEXT[:50]


def test_shards_and_documents(tmp_path: Path) -> None:
    prepare_documents([TEXT] * 4, tmp_path, WIDE, 0.5, shard_tokens=1024)
    meta = load_meta(tmp_path)
    assert (tmp_path / "train_000.bin").stat().st_size == 4 * 1024
    file = open_tokens(tmp_path / "train.bin", meta.vocab_size, 8, meta.train_tokens, meta.shards("train"), meta.dtype)
    assert WIDE.decode(file.tokens[:]) == (TEXT + "\n") * 2


def test_a_data_set_goes_into_other_tokens_and_back(folder: Path, tmp_path: Path) -> None:
    prepare_data_set(folder, tmp_path / "bytes", "bpe:300")
    assert load_meta(tmp_path / "bytes").dtype == "uint16"
    prepare_data_set(tmp_path / "bytes", tmp_path / "again", WIDE)
    for name in ("train.bin", "val.bin", "meta.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_the_digest_tells_tokens_apart_that_share_their_lower_halves() -> None:
    one, other = np.array([3, 9], np.uint32), np.array([3, 9 + 65_536], np.uint32)
    digests = {digest(TokenFile(tokens, Path("t"), 70_000)) for tokens in (one, other, other.astype(">u4"))}
    assert len(digests) == 2


@pytest.mark.parametrize("stated", ["uint16", "uint64", "int32", None, ["uint32"]])
def test_another_type_than_the_files_have_is_refused(folder: Path, stated: object) -> None:
    path = folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "dtype": stated}), "utf-8")
    said = refusal(lambda: start.begun(Settings(dataset="wide", data_dir=str(folder.parent), block_size=32), {}))
    tokens = int(0.9 * len(TEXT))
    assert (f"has {4 * tokens:,} bytes where {2 * tokens:,} bytes" if stated == "uint16" else "has dtype") in said


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_a_file_that_was_cut_short_is_refused(folder: Path, lost: int) -> None:
    path, meta = folder / "train.bin", load_meta(folder)
    path.write_bytes(path.read_bytes()[:-lost])
    size = 4 * meta.train_tokens
    wanted = f"has {size - lost:,} bytes where {size:,} bytes ({meta.train_tokens:,} tokens of uint32) belong"
    assert wanted in refusal(open_tokens, path, meta.vocab_size, 8, meta.train_tokens, (), meta.dtype)
    if lost % 4:
        assert "4 bytes for every token (uint32)" in refusal(open_tokens, path, meta.vocab_size, 8, dtype=meta.dtype)
        assert "does not end with a whole token of 4 bytes (uint32)" in refusal(
            prepare_data_set, folder, folder.parent / "other", "bpe:300"
        )


class TestAdopting:
    def files(self, folder: Path, tokenizer: CharTokenizer, text: str, dtype: str) -> Path:
        folder.mkdir()
        ids = tokenizer.encode(text).astype(dtype)
        ids[:900].tofile(folder / "train.bin")
        ids[900:].tofile(folder / "val.bin")
        return folder

    def test_files_of_four_bytes(self, tmp_path: Path) -> None:
        theirs = self.files(tmp_path / "theirs", WIDE, TEXT, "<u4")
        assert adopt(theirs, WIDE).meta.dtype == load_meta(theirs).dtype == "uint32"
        (theirs / "meta.json").unlink()
        adopt(theirs, WIDE, tmp_path / "copied")
        assert (tmp_path / "copied" / "val.bin").read_bytes() == (theirs / "val.bin").read_bytes()

    def test_either_type_in_the_place_of_the_other_is_refused(self, tmp_path: Path) -> None:
        plain = "to be or not to be, that is the question\n" * 40
        narrow = self.files(tmp_path / "narrow", WIDE, plain, "<u2")
        said = refusal(adopt, narrow, WIDE)
        assert "outside the 79,952 of that tokenizer (read as uint32)" in said
        few = CharTokenizer.from_text(plain)
        wide = self.files(tmp_path / "wide", few, plain, "<u4")
        assert "train.bin has a 0 for every second token, so that they are uint32 and not uint16" in refusal(
            adopt, wide, few
        )
        assert not any((folder / "meta.json").exists() for folder in (narrow, wide))

    def test_a_text_of_one_character_is_no_such_file(self, tmp_path: Path) -> None:
        adopt(self.files(tmp_path / "one", CharTokenizer("a"), "a" * 1000, "<u2"), CharTokenizer("a"))
