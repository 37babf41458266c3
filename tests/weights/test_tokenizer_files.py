"""Tokenizers in files: ours as others read them, others' as we read them, and files that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import init_params
from nanogpt_jax.data import assets, prepared
from nanogpt_jax.data.prepare import prepare_text
from nanogpt_jax.data.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from nanogpt_jax.data.unknown import unknown_characters
from nanogpt_jax.weights.hf_format import write_hf
from nanogpt_jax.weights.tokenizer_files import begin_of, read_tokenizer, write_tokenizer
from tests.helpers.foreign import random_params
from tests.helpers.german import GERMAN, german, save_tokens
from tests.helpers.refusals import refusal

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


PLAY = "To be, or not to be, that is the question:\n" * 40


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
    params = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), shapes)
    write_hf(folder, config, params, made.eot_token, made.eot_token)
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

    @pytest.mark.parametrize(("make", "begin", "end"), [(llama, "<s>", "</s>"), (qwen, END_OF_TEXT, END_OF_TEXT)])
    def test_what_begins_and_ends_a_text_goes_along(
        self, make: Callable[[], Any], begin: str, end: str, tmp_path: Path
    ) -> None:
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=make(), eos_token=end)
        fast.save_pretrained(tmp_path)
        tokenizer = prepared.load_tokenizer(read_tokenizer(tmp_path, len(fast)))
        config = GPTConfig(
            block_size=8, vocab_size=len(fast), n_layer=1, n_head=1, n_embd=4, bias=False, position="rope", norm="rms",
            activation="swiglu",
        )  # fmt: skip
        write_hf(tmp_path, config, random_params(config), begin_of(tokenizer), tokenizer.eot_token)
        write_tokenizer(tmp_path, tokenizer, config.block_size)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert (theirs.bos_token, theirs.eos_token) == (begin, end)
        assert theirs("der Garten")["input_ids"] == tokenizer.encode("der Garten").tolist()
        generating = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
        assert (generating.bos_token_id, generating.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)

    @pytest.mark.parametrize(("said", "meant"), [(2, "</s>"), ([9999, 2, 1], "</s>"), (5, None), (None, None)])
    def test_config_json_may_say_by_its_number_what_ends_a_text(self, said: Any, meant: Any, tmp_path: Path) -> None:
        made = llama()
        made.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": said}))
        assert read_tokenizer(tmp_path, made.get_vocab_size())["end_of_text"] == meant

    def test_a_vocabulary_beyond_sixteen_bits_is_not_cut_to_them(self, tmp_path: Path) -> None:
        german(70_000).save(str(tmp_path / "tokenizer.json"))
        tokenizer = prepared.load_tokenizer(read_tokenizer(tmp_path, 70_000))
        assert tokenizer.vocab_size == 70_000 and tokenizer.encode("Der Garten").dtype == np.uint32
        (tmp_path / "text.txt").write_text(GERMAN)
        assert prepare_text([tmp_path / "text.txt"], tmp_path / "data", tokenizer).meta.dtype == "uint32"
        ids = np.fromfile(tmp_path / "data" / "train.bin", "<u4")
        assert GERMAN.startswith(tokenizer.decode(ids))

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
