"""What comes from Hugging Face's hub, from a stand-in on this machine; and one line where there is no network."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nanogpt_jax.cli import entry, prepare
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.prepared import load_meta, load_tokenizer
from nanogpt_jax.data.sources import OPENWEBTEXT, Documents
from nanogpt_jax.weights.loading import open_weights
from tests.helpers.hub import COMMIT, at, hub

NOWHERE = "http://127.0.0.1:9"  # the discard port, where nothing listens
TEXTS = [f"Document {i}: naïve 日本\n" for i in range(30)]


def parquet(path: Path, texts: list[str]) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path)


@pytest.fixture
def openwebtext(tmp_path: Path) -> Path:
    """The hub's folder with a little OpenWebText in its layout: two files, and others that are no part of it."""
    folder = tmp_path / "hub"
    data_set = folder / "datasets" / OPENWEBTEXT
    for number in range(2):
        parquet(data_set / "plain_text" / f"train-0000{number}-of-00002.parquet", TEXTS[15 * number :][:15])
    (data_set / "README.md").write_text("of no interest")
    return folder


def test_openwebtext_is_read_file_by_file_as_it_is_wanted(openwebtext: Path, tmp_path: Path) -> None:
    with hub(openwebtext, tmp_path / "cache") as asked:
        assert list(Documents(limit=4)) == TEXTS[:4]
        fetched = [line for line in asked if line.startswith("GET") and "/resolve/" in line]
        assert [Path(line).name for line in fetched] == ["train-00000-of-00002.parquet"]
        assert all(f"/resolve/{COMMIT}/" in line for line in fetched), "all files are of one commit"
        assert list(Documents()) == list(Documents()) == TEXTS
        assert sum("/resolve/" in line and line.startswith("GET") for line in asked) == 2, "each is fetched once"


def test_the_command_that_the_gpt2_preset_asks_for(
    openwebtext: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare.py", f"--data_dir={tmp_path}", "--tokenizer=bpe:300"])
    with hub(openwebtext, tmp_path / "cache"):
        assert entry.run(prepare.main_openwebtext) == 0
    assert "documents: 30" in capsys.readouterr().out
    tokens = np.concatenate([np.fromfile(tmp_path / "openwebtext" / f"{s}.bin", "<u2") for s in ("train", "val")])
    text = load_tokenizer(load_meta(tmp_path / "openwebtext").tokenizer).decode(tokens)
    assert sorted(text.split("<|endoftext|>")) == sorted([*TEXTS, ""])


def test_where_the_main_branch_has_a_script_alone_a_partial_conversion_is_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "hub" / "datasets" / OPENWEBTEXT / "plain_text" / "partial-train" / "0000.parquet", TEXTS)
    with hub(tmp_path / "hub", tmp_path / "cache"), pytest.raises(UserError, match="no parquet files of its whole"):
        list(Documents())


def offline_openwebtext() -> object:
    return list(Documents())


def offline_gpt2() -> object:
    return open_weights("gpt2")


@pytest.mark.parametrize("ask", [offline_openwebtext, offline_gpt2])
def test_without_a_network_or_what_is_wanted_one_line_says_so(ask: Callable[[], object], tmp_path: Path) -> None:
    for reach, mend in ((at(NOWHERE, tmp_path / "a"), "go online"), (hub(tmp_path / "empty", tmp_path / "b"), "name ")):
        with reach, pytest.raises(UserError, match=mend) as error:
            ask()
        assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400


def test_a_damaged_file_of_the_hub_is_named(openwebtext: Path, tmp_path: Path) -> None:
    for path in openwebtext.rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-20])
    with hub(openwebtext, tmp_path / "cache"), pytest.raises(UserError, match=r"train-00000.*as parquet"):
        list(Documents())


def test_gpt2_by_its_name_is_fetched_and_then_taken_from_the_cache(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=50257)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "hub" / "openai-community" / "gpt2")
    with hub(tmp_path / "hub", tmp_path / "cache"):
        weights = open_weights("gpt2")
    assert (weights.vocab_size, weights.settings["n_embd"], weights.tokenizer) == (50257, 8, {"type": "gpt2"})
    with at(NOWHERE, tmp_path / "cache"):
        assert open_weights("gpt2").settings == weights.settings
