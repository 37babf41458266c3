"""Whose tokens a model of others has: its own files are read, what we write carries them, and guesses are said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from nanogpt_jax import convert
from nanogpt_jax.cli.text_settings import SampleSettings
from nanogpt_jax.cli.texts import sample_text
from nanogpt_jax.core.config import Settings
from nanogpt_jax.data import prepared
from nanogpt_jax.data.prepare import prepare_text
from nanogpt_jax.data.tokenizer import END_OF_TEXT
from nanogpt_jax.lens.reading import rendered
from nanogpt_jax.lens.settings import LensSettings
from nanogpt_jax.run import loop
from nanogpt_jax.weights.tokenizer_files import read_tokenizer
from tests.helpers.german import german, save_tokens
from tests.helpers.refusals import refusal

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


PLAY = "To be, or not to be, that is the question:\n" * 40


def save_model(folder: Path, rows: int, seed: int = 0) -> Any:
    """A random GPT-2 of Hugging Face's in `folder`, decided enough that no two tokens are nearly as likely."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=rows, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
        model.transformer.wte.weight[400:].mul_(0.05)  # so that words which the tokenizer can make are drawn
    model.save_pretrained(folder)
    return model


@pytest.fixture(
    scope="module",
    params=[
        ("tokenizer.json", 50_257), ("transformers", 50_257), ("files", 50_257), ("added", 50_257), ("files", 40_000),
    ],
    ids=lambda param: f"{param[0]}-{param[1]}",
)  # fmt: skip
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model with German tokens of its own, its folder, and what transformers makes of both."""
    form, size = request.param
    folder = tmp_path_factory.mktemp("mit Umlaut ä")
    rows = size + 2 * (form == "added")
    model = save_model(folder, rows)
    save_tokens(folder, german(size), form)
    return model, folder, transformers.AutoTokenizer.from_pretrained(folder), rows


def greedy(model: Any, made: Any, prompt: str, tokens: int) -> str:
    """Prompt and continuation as transformers writes them."""
    ids = torch.tensor([made(prompt)["input_ids"]])
    usual = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    drawn = model.generate(ids, max_new_tokens=tokens, do_sample=False, **usual)
    return prompt + made.decode(drawn[0, ids.shape[1] :])


def sampled(capsys: pytest.CaptureFixture[str], source: object, prompt: str, tokens: int) -> tuple[str, str]:
    """The likeliest text by `sample.py`, and what it said beside it."""
    capsys.readouterr()
    options = {"temperature": 0.0, "top_k": None, "num_samples": 1, "accelerator": "cpu"}
    sample_text(SampleSettings(init_from=str(source), start=prompt, max_new_tokens=tokens, **options))
    out, err = capsys.readouterr()
    return out.removesuffix("\n---------------\n"), err


PROMPTS = ("Der Garten", "Der", "groß,\r\n  Straße 🎉\t<|user|>!", "日本", "a<|endoftext|>b  ")


class TestFoldersOfOthers:
    def test_text_and_ids_are_those_of_transformers(self, theirs: Any, capsys: Any) -> None:
        model, folder, made, rows = theirs
        tokenizer = prepared.load_tokenizer(read_tokenizer(folder, rows))
        assert tokenizer.vocab_size == rows == len(made)
        assert tokenizer.decode([tokenizer.eot_token]) == END_OF_TEXT
        for prompt in PROMPTS:
            assert tokenizer.encode(prompt).tolist() == made(prompt)["input_ids"]
            assert tokenizer.decode(tokenizer.encode(prompt)) == prompt
        text, said = sampled(capsys, folder, "Der Garten", 12)
        assert text == greedy(model, made, "Der Garten", 12)
        assert not said

    def test_the_tokenizer_travels_with_the_run_and_back(self, theirs: Any, capsys: Any, tmp_path: Path) -> None:
        model, folder, made, rows = theirs
        expected = greedy(model, made, "Der Garten", 8)
        assert convert.main([str(folder), str(tmp_path / "run")]) == 0
        assert sampled(capsys, tmp_path / "run", "Der Garten", 8)[0] == expected
        assert convert.main([str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
        assert sampled(capsys, tmp_path / "hf", "Der Garten", 8)[0] == expected
        again = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
        assert [again(prompt)["input_ids"] for prompt in PROMPTS] == [made(prompt)["input_ids"] for prompt in PROMPTS]
        assert read_tokenizer(tmp_path / "hf", rows) == read_tokenizer(folder, rows)
        html = rendered(LensSettings(init_from=str(folder), start="Der Garten", max_new_tokens=1))
        assert json.dumps(made.decode([made("Der Garten")["input_ids"][1]])) in html


def test_a_data_set_of_other_tokens_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", 50_257)
    save_tokens(tmp_path / "hf", german(50_257), "files")
    (tmp_path / "play.txt").write_text(PLAY)
    prepare_text([tmp_path / "play.txt"], tmp_path / "data" / "play")
    folders = {"data_dir": str(tmp_path / "data"), "out_dir": str(tmp_path / "o")}
    run = Settings(init_from=str(tmp_path / "hf"), dataset="play", **folders)
    for each in (run, dataclasses.replace(run, eval_only=True)):
        assert "hf were trained with another tokenizer than" in refusal(loop.train, each)
    assert not (tmp_path / "o").exists()


class Lab:
    """A data set of characters, and a model trained on it whose table has more rows than there are characters."""

    def __init__(self, folder: Path, rows: int) -> None:
        (folder / "play.txt").write_text(PLAY + "§\r\n\t日本 ½\n" * 9, newline="")
        self.data_dir = folder / "data"
        prepare_text([folder / "play.txt"], self.data_dir / "play")
        self.rows = rows
        self.run = folder / "run"
        self.settings = Settings(
            dataset="play", data_dir=str(self.data_dir), out_dir=str(self.run), n_layer=1, n_head=2, n_embd=16,
            block_size=8, batch_size=2, gradient_accumulation_steps=1, max_iters=2, eval_iters=1, eval_interval=2,
            warmup_iters=1, lr_decay_iters=9, vocab_size=rows, learning_rate=1e-1, bias=False,
        )  # fmt: skip
        self.loss = loop.train(self.settings)
        self.tokenizer = prepared.load_tokenizer(prepared.load_meta(self.data_dir / "play").tokenizer)

    def loss_of(self, source: Path) -> float:
        """The loss over the whole validation split of the weights at `source`."""
        return loop.train(dataclasses.replace(self.settings, init_from=str(source), eval_only=True, vocab_size=None))


@pytest.fixture(scope="module", params=[128, 50_304])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), request.param)


class TestWhatWeWrite:
    def test_characters_go_to_others_and_come_back(self, lab: Lab, capsys: Any, tmp_path: Path) -> None:
        expected = sampled(capsys, lab.run, "To be", 20)[0]
        assert set(expected) <= set(lab.tokenizer.itos)
        ways = {"ckpt.pt": lab.run, "hf": lab.run, "back": tmp_path / "ckpt.pt", "back-hf": tmp_path / "hf"}
        for name, source in ways.items():
            form = ["--to=hf"] if name == "hf" else []
            assert convert.main([str(source), str(tmp_path / name), *form, f"--data_dir={lab.data_dir}"]) == 0
            assert sampled(capsys, tmp_path / name, "To be", 20) == (expected, "")
        assert lab.loss_of(tmp_path / "back-hf") == pytest.approx(lab.loss, abs=1e-4)

        made = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
        text = PLAY[:99] + "§\r\n\n  \t日½"
        assert made(text)["input_ids"] == lab.tokenizer.encode(text).tolist()
        assert made.decode(made(text)["input_ids"]) == text
        with pytest.raises(Exception, match="UNK"):  # what is no character of the vocabulary is refused there too
            made("Zürich")
        config = json.loads((tmp_path / "hf" / "config.json").read_text())
        assert config["eos_token_id"] is None and config["vocab_size"] == lab.rows
        document = torch.load(tmp_path / "ckpt.pt", weights_only=True)
        assert prepared.load_tokenizer(document["tokenizer"]).itos == lab.tokenizer.itos

    def test_a_checkpoint_without_a_tokenizer_has_its_data_sets(
        self, lab: Lab, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As nanoGPT writes it."""
        expected = sampled(capsys, lab.run, "To be", 9)[0]
        convert.main([str(lab.run), str(tmp_path / "ckpt.pt")])
        document = torch.load(tmp_path / "ckpt.pt", weights_only=True)
        del document["tokenizer"]
        torch.save(document, tmp_path / "ckpt.pt")
        monkeypatch.chdir(lab.data_dir.parent)
        text, said = sampled(capsys, tmp_path / "ckpt.pt", "To be", 9)
        assert text == expected
        assert f"taking the first {lab.tokenizer.vocab_size} for those of data/play" in said

        (lab.data_dir / "play").rename(lab.data_dir / "moved")
        try:
            if lab.rows == 50_304:
                assert "assuming GPT-2's" in sampled(capsys, tmp_path / "ckpt.pt", "To be", 2)[1]
            else:
                refused = refusal(sampled, capsys, tmp_path / "ckpt.pt", "To be", 2)
                assert "ckpt.pt does not say what its tokens are" in refused
            settings = dataclasses.replace(lab.settings, dataset="moved", vocab_size=None)
            run = dataclasses.replace(settings, init_from=str(tmp_path / "ckpt.pt"), eval_only=True)
            assert loop.train(run) == pytest.approx(lab.loss, abs=1e-4)
            assert "ckpt.pt does not say what its tokens are: taking them for those of" in capsys.readouterr().out
        finally:
            (lab.data_dir / "moved").rename(lab.data_dir / "play")
