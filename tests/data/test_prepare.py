"""Preparing a text: what lies in the files, streaming that changes nothing, and failures that touch nothing."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax.data import pieces, prepare
from nanogpt_jax.data.pieces import recut
from nanogpt_jax.data.prepare import prepare_documents, prepare_text
from nanogpt_jax.data.prepared import load_meta, load_tokenizer
from tests.helpers.prepared import PLAY, contents, decoded, tokens
from tests.helpers.refusals import refusal

TEXT = st.lists(st.sampled_from([*"ab \n\r\té日🎉", "the", "It's", "<|endoftext|>"]), min_size=10).map("".join)
patient = settings(deadline=None, max_examples=25)


class TestText:
    def test_what_lies_in_the_folder(self, play: Path, tmp_path: Path) -> None:
        summary = prepare_text([play], tmp_path / "set")
        n_train = int(len(PLAY) * 0.9)
        assert sorted(contents(tmp_path / "set")) == ["meta.json", "train.bin", "val.bin"]
        document = json.loads((tmp_path / "set" / "meta.json").read_text("utf-8"))
        characters = "".join(sorted(set(PLAY)))
        assert document == {
            "vocab_size": len(characters),
            "dtype": "uint16",
            "train_tokens": n_train,
            "val_tokens": len(PLAY) - n_train,
            "tokenizer": {"type": "char", "characters": characters},
        }
        assert tokens(tmp_path / "set" / "train.bin").tolist() == [characters.index(c) for c in PLAY[:n_train]]
        assert decoded(tmp_path / "set") == PLAY
        assert f"train has {n_train:,} tokens" in str(summary)

    def test_files_are_joined_in_order(self, play: Path, tmp_path: Path) -> None:
        (tmp_path / "b.txt").write_text("\ufeffB\ufeff", encoding="utf-8")
        prepare_text([play, tmp_path / "b.txt", play], tmp_path / "set", val_fraction=0.5)
        assert decoded(tmp_path / "set") == PLAY + "B\ufeff" + PLAY, "a mark at the beginning of a file is not text"

    @patient
    @given(text=TEXT, chunk=st.integers(1, 9), val_fraction=st.sampled_from([0.1, 0.5]))
    @pytest.mark.parametrize("tokenizer", ["char", "gpt2", "bpe:270"])
    def test_streaming_equals_the_whole(
        self,
        tokenizer: str,
        tmp_path_factory: pytest.TempPathFactory,
        request: pytest.FixtureRequest,
        text: str,
        chunk: int,
        val_fraction: float,
    ) -> None:
        if tokenizer == "gpt2":
            request.getfixturevalue("gpt2_ranks")
        folder = tmp_path_factory.getbasetemp() / "streaming"
        folder.mkdir(exist_ok=True)
        (folder / "text.txt").write_bytes(text.encode())
        prepare_text([folder / "text.txt"], folder, tokenizer, val_fraction, chunk=chunk)
        whole = load_tokenizer(load_meta(folder).tokenizer)
        n_train = int(len(text) * (1 - val_fraction))
        for name, part in (("train.bin", text[:n_train]), ("val.bin", text[n_train:])):
            assert tokens(folder / name).tolist() == whole.encode_ordinary(part).tolist()

    @pytest.mark.parametrize("tokenizer", ["gpt2", "bpe:300"])
    def test_any_number_of_workers_writes_the_same(
        self, tokenizer: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if tokenizer == "gpt2":
            request.getfixturevalue("gpt2_ranks")
        text = "".join(f"{PLAY} \n\n  {i}\t\t It's{' ' * (i % 5)}\n" for i in range(100))
        (tmp_path / "text.txt").write_bytes(text.encode())
        written = []
        for workers, chunk in ((1, len(text.encode())), (1, 1000), (2, 1000), (7, 777)):
            monkeypatch.setattr(pieces, "WORKERS", workers)
            prepare_text([tmp_path / "text.txt"], tmp_path / "set", tokenizer, chunk=chunk)
            written.append(contents(tmp_path / "set"))
        assert all(other == written[0] for other in written[1:])

    def test_a_bpe_learns_from_the_training_text_alone(self, tmp_path: Path) -> None:
        (tmp_path / "text.txt").write_text("abab " * 90 + "xyxy " * 10)
        prepare_text([tmp_path / "text.txt"], tmp_path / "set", "bpe:300")
        merges = load_meta(tmp_path / "set").tokenizer["merges"]
        assert merges and not any("x" in merge for merge in merges)

    def test_a_text_without_a_place_to_cut_is_cut_all_the_same(self) -> None:
        pieces = list(recut(["a" * 7, "b" * 7, " c"], lambda text: 0, longest=5))
        assert "".join(pieces) == "a" * 7 + "b" * 7 + " c" and max(map(len, pieces)) <= 5

    @pytest.mark.parametrize("text", ["a" * 300_000, " " * 1_100_000 + "x"], ids=["one word", "blank"])
    def test_texts_of_one_word_or_none(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "text.txt").write_text(text)
        prepare_text([tmp_path / "text.txt"], tmp_path, "bpe:300")
        assert decoded(tmp_path) == text
        prepare_documents([text] * 4, tmp_path, "bpe:300", 0.5)
        assert decoded(tmp_path) == (text + "<|endoftext|>") * 4

    def test_memory_stays_small(self, tmp_path: Path) -> None:
        path = tmp_path / "long.txt"
        with open(path, "w", encoding="utf-8") as file:
            for _ in range(1000):
                file.write(PLAY * 90)
        size = path.stat().st_size
        assert size > 35_000_000
        tracemalloc.start()
        try:
            prepare_text([path], tmp_path / "set")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8_000_000 + 6_000_000 * pieces.WORKERS, f"{peak:,} bytes at the peak for a file of {size:,}"


class TestFailures:
    @pytest.mark.parametrize(
        ("data", "named"),
        [
            (b"", "no text (0 characters)"),
            (b"a", "too few to split"),
            (b"good \xff", "byte 0xff at offset 5"),
            ("日本".encode()[:-1], "byte 0xe6 at offset 3"),
            ("日本".encode()[:-1] + b"a" * 10, "byte 0xe6 at offset 3"),
        ],
    )
    @pytest.mark.parametrize("chunk", [1, 2, 1000])
    def test_bad_text_leaves_everything_as_it_was(self, play: Path, data: bytes, named: str, chunk: int) -> None:
        folder = play.parent / "set"
        (bad := play.parent / "bad.txt").write_bytes(data)
        message = refusal(prepare_text, [bad], folder, chunk=chunk)
        assert named in message and str(bad) in message
        assert not folder.exists()
        prepare_text([play], folder)
        before = contents(folder)
        refusal(prepare_text, [bad], folder, chunk=chunk)
        assert contents(folder) == before

    def test_files_that_cannot_be_read(self, play: Path, tmp_path: Path) -> None:
        assert "No such file" in refusal(prepare_text, [tmp_path / "none.txt"], tmp_path / "set")
        assert "is a folder" in refusal(prepare_text, [tmp_path], tmp_path / "set")
        os.mkfifo(tmp_path / "pipe")
        assert "twice" in refusal(prepare_text, [tmp_path / "pipe"], tmp_path / "set")
        assert "play.txt" in refusal(prepare_text, [play], play)  # a file where the folder should be

    @pytest.mark.parametrize(
        "tokenizer", ["", "bpe", "bpe:", "bpe:256", "bpe:16777217", "bpe:1e3", "bpe:²", "word", "gpt2:9"]
    )
    def test_tokenizers_that_do_not_exist(self, play: Path, tokenizer: str) -> None:
        assert f"tokenizer={tokenizer}" in refusal(prepare_text, [play], play.parent / "set", tokenizer)

    @pytest.mark.parametrize("val_fraction", [0.0, 1.0, -1.0, float("nan")])
    def test_fractions_out_of_range(self, play: Path, val_fraction: float) -> None:
        assert "val_fraction" in refusal(prepare_text, [play], play.parent / "set", val_fraction=val_fraction)

    def test_a_full_disk_leaves_the_old_set_whole(self, play: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = play.parent / "set"
        prepare_text([play], folder)
        before = contents(folder)

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        assert "make room" in refusal(prepare_text, [play, play], folder)
        assert contents(folder) == before

    def test_the_seal_is_away_while_the_files_are_exchanged(self, play: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = play.parent / "set"
        prepare_text([play], folder)
        replace, sealed = os.replace, []

        def watched(source: str, target: Path) -> None:
            sealed.append((target.name, (folder / "meta.json").exists()))
            replace(source, target)

        monkeypatch.setattr(os, "replace", watched)
        prepare_text([play, play], folder)
        assert sealed == [("train.bin", False), ("val.bin", False), ("meta.json", False)]
        assert decoded(folder) == PLAY + PLAY

    def test_a_file_that_grows_meanwhile(self, play: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        census = prepare.census

        def growing(chunks: Iterator[str]) -> object:
            counted = census(chunks)
            play.write_bytes(PLAY.encode() * 2)
            return counted

        monkeypatch.setattr(prepare, "census", growing)
        assert "try again" in refusal(prepare_text, [play], play.parent / "set")
        assert not (play.parent / "set").exists()


def test_a_set_in_shards_is_the_set_in_one_file(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 200)
    one = prepare_text([text], tmp_path / "one").meta
    cut = prepare_text([text], tmp_path / "cut", shard_tokens=3000).meta
    assert cut.files == {"train": ["train_000.bin", "train_001.bin", "train_002.bin"], "val": ["val_000.bin"]}
    assert load_meta(tmp_path / "cut") == cut and (cut.train_tokens, cut.val_tokens) == (
        one.train_tokens,
        one.val_tokens,
    )
    for split in ("train", "val"):
        parts = [(tmp_path / "cut" / name).read_bytes() for name in cut.shards(split)]
        assert all(len(part) == 6000 for part in parts[:-1])
        assert b"".join(parts) == (tmp_path / "one" / f"{split}.bin").read_bytes()
