"""The tokens of others: texts in an existing tokenizer's, nanoGPT's files taken over, data sets in other tokens."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nanogpt_jax.cli import entry
from nanogpt_jax.cli import prepare as prepare_command
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.from_tokens import adopt, prepare_data_set
from nanogpt_jax.data.prepare import prepare_documents, prepare_text
from nanogpt_jax.data.prepared import load_meta, load_tokenizer
from nanogpt_jax.data.tokenizer import CharTokenizer
from nanogpt_jax.run import start
from tests.helpers.commands import Run

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 20
STRANGE = "café to the wörld — be\n" * 20


def decoded(folder: Path) -> tuple[str, str]:
    """The text of both splits."""
    meta = load_meta(folder)
    tokenizer = load_tokenizer(meta.tokenizer)
    files = [meta.shards(split) or [f"{split}.bin"] for split in ("train", "val")]
    return tuple(tokenizer.decode(np.concatenate([np.fromfile(folder / n, "<u2") for n in names])) for names in files)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in by relative paths, with a space in its name and two texts in it."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("play.txt").write_text(TEXT, "utf-8")
    Path("strange.txt").write_text(STRANGE, "utf-8")
    return folder


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`python data/prepare.py` in this process: exit status, stdout, stderr."""

    def call(*arguments: str, command: Callable[..., int] = prepare_command.main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
        status = entry.run(command)
        return status, *capsys.readouterr()

    return call


def suggested(message: str) -> list[str]:
    """The arguments of the script in the command that a message ends with."""
    _, script, *arguments = shlex.split(message[message.index("python ") :])
    assert Path(script).is_file()
    return arguments


class TestExistingTokenizers:
    @pytest.mark.parametrize("which", ["play", "data/play", "data/play/meta.json", "char:play.txt"])
    def test_by_where_they_are(self, here: Path, prepare: Callable[..., tuple], which: str) -> None:
        assert prepare("play.txt")[0] == 0
        Path("more.txt").write_text("proceed to Speak\n" * 9)
        # "Speak" has a capital S that the play lacks
        status, _, err = prepare("more.txt", f"--tokenizer={which}")
        assert status == 2 and "more.txt: there are 9 characters that the tokenizer lacks, 'S' (U+0053)" in err
        assert not Path("data/more").exists()
        assert prepare("more.txt", f"--tokenizer={which}", "--unknown=drop")[0] == 0
        assert load_meta(Path("data/more")).tokenizer == load_meta(Path("data/play")).tokenizer
        assert "".join(decoded(Path("data/more"))) == "proceed to peak\n" * 9

    def test_of_a_run(self, trained: Run, here: Path, prepare: Callable[..., tuple]) -> None:
        status, _, err = prepare("play.txt", f"--tokenizer={trained.out_dir}")
        assert (status, err) == (0, "")
        meta = load_meta(Path("data/play"))
        assert meta.vocab_size == 65 and decoded(Path("data/play"))[0] + decoded(Path("data/play"))[1] == TEXT

    def test_of_a_hugging_face_folder(self, here: Path, prepare: Callable[..., tuple]) -> None:
        tokenizers = pytest.importorskip("tokenizers")
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "First": 1, "Citizen": 2}, "[UNK]"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        Path("theirs").mkdir()
        made.save("theirs/tokenizer.json")
        assert prepare("play.txt", "--tokenizer=theirs")[0] == 0
        assert np.fromfile("data/play/train.bin", "<u2")[:4].tolist() == made.encode(TEXT[:20]).ids == [1, 2, 0, 0]

    def test_characters_that_are_lacking_are_named_dropped_or_made_spaces(
        self, here: Path, prepare: Callable[..., tuple]
    ) -> None:
        Path("plain.txt").write_text("caf to the wrld be\n" * 9)
        prepare("plain.txt")
        status, out, err = prepare("strange.txt", "--tokenizer=plain")
        assert (status, out) == (2, "")
        assert "60 characters" in err and "'é' (U+00E9), 'ö' (U+00F6), '—' (U+2014)" in err
        assert "--unknown=drop" in err and "--unknown=space" in err
        status, _, err = prepare("strange.txt", "--tokenizer=plain", "--unknown=drop")
        assert status == 0 and "note: dropped 60 characters" in err
        assert "".join(decoded(Path("data/strange"))) == "caf to the wrld  be\n" * 20
        assert prepare("strange.txt", "--tokenizer=plain", "--unknown=space")[0] == 0
        assert "".join(decoded(Path("data/strange"))) == "caf  to the w rld   be\n" * 20
        assert "is not one of refuse, drop, space" in prepare("strange.txt", "--unknown=forget")[2]

    def test_where_nothing_is_left_nothing_is_written(self, here: Path, prepare: Callable[..., tuple]) -> None:
        Path("digits.txt").write_text("0123456789")
        prepare("digits.txt")
        status, _, err = prepare("play.txt", "--tokenizer=digits", "--unknown=drop")
        assert status == 2 and "train and val would be empty" in err and not Path("data/play").exists()
        assert "lacks too" in prepare("play.txt", "--tokenizer=digits", "--unknown=space")[2]

    @pytest.mark.parametrize("which", ["", "nowhere", "bpe", "play.txt/x"])
    def test_what_is_none(self, here: Path, prepare: Callable[..., tuple], which: str) -> None:
        status, _, err = prepare("play.txt", f"--tokenizer={which}")
        assert status == 2 and f"tokenizer={which} is not" in err and len(err.splitlines()) == 1


@pytest.fixture
def nanogpts(here: Path) -> Path:
    """A data set as nanoGPT leaves it: characters, and a pickle that must not be opened."""
    folder = here / "nano gpt" / "chars"
    folder.mkdir(parents=True)
    (folder / "input.txt").write_text(TEXT, "utf-8")
    ids = np.array([sorted(set(TEXT)).index(character) for character in TEXT], "<u2")
    ids[:1000].tofile(folder / "train.bin")
    ids[1000:].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    return folder


class TestAdopting:
    def test_the_command_that_is_suggested_does_it(
        self, nanogpts: Path, here: Path, prepare: Callable[..., tuple]
    ) -> None:
        with pytest.raises(UserError, match=r"--adopt=") as error:
            load_meta(Path("nano gpt/chars"))
        before = {path.name: path.read_bytes() for path in nanogpts.iterdir()}
        status, out, err = prepare(*suggested(str(error.value)))
        assert status == 0 and "train has 1,000 tokens" in out
        assert "the training text begins: 'First Citizen:" in err
        assert "--dataset=chars '--data_dir=nano gpt'" in out
        assert decoded(nanogpts) == (TEXT[:1000], TEXT[1000:])
        assert {path.name: path.read_bytes() for path in nanogpts.iterdir() if path.name != "meta.json"} == before
        assert not (here / "pwned").exists()
        assert "is a data set already" in prepare(*suggested(str(error.value)))[2]

    def test_with_a_name_they_are_copied(self, nanogpts: Path, here: Path, prepare: Callable[..., tuple]) -> None:
        arguments = (f"--adopt={nanogpts}", "--tokenizer=char:play.txt", "--name=mine", "--shard_tokens=1024")
        assert prepare(*arguments)[0] == 0
        assert decoded(here / "data" / "mine") == (TEXT[:1000], TEXT[1000:])
        assert not (nanogpts / "meta.json").exists()

    def test_nanogpt_takes_no_carriage_returns(self, nanogpts: Path, prepare: Callable[..., tuple]) -> None:
        (nanogpts / "input.txt").write_bytes(TEXT.replace("\n", "\r\n").encode())
        assert prepare(f"--adopt={nanogpts}", f"--tokenizer=char:{nanogpts / 'input.txt'}")[0] == 0
        assert decoded(nanogpts) == (TEXT[:1000], TEXT[1000:])

    def test_tokens_that_are_not_the_tokenizers_are_refused(
        self, nanogpts: Path, here: Path, prepare: Callable[..., tuple]
    ) -> None:
        Path("other.txt").write_text("".join(map(chr, range(48, 126))))
        Path("fewer.txt").write_text("abcdefghij")
        for text, said in (("other.txt", "has 78 different ones"), ("fewer.txt", "outside the 10 of that tokenizer")):
            status, _, err = prepare(f"--adopt={nanogpts}", f"--tokenizer=char:{text}")
            assert status == 2 and said in err and not (nanogpts / "meta.json").exists()

    def test_a_doubtful_tokenizer_is_remarked_on(self, nanogpts: Path) -> None:
        summary = adopt(nanogpts, CharTokenizer(map(chr, range(32, 2000))))
        assert any("is it theirs?" in remark for remark in summary.remarks)

    @pytest.mark.parametrize("data", [b"", b"\0\0\1", None])
    def test_damaged_files_are_named(self, nanogpts: Path, data: bytes | None) -> None:
        (nanogpts / "val.bin").unlink()
        if data is not None:
            (nanogpts / "val.bin").write_bytes(data)
        with pytest.raises(UserError, match=r"val\.bin") as error:
            adopt(nanogpts, CharTokenizer.from_text(TEXT))
        assert len(str(error.value).splitlines()) == 1 and not (nanogpts / "meta.json").exists()

    @pytest.mark.parametrize(
        "arguments", [[], ["--tokenizer=char"], ["--tokenizer=bpe:300"], ["--tokenizer=gpt2", "f"]]
    )
    def test_it_must_be_said_what_the_tokens_are(self, prepare: Callable[..., tuple], arguments: list[str]) -> None:
        status, _, err = prepare("--adopt=x", *arguments)
        assert status == 2 and "--tokenizer=WHICH" in err


class TestADataSetInOtherTokens:
    def test_its_splits_stay(self, here: Path, prepare: Callable[..., tuple]) -> None:
        prepare("play.txt", "--val_fraction=0.3")
        splits = decoded(Path("data/play"))
        assert prepare("data/play", "--tokenizer=bpe:300", "--name=b", "--shard_tokens=1024")[0] == 0
        assert decoded(Path("data/b")) == splits and load_meta(Path("data/b")).vocab_size == 300
        assert prepare("data/b", "--tokenizer=play", "--name=c")[0] == 0
        for split in ("train.bin", "val.bin"):
            assert Path("data/c", split).read_bytes() == Path("data/play", split).read_bytes()

    def test_documents_stay_documents(self, tmp_path: Path) -> None:
        documents = [f"Document {i} <|endoftext|> naïve 日本" for i in range(20)] + [""]
        prepare_documents(documents, tmp_path / "one", "bpe:300", 0.2)
        prepare_data_set(tmp_path / "one", tmp_path / "two", "bpe:280")
        prepare_documents(documents, tmp_path / "direct", "bpe:280", 0.2)
        for file in ("train.bin", "val.bin", "meta.json"):
            assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "direct" / file).read_bytes()
        prepare_data_set(tmp_path / "one", tmp_path / "chars", "char")
        assert sorted("".join(decoded(tmp_path / "chars")).split("\n")) == sorted([*documents, ""])

    def test_it_is_not_written_over_by_itself(self, here: Path, prepare: Callable[..., tuple]) -> None:
        prepare("play.txt")
        before = decoded(Path("data/play"))
        assert "choose another name with --name=NAME" in prepare("data/play", "--tokenizer=bpe:300")[2]
        assert decoded(Path("data/play")) == before
        Path("empty").mkdir()
        assert "not a prepared data set" in prepare("empty", "--name=x")[2]


class TestDocuments:
    def test_name_characters_and_few_documents(self, here: Path, prepare: Callable[..., tuple]) -> None:
        Path("poems.jsonl").write_text('\ufeff{"text": "rose"}\n{"text": "lily"}\n{"text": "oak"}\n', "utf-8")
        arguments = ("poems.jsonl", "--name=poems", "--tokenizer=char", "--data_dir=data")
        assert prepare(*arguments, command=prepare_command.main_openwebtext)[0] == 0
        train, val = decoded(Path("data/poems"))
        assert train.count("\n") == 2 and val.count("\n") == 1
        assert sorted((train + val).split()) == ["lily", "oak", "rose"]
        assert load_meta(Path("data/poems")).tokenizer["characters"] == "\naeiklorsy"

    @pytest.mark.parametrize("val_fraction", [0.0005, 0.9999])
    def test_of_few_documents_the_nearest_changes_its_split(self, tmp_path: Path, val_fraction: float) -> None:
        for documents in (iter(["a", "b"]), ["a", "b"]):
            if not isinstance(documents, list):
                with pytest.raises(TypeError):
                    prepare_documents(documents, tmp_path, "char", val_fraction)
                continue
            prepare_documents(documents, tmp_path, "char", val_fraction)
            assert sorted(decoded(tmp_path)) == ["a\n", "b\n"]

    def test_an_existing_tokenizer_without_a_line_end(self, tmp_path: Path) -> None:
        tokenizer = CharTokenizer("ab ")
        with pytest.raises(UserError, match=r"'\\n' \(U\+000A\)"):
            prepare_documents(["a", "b"], tmp_path / "set", tokenizer)
        prepare_documents(["a", "b"], tmp_path / "set", tokenizer, unknown="space")
        assert sorted(decoded(tmp_path / "set")) == ["a ", "b "]

    def test_half_pairs_can_be_dropped_from_any(self, tmp_path: Path) -> None:
        prepare_documents(["a\ud800", "b"], tmp_path, "bpe:257", unknown="drop")
        assert sorted(decoded(tmp_path)) == ["a<|endoftext|>", "b<|endoftext|>"]


class TestRemarks:
    def test_a_bpe_of_fewer_tokens_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("abab " * 20)
        [remark] = prepare_text([tmp_path / "a.txt"], tmp_path / "set", "bpe:60000").remarks
        assert f"has {load_meta(tmp_path / 'set').vocab_size:,} tokens and not 60,000" in remark

    def test_other_formats_taken_for_text(self, here: Path, prepare: Callable[..., tuple]) -> None:
        Path("a b.jsonl").write_text('{"text": "rose"}\n' * 20)
        status, _, err = prepare("a b.jsonl")
        assert status == 0 and "note: a b.jsonl was taken as plain text" in err
        arguments = (*suggested(err), "--tokenizer=char", "--name=roses", "--data_dir=data")
        assert prepare(*arguments, command=prepare_command.main_openwebtext)[0] == 0
        assert set("".join(decoded(Path("data/roses"))).split()) == {"rose"}
        Path("table.CSV").write_text("a,b\n" * 20)
        assert "table.CSV was taken as plain text" in prepare("table.CSV")[2]

    def test_utf_16_is_named(self, here: Path, prepare: Callable[..., tuple]) -> None:
        Path("w.txt").write_text(TEXT, "utf-16")
        assert "it is UTF-16, so convert it first: iconv" in prepare("w.txt")[2]


def test_the_command_for_a_text_in_the_tokens_of_a_model(
    trained: Run, here: Path, prepare: Callable[..., tuple]
) -> None:
    Path("own.txt").write_text(STRANGE * 10, "utf-8")
    assert prepare("own.txt", "--data_dir=own data")[0] == 0
    given = {"init_from": str(trained.out_dir), "data_dir": "own data", "dataset": "own", "block_size": 8}
    with pytest.raises(UserError, match="put it in their tokens") as error:
        start.begun(Settings(**given), given)
    assert prepare(*suggested(str(error.value)))[0] == 0
    begun = start.begun(Settings(**{**given, "dataset": "own-as-trained"}), given)
    assert begun.data.vocab_size == 65
    assert "".join(decoded(Path("own data/own-as-trained"))) == "caf to the wrld  be\n" * 200


def test_a_data_set_named_by_its_path(here: Path, prepare: Callable[..., tuple]) -> None:
    prepare("play.txt")
    with pytest.raises(UserError, match=r"name the set and where it lies: --dataset=play --data_dir=data$"):
        start.begun(Settings(dataset="data/play", block_size=8), {})
    assert start.begun(Settings(dataset="play/", data_dir="data", block_size=8), {}).data.vocab_size > 0
    with pytest.raises(UserError, match=r"prepare\.py'? FILE\.\.\. --name=nothing"):  # quoted where it needs it
        start.begun(Settings(dataset="nothing"), {})


class Foreign(CharTokenizer):
    """A tokenizer of another program: not one of ours, and of more tokens than any model has."""

    vocab_size = 2**24 + 1


def test_more_tokens_than_any_model_has_are_refused(here: Path) -> None:
    with pytest.raises(UserError, match=r"16777217 is larger than 16777216 \(what float32 can count\)"):
        prepare_text([Path("play.txt")], Path("set"), Foreign(sorted(set(TEXT))))
    assert not Path("set").exists()
