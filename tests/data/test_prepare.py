"""Preparing data: what lies in the files, streaming that changes nothing, and failures that touch nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax.cli import entry
from nanogpt_jax.cli import prepare as prepare_command
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data import assets, encode, pieces, prepare
from nanogpt_jax.data.commands import to_prepare
from nanogpt_jax.data.pieces import recut
from nanogpt_jax.data.prepare import prepare_documents, prepare_text
from nanogpt_jax.data.prepared import load_meta, load_tokenizer
from nanogpt_jax.data.sources import Documents
from nanogpt_jax.data.tokenizer import BPETokenizer, GPT2Tokenizer

ROOT = Path(__file__).parents[2]
PLAY = "First Citizen:\r\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak. naïve 日本 🎉\n" * 5
TEXT = st.lists(st.sampled_from([*"ab \n\r\té日🎉", "the", "It's", "<|endoftext|>"]), min_size=10).map("".join)
patient = settings(deadline=None, max_examples=25)


def tokens(path: Path) -> np.ndarray:
    return np.fromfile(path, "<u2")


def decoded(folder: Path) -> str:
    """The text of both splits, read as any reader of the data set would."""
    meta = load_meta(folder)
    train, val = tokens(folder / "train.bin"), tokens(folder / "val.bin")
    assert (len(train), len(val)) == (meta.train_tokens, meta.val_tokens)
    tokenizer = load_tokenizer(meta.tokenizer)
    assert tokenizer.vocab_size == meta.vocab_size
    return tokenizer.decode(train) + tokenizer.decode(val)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(function: Callable[..., object], *arguments: object, **named: object) -> str:
    """The line with which a call is refused."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **named)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def play(tmp_path: Path) -> Path:
    path = tmp_path / "play.txt"
    path.write_bytes(PLAY.encode())
    return path


@pytest.fixture(scope="module")
def gpt2_ranks() -> Iterator[dict[bytes, int]]:
    """GPT-2's ranks, brought once."""
    try:
        ranks = assets.gpt2_ranks()
    except UserError as error:
        pytest.skip(f"GPT-2's ranks can't be had here: {error}")
    made = GPT2Tokenizer(ranks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assets, "gpt2_ranks", lambda: ranks)
        patch.setattr(encode, "GPT2Tokenizer", lambda ranks: made)  # since it takes a moment to make
        yield ranks


@pytest.fixture
def few_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPT-2 that knows the 256 bytes alone, for tests of documents that need no more."""

    def tiny(ranks: dict[bytes, int]) -> BPETokenizer:
        return BPETokenizer([])

    monkeypatch.setattr(encode, "GPT2Tokenizer", tiny)
    monkeypatch.setattr(assets, "gpt2_ranks", dict)


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
        "tokenizer", ["", "bpe", "bpe:", "bpe:256", "bpe:65537", "bpe:1e3", "bpe:²", "word", "gpt2:9"]
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


class TestMeta:
    def test_a_missing_set_names_the_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(ROOT)
        assert to_prepare(Path("data/shakespeare_char")) == "python data/shakespeare_char/prepare.py"
        message = refusal(load_meta, tmp_path / "mine")
        assert f"python data/prepare.py FILE... --name=mine --data_dir={tmp_path}" in message

    def test_the_command_works_from_any_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        message = refusal(load_meta, Path("data/shakespeare_char"))
        assert message.endswith(f"python {ROOT}/data/shakespeare_char/prepare.py --data_dir=data")

    def test_pickles_are_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "meta.pkl").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
        message = refusal(load_meta, tmp_path)
        assert "meta.pkl" in message and "data/prepare.py" in message

    @pytest.mark.parametrize(
        "data",
        [b"", b"{", b"\xff", b"[]", b"[" * 100_000, b'"meta"', b"NaN", b"1" * 5000, b"\xef\xbb\xbf{}", b"{}"],
    )
    def test_what_is_not_a_meta(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "meta.json").write_bytes(data)
        assert "prepare the data set again" in refusal(load_meta, tmp_path)

    @patient
    @given(
        key=st.sampled_from(["vocab_size", "dtype", "train_tokens", "val_tokens", "tokenizer"]),
        value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.none()),
    )
    def test_fields_of_the_wrong_kind(self, tmp_path_factory: pytest.TempPathFactory, key: str, value: object) -> None:
        folder = tmp_path_factory.getbasetemp() / "meta"
        folder.mkdir(exist_ok=True)
        good = {"vocab_size": 3, "dtype": "uint16", "train_tokens": 9, "val_tokens": 1, "tokenizer": {"type": "gpt2"}}
        (folder / "meta.json").write_text(json.dumps({**good, key: value}), "utf-8")
        with contextlib.suppress(UserError):
            loaded = getattr(load_meta(folder), key)
            assert key.endswith(("size", "tokens")) and type(loaded) is int and loaded == value > 0
        (folder / "meta.json").write_text(json.dumps({k: v for k, v in good.items() if k != key}), "utf-8")
        assert key in refusal(load_meta, folder)


class TestDocuments:
    DOCUMENTS = tuple(f"Document {i}:\n<|endoftext|> 日本\n" for i in range(50))

    def test_each_document_ends_with_the_token(self, few_ranks: None, tmp_path: Path) -> None:
        summary = prepare_documents(iter(self.DOCUMENTS), tmp_path, val_fraction=0.2)
        tokenizer = load_tokenizer(load_meta(tmp_path).tokenizer)
        splits = {True: [], False: []}
        for i, document in enumerate(self.DOCUMENTS):
            splits[prepare.is_validation(2357, i, 0.2)] += [*document.encode(), tokenizer.eot_token]
        assert tokens(tmp_path / "train.bin").tolist() == splits[False]
        assert tokens(tmp_path / "val.bin").tolist() == splits[True]
        assert summary.length == 50 and "documents: 50" in str(summary)

    def test_gpt2_tokens(self, gpt2_ranks: dict[bytes, int], tmp_path: Path) -> None:
        prepare_documents(["hello world"] * 40, tmp_path, "gpt2", 0.2)
        assert tokens(tmp_path / "train.bin")[:6].tolist() == [31373, 995, 50256] * 2
        assert load_meta(tmp_path).vocab_size == 50_257

    def test_a_trained_bpe_goes_through_them_twice(self, tmp_path: Path) -> None:
        prepare_documents(self.DOCUMENTS, tmp_path, "bpe:300", 0.2)
        assert len(load_meta(tmp_path).tokenizer["merges"]) > 9
        assert decoded(tmp_path).count("Document") == 50
        with pytest.raises(TypeError):
            prepare_documents(iter(self.DOCUMENTS), tmp_path, "bpe:300", 0.2)

    def test_the_draw_is_a_fair_function_of_seed_and_index(self) -> None:
        drawn = [prepare.is_validation(1, i, 0.1) for i in range(10_000)]
        assert drawn == [prepare.is_validation(1, i, 0.1) for i in range(10_000)]
        assert drawn != [prepare.is_validation(2, i, 0.1) for i in range(10_000)]
        assert 900 < sum(drawn) < 1100
        assert all(prepare.is_validation(1, i, 0.2) for i in np.flatnonzero(drawn)), "a larger fraction adds documents"

    def test_what_cannot_be_prepared_leaves_nothing(self, few_ranks: None, tmp_path: Path) -> None:
        folder = tmp_path / "set"
        assert "too few documents for two splits (1)" in refusal(prepare_documents, self.DOCUMENTS[:1], folder)
        assert "too few documents for two splits (0)" in refusal(prepare_documents, [], folder)
        assert "document 7" in refusal(prepare_documents, [*"abcdefg", "\ud800"], folder, "gpt2", 0.5)
        assert not folder.exists()

    def test_text_and_jsonl_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"one\r\ntwo")
        (tmp_path / "b.jsonl").write_text('{"text": "three"}\n{"text": "caf\\u00e9", "url": "x"}\n', "utf-8")
        documents = Documents((tmp_path / "a.txt", tmp_path / "b.jsonl"))
        assert list(documents) == list(documents) == ["one\r\ntwo", "three", "café"]
        assert list(Documents(documents.paths, limit=2)) == ["one\r\ntwo", "three"]

    @pytest.mark.parametrize("line", ["", "{", "[]", '{"text": 1}', '{"body": "x"}', "[" * 100_000])
    def test_bad_lines_are_named(self, tmp_path: Path, line: str) -> None:
        (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
        assert "line 2" in refusal(list, Documents((tmp_path / "a.jsonl",)))

    def test_unknown_and_missing_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").touch()
        assert ".jsonl, .parquet, .txt" in refusal(Documents, (tmp_path / "a.csv",))
        assert "none.txt" in refusal(Documents, (tmp_path / "none.txt",))

    def test_parquet_files(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        texts = [*self.DOCUMENTS * 20, None, "last"]
        pq.write_table(pa.table({"text": texts, "id": range(len(texts))}), tmp_path / "a.parquet", row_group_size=300)
        assert list(Documents((tmp_path / "a.parquet",))) == [*self.DOCUMENTS * 20, "last"]
        pq.write_table(pa.table({"body": ["a"]}), tmp_path / "b.parquet")
        assert "no column `text`" in refusal(list, Documents((tmp_path / "b.parquet",)))
        pq.write_table(pa.table({"text": [1]}), tmp_path / "c.parquet")
        assert "int64" in refusal(list, Documents((tmp_path / "c.parquet",)))
        whole = (tmp_path / "a.parquet").read_bytes()
        for damaged in (b"", b"PAR1", whole[:-20], whole[:100] + bytes(500) + whole[600:]):
            (tmp_path / "d.parquet").write_bytes(damaged)
            assert "d.parquet" in refusal(list, Documents((tmp_path / "d.parquet",)))

    def test_without_the_extra_it_is_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        assert "pip install -e '.[datasets]'" in refusal(list, Documents())
        (tmp_path / "a.parquet").touch()
        assert "pip install -e '.[datasets]'" in refusal(list, Documents((tmp_path / "a.parquet",)))


class TestShakespeare:
    @pytest.fixture(autouse=True)
    def a_shorter_play(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(assets, "tiny_shakespeare", lambda: PLAY)

    def test_characters(self, tmp_path: Path) -> None:
        folder = tmp_path / "data" / "shakespeare_char"
        prepare.KNOWN["shakespeare_char"](folder)
        assert (folder / "input.txt").read_bytes() == PLAY.encode()
        assert decoded(folder) == PLAY

    def test_gpt2(self, gpt2_ranks: dict[bytes, int], tmp_path: Path) -> None:
        prepare.KNOWN["shakespeare"](tmp_path)
        assert load_meta(tmp_path).tokenizer == {"type": "gpt2"}
        assert decoded(tmp_path) == PLAY

    def test_nothing_is_written_where_it_cannot_be_had(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline() -> dict[bytes, int]:
            raise UserError("offline")

        monkeypatch.setattr(assets, "gpt2_ranks", offline)
        refusal(prepare.KNOWN["shakespeare"], tmp_path / "set")
        assert not (tmp_path / "set").exists()


class TestCommands:
    @pytest.fixture
    def run(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
        """Run a command line in this process: exit status, stdout, stderr."""

        def call(command: Callable[[list[str]], int], *arguments: str) -> tuple[int, str, str]:
            monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
            status = entry.run(command)
            return status, *capsys.readouterr()

        return call

    def test_own_text(self, run: Callable[..., tuple], play: Path, tmp_path: Path) -> None:
        status, out, err = run(prepare_command.main, str(play), f"--data-dir={tmp_path}", "--val_fraction", "0.2")
        assert (status, err) == (0, "")
        assert re.search(r"^train has \d+ tokens\nval has \d+ tokens$", out, re.MULTILINE)
        assert decoded(tmp_path / "play") == PLAY
        status, _, _ = run(prepare_command.main, str(play), f"--data_dir={tmp_path}", "--name=b", "--tokenizer=bpe:280")
        assert status == 0 and decoded(tmp_path / "b") == PLAY

    def test_wrong_use_is_one_line_and_status_2(self, run: Callable[..., tuple], play: Path, tmp_path: Path) -> None:
        before = sorted(tmp_path.iterdir())
        inside = f"--data_dir={tmp_path}"
        for arguments in (
            [],
            [inside],
            [str(play), inside, "--bogus=1"],
            [str(play), inside, "--tok=char"],
            [str(play), inside, "--val_fraction=much"],
            [str(play), inside, "--tokenizer=word"],
            [str(tmp_path / "none.txt"), inside],
            *([str(play), inside, f"--name={name}"] for name in ("", ".", "..", "a/b", "/a", "a\\b", "a\nb")),
        ):
            status, out, err = run(prepare_command.main, *arguments)
            assert (status, out) == (2, "") and re.fullmatch(r"error: .+\n", err), (arguments, err)
        assert sorted(tmp_path.iterdir()) == before

    def test_ctrl_c_is_130(self, run: Callable[..., tuple], play: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(prepare, "census", interrupted)
        assert run(prepare_command.main, str(play), f"--data_dir={play.parent}")[0] == 130

    def test_openwebtext(self, few_ranks: None, run: Callable[..., tuple], tmp_path: Path) -> None:
        rows = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(100))
        (tmp_path / "a.jsonl").write_text(rows)
        arguments = [str(tmp_path / "a.jsonl"), f"--data_dir={tmp_path}", "--val_fraction=0.3"]
        status, out, _ = run(prepare_command.main_openwebtext, *arguments, "--num-docs=40")
        assert status == 0 and "documents: 40" in out
        assert decoded(tmp_path / "openwebtext").count("<|endoftext|>") == 40
        assert run(prepare_command.main_openwebtext, *arguments, "--num_docs=0")[0] == 2

    def test_the_scripts_write_where_they_are_told(self, play: Path) -> None:
        def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            command = [sys.executable, str(ROOT / "data" / name), *arguments]
            return subprocess.run(command, cwd=play.parent, env=environment, capture_output=True, text=True)

        done = script("prepare.py", "play.txt", "--data_dir=.")
        assert (done.returncode, done.stderr) == (0, "") and (play.parent / "play" / "meta.json").exists()
        for name in ("prepare.py", "shakespeare_char/prepare.py", "shakespeare/prepare.py", "openwebtext/prepare.py"):
            refused = script(name, "--bogus")
            assert refused.returncode == 2 and re.fullmatch(r"error: .+\n", refused.stderr)


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


@pytest.mark.parametrize("files", [{}, {"train": [], "val": ["v.bin"]}, {"train": ["../x.bin"], "val": ["v.bin"]}, [1]])
def test_shards_that_are_no_names_of_files_are_refused(tmp_path, files):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be" * 20)
    prepare_text([text], tmp_path / "set")
    path = tmp_path / "set" / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": files}))
    with pytest.raises(UserError, match="has files"):
        load_meta(tmp_path / "set")
