"""Whose tokens a model of others has: its own files are read, what we write carries them, and guesses are said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax import convert
from nanogpt_jax.cli.sample import SampleSettings, sample_text
from nanogpt_jax.core.config import GPTConfig, Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.train_step import init_params
from nanogpt_jax.data import assets, prepared
from nanogpt_jax.data.prepare import prepare_text
from nanogpt_jax.data.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from nanogpt_jax.data.unknown import unknown_characters
from nanogpt_jax.lens import command
from nanogpt_jax.run import loop
from nanogpt_jax.weights.hf_format import write_hf
from nanogpt_jax.weights.tokenizer_files import read_tokenizer, write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

GERMAN = "Der Garten war groß, und die Gärtnerin goss täglich die Blumen vor dem Haus der Großmutter.\n"
PLAY = "To be, or not to be, that is the question:\n" * 40


def refusal(function: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """The one line with which something is refused."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def german(size: int) -> Any:
    """A byte-level BPE learned from German, made up to `size` tokens by words that never come up."""
    learned = tokenizers.ByteLevelBPETokenizer()
    learned.train_from_iterator([GERMAN] * 4, vocab_size=340, special_tokens=[END_OF_TEXT], show_progress=False)
    model = json.loads(learned.to_str())["model"]
    filled = model["vocab"] | {f"Füllwort{i}": i for i in range(len(model["vocab"]), size)}
    made = tokenizers.ByteLevelBPETokenizer(filled, [tuple(pair) for pair in model["merges"]])
    made.add_special_tokens([END_OF_TEXT])
    assert made.get_vocab_size() == size
    return made


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


def save_tokens(folder: Path, made: Any, form: str) -> None:
    """The tokenizer in `folder`, in one of the forms that programs have given it over the years."""
    if form == "tokenizer.json":
        made.save(str(folder / "tokenizer.json"))
    elif form == "transformers":
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token=END_OF_TEXT)
        fast.save_pretrained(folder)
    else:
        made.save_model(str(folder))
    if form == "added":
        rows = made.get_vocab_size()
        (folder / "added_tokens.json").write_text(json.dumps({"<|user|>": rows, "<|assistant|>": rows + 1}))


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
        html = command.rendered(command.LensSettings(init_from=str(folder), start="Der Garten", max_new_tokens=1))
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


CHARACTERS = "\n\r\t\x0b\x1c\x85\xa0\u2028\u3000 abc'<|>éß日🎉"
TEXTS = st.lists(st.sampled_from([*CHARACTERS, "aaa", "the ", "ing", "'ll", END_OF_TEXT, "12"]), max_size=30).map(
    "".join
)


@pytest.fixture(scope="module", params=["char", "bpe", "gpt2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of ours, what AutoTokenizer makes of its files, and their folder."""
    if request.param == "char":
        made: Tokenizer = CharTokenizer.from_text(CHARACTERS + "".join(map(chr, range(32, 127))))
    elif request.param == "bpe":
        made = BPETokenizer.train([PLAY, "aaaa aaaaaa the thing is bringing\n\n\n   " * 9] * 2, 400)
    else:
        try:
            made = GPT2Tokenizer(assets.gpt2_ranks())
        except UserError as error:
            pytest.skip(f"GPT-2's ranks can't be had here: {error}")
    folder = tmp_path_factory.mktemp(request.param)
    config = GPTConfig(block_size=8, vocab_size=made.vocab_size, n_layer=1, n_head=1, n_embd=4)
    shapes = jax.eval_shape(lambda: init_params(GPT(config), 0))
    write_hf(folder, config, jax.tree.map(lambda p: np.zeros(p.shape, np.float32), shapes), made.eot_token)
    write_tokenizer(folder, made, config.block_size)
    return made, transformers.AutoTokenizer.from_pretrained(folder), folder


class TestExportedTokenizers:
    @settings(deadline=None, max_examples=300)
    @given(TEXTS)
    def test_every_text_has_the_same_ids(self, pair: Any, text: str) -> None:
        ours, theirs, _ = pair
        assert theirs(text)["input_ids"] == ours.encode(text).tolist()
        assert theirs.decode(ours.encode(text).tolist()) == text

    def test_it_is_known_again(self, pair: Any, tmp_path: Path) -> None:
        ours, theirs, folder = pair
        assert read_tokenizer(folder, ours.vocab_size) == ours.to_json()
        theirs.save_pretrained(tmp_path)  # and after transformers has written it
        assert read_tokenizer(tmp_path, ours.vocab_size) == ours.to_json()
        assert theirs.eos_token_id == ours.eot_token
        theirs.add_tokens(["<|user|>"])
        theirs.save_pretrained(tmp_path)
        assert read_tokenizer(tmp_path, ours.vocab_size + 1)["type"] == "hf"


def llama() -> Any:
    """As Llama 2's: SentencePiece's marks for spaces, bytes for what has no piece, a token before every text."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁abcderngtuoßG",
        "▁G",
        "en",
        "▁Gar",
    ]
    merges = [("▁", "G"), ("e", "n"), ("▁G", "a"), ("▁Ga", "r")]
    vocab = {piece: i for i, piece in enumerate([*pieces, "▁Ga"])}
    model = tokenizers.models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    steps = tokenizers.decoders
    made.decoder = steps.Sequence([steps.Replace("▁", " "), steps.ByteFallback(), steps.Fuse(), steps.Strip(" ", 1, 0)])
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def qwen() -> Any:
    """As Qwen's: NFC, words cut by a pattern of its own, then bytes."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.NFC()
    pattern = tokenizers.Regex(
        r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Split(pattern, "isolated"), level]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([GERMAN] * 3, trainer)
    made.add_special_tokens(["<|im_start|>", "<|endoftext|>"])
    made.enable_truncation(4)  # which transformers does not heed either
    return made


def words() -> Any:
    """WordPiece, as models of Chinese GPT-2s have it."""
    vocab = {piece: i for i, piece in enumerate(["[UNK]", "der", "garten", "gr", "##o", "##ß", "日", "本", "!"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(strip_accents=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    return made


class TestOtherKinds:
    @pytest.mark.parametrize("make", [llama, qwen, words])
    def test_ids_are_those_of_transformers_and_text_streams(self, make: Callable[[], Any], tmp_path: Path) -> None:
        made = make()
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
        fast.save_pretrained(tmp_path)
        tokenizer = prepared.load_tokenizer(json.loads(json.dumps(read_tokenizer(tmp_path, len(fast)))))
        for text in ("Garten der groß", "der 日本 🎉 garten!", "Gar\r\n\tten  ", "u\u0308", "<|im_start|>der"):
            ids = fast(text)["input_ids"]
            assert tokenizer.encode(text).tolist() == ids
            assert tokenizer.decode(ids) == fast.decode(ids, clean_up_tokenization_spaces=False)
            # What a text is continued by, token for token, is what the longer text has more.
            whole = tokenizer.decode_bytes(ids).decode(errors="replace")
            assert whole.removeprefix("<s>").lstrip() == tokenizer.decode(ids).removeprefix("<s>").lstrip()
            assert b"".join(tokenizer.decode_bytes([i]) for i in ids) == tokenizer.decode_bytes(ids)

    def test_a_vocabulary_beyond_sixteen_bits_is_not_cut_to_them(self, tmp_path: Path) -> None:
        german(70_000).save(str(tmp_path / "tokenizer.json"))
        tokenizer = prepared.load_tokenizer(read_tokenizer(tmp_path, 70_000))
        assert tokenizer.vocab_size == 70_000 and tokenizer.encode("Der Garten").dtype == np.uint32
        (tmp_path / "text.txt").write_text(GERMAN)
        refused = refusal(prepare_text, [tmp_path / "text.txt"], tmp_path / "data", tokenizer)
        assert "vocab_size=70000 is larger than 65536 (tokens are stored in 16 bits)" in refused
        assert not (tmp_path / "data").exists()

    def test_what_the_library_would_drop_in_silence_is_refused(self, tmp_path: Path) -> None:
        learned = tokenizers.Tokenizer(tokenizers.models.BPE())
        learned.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        learned.decoder = tokenizers.decoders.ByteLevel()
        learned.train_from_iterator([GERMAN], tokenizers.trainers.BpeTrainer(vocab_size=99, show_progress=False))
        learned.save(str(tmp_path / "tokenizer.json"))
        tokenizer = prepared.load_tokenizer(read_tokenizer(tmp_path, 99))
        assert tokenizer.decode(tokenizer.encode("Der Garten")) == "Der Garten"
        assert "'Z' (U+005A) has no token" in refusal(tokenizer.encode, "Der Zarten")
        assert unknown_characters(tokenizer, "DZé") == ["Z", "é"]


class TestFilesThatDoNotFit:
    def folder(self, tmp_path: Path) -> Path:
        german(400).save(str(tmp_path / "tokenizer.json"))
        return tmp_path

    def test_added_tokens_beyond_the_table_are_left_out(self, tmp_path: Path, capsys: Any) -> None:
        folder = self.folder(tmp_path)
        (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "eos_token": END_OF_TEXT}))
        tokenizer = prepared.load_tokenizer(read_tokenizer(folder, 400))
        assert f"{folder}: leaving out '[PAD]': the model has 400 tokens" in capsys.readouterr().err
        assert tokenizer.vocab_size == 400 and tokenizer.decode([tokenizer.eot_token]) == END_OF_TEXT
        assert prepared.load_tokenizer(read_tokenizer(folder, 401)).encode("[PAD]").tolist() == [400]

    def test_a_vocabulary_larger_than_the_table_is_refused(self, tmp_path: Path) -> None:
        assert "has 400 tokens where the model has 300" in refusal(read_tokenizer, self.folder(tmp_path), 300)

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "{}", '{"model": 3}', '{"model": {"type": "BPE"}}', "\ud800", "null"]
    )
    def test_a_damaged_file_is_named(self, text: str, tmp_path: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
            german(400).save(str(tmp_path / "tokenizer.json"))
            (tmp_path / name).write_text(text, errors="surrogatepass")
            try:
                found = read_tokenizer(tmp_path, 400)
            except UserError as error:
                assert name in str(error) or "added tokens" in str(error)
                assert "\n" not in str(error)
            else:
                assert found is not None and name != "tokenizer.json"
            (tmp_path / name).unlink()

    def test_a_kind_that_is_not_read_says_how_to_make_one_that_is(self, tmp_path: Path) -> None:
        (tmp_path / "vocab.txt").write_text("[UNK]\nder\n")
        assert "its tokenizer is in vocab.txt, which is not read here" in refusal(read_tokenizer, tmp_path, 2)

    @pytest.mark.parametrize("form", ["files", "tokenizer.json"])
    def test_a_token_that_begins_every_text_is_asked_for_as_in_transformers(self, form: str, tmp_path: Path) -> None:
        folder = tmp_path
        save_tokens(folder, german(400), form)
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": END_OF_TEXT}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        ids = prepared.load_tokenizer(read_tokenizer(folder, 400)).encode("Der Garten").tolist()
        assert ids == transformers.AutoTokenizer.from_pretrained(folder)("Der Garten")["input_ids"]
        assert (ids[0] == 0) == (form == "files")
