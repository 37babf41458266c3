"""Prompts as the model reads them: files with other line ends, characters that the vocabulary lacks, no line end."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanogpt_jax.cli import sample
from nanogpt_jax.cli.text_settings import SampleSettings, TextSettings
from nanogpt_jax.cli.texts import prompt_text, sample_text
from nanogpt_jax.core import sampling
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import RunFailed, UserError
from nanogpt_jax.data.prepare import prepare_text
from nanogpt_jax.data.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from nanogpt_jax.lens.reading import rendered
from nanogpt_jax.lens.settings import LensSettings
from nanogpt_jax.run import loop
from tests.helpers.commands import command

PLAIN = CharTokenizer(" abcdefghijklmnopqrstuvwxyz")
LINES = CharTokenizer("\n abcdefghijklmnopqrstuvwxyz")
CRLF = CharTokenizer("\n\r abcdefghijklmnopqrstuvwxyz")
BYTES = BPETokenizer([])


@pytest.mark.parametrize(
    ("tokenizer", "text"), [(LINES, "to be\nor not\n"), (CRLF, "to be\r\nor not\r\n"), (BYTES, "to be\nor not\n")]
)
def test_a_file_of_another_system(tokenizer: Tokenizer, text: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfto be\r\nor not\r\n")
    prompt = prompt_text(SampleSettings(start=f"FILE:{tmp_path / 'p.txt'}"), tokenizer)
    assert prompt == text and tokenizer.decode(tokenizer.encode(prompt)) == text


@pytest.mark.parametrize("kind", [SampleSettings, LensSettings])
@pytest.mark.parametrize(("unknown", "text"), [("drop", "caf to be"), ("space", "caf  to be ")])
def test_characters_that_the_vocabulary_lacks(kind: type[TextSettings], unknown: str, text: str) -> None:
    assert prompt_text(kind(start="café to be!", unknown=unknown), LINES) == text
    assert prompt_text(kind(start="caf\udce9", unknown=unknown), BYTES) in ("caf", "caf ")
    with pytest.raises(UserError, match="--unknown=drop or --unknown=space"):
        LINES.encode(prompt_text(kind(start="café"), LINES))


def test_settings_of_what_is_unknown_are_checked() -> None:
    with pytest.raises(UserError, match="unknown='forget' is not one of refuse, drop, space"):
        SampleSettings(unknown="forget")
    with pytest.raises(UserError, match="which the vocabulary lacks too"):
        prompt_text(SampleSettings(start="é", unknown="space"), CharTokenizer("abc"))
    assert prompt_text(SampleSettings(unknown="space"), CharTokenizer("abc")) == "a"


@pytest.fixture(scope="module")
def of_one_line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a text without a line end."""
    folder = tmp_path_factory.mktemp("one line")
    (folder / "text.txt").write_text("to be or not to be " * 30)
    prepare_text([folder / "text.txt"], folder / "data" / "line")
    settings = Settings(
        dataset="line", data_dir=str(folder / "data"), out_dir=str(folder / "out"), n_layer=1, n_head=1, n_embd=8,
        block_size=8, batch_size=2, gradient_accumulation_steps=1, eval_iters=1, max_iters=1, eval_interval=1,
        warmup_iters=0, accelerator="cpu",
    )  # fmt: skip
    loop.train(settings)
    return folder


def test_without_a_prompt_a_text_of_one_line_begins_with_its_first_character(
    of_one_line: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample_text(SampleSettings(out_dir=str(of_one_line / "out"), max_new_tokens=5, num_samples=1))
    printed = capsys.readouterr()
    assert printed.out.startswith(" ") and len(printed.out.splitlines()[0]) == 6
    assert "start: ' '" in printed.err
    assert '"given":1' in rendered(LensSettings(out_dir=str(of_one_line / "out"), max_new_tokens=1))


def test_what_is_sampled_begins_with_what_was_read(of_one_line: Path) -> None:
    done = command("sample.py", "--out_dir=out", "--start=tö be", "--unknown=drop", "--max_new_tokens=3",
                   "--num_samples=1", cwd=of_one_line)  # fmt: skip
    assert done.status == 0 and done.out.startswith("t be")
    done = command("sample.py", "--out_dir=out", "--start=é", "--unknown=drop", cwd=of_one_line)
    assert done.status == 2 and "the prompt is empty" in done.err


def test_more_texts_than_memory_holds_are_one_line(of_one_line: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(sampling, "begin", refuse)
    with pytest.raises(RunFailed, match=r"^out of memory with num_samples=9, max_new_tokens=500; lower one of them"):
        sample.main([f"--out_dir={of_one_line / 'out'}", "--num_samples=9", "--accelerator=cpu"])


def test_a_text_shorter_than_a_block_names_what_fits(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("to be or not to be")
    prepare_text([tmp_path / "t.txt"], tmp_path / "data" / "t")
    done = command("train.py", "--dataset=t", f"--data_dir={tmp_path / 'data'}", "--out_dir=out", cwd=tmp_path)
    assert done.status == 2 and "choose at most 15, or prepare a longer text" in done.err
