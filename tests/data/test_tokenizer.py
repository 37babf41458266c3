"""Tokenizers: round trips, known encodings, cuts that leave tokens alone, documents anyone may have written."""

from __future__ import annotations

import codecs
import copy
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data import assets
from nanogpt_jax.data.stored_tokenizer import tokenizer_from_json
from nanogpt_jax.data.tokenizer import BPETokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer, word_cut

SAMPLE = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak. It's 1, 22 or 333 naïve 日本!\n"
patient = settings(deadline=None, max_examples=60)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))
# Text where GPT-2's pattern has decisions to make: contractions, runs of white space of all kinds, digits, marks.
BLANKS = " \n\r\t\x0b\x1c\x85\xa0\u2028\u3000"
WORDS = ("a", "the", "It's", "'ll", "7", "日本", "é", "🎉", "!", "<|endoftext|>")
TRICKY = st.lists(st.sampled_from([*WORDS, *BLANKS])).map("".join)


@pytest.fixture(scope="module")
def gpt2() -> GPT2Tokenizer:
    try:
        return GPT2Tokenizer(assets.gpt2_ranks())
    except UserError as error:
        pytest.skip(f"GPT-2's ranks can't be had here: {error}")


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return BPETokenizer.train([SAMPLE] * 2, 300)


@pytest.fixture(scope="module", params=["char", "gpt2", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "char":
        return CharTokenizer.from_text(SAMPLE)
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def theirs() -> Any:
    """tiktoken's own idea of GPT-2, without its special token."""
    registered = pytest.importorskip("tiktoken_ext.openai_public")
    if not hasattr(registered, "r50k_pat_str"):
        pytest.skip("tiktoken keeps its pattern elsewhere")
    import tiktoken

    ranks = assets.gpt2_ranks()
    return tiktoken.Encoding("theirs", pat_str=registered.r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


def no_ranks() -> dict[bytes, int]:
    raise UserError("no ranks here")


def refusal(function: Callable[..., object], *arguments: object) -> str:
    """The line with which a call is refused."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_round_trip(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(SAMPLE)
    assert ids.dtype == np.uint16 and ids.ndim == 1 and ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == SAMPLE
    assert tokenizer.decode(ids.tolist()) == SAMPLE
    assert tokenizer.decode_bytes(ids) == SAMPLE.encode()
    assert tokenizer.encode("").size == 0 and tokenizer.encode("").dtype == np.uint16
    assert tokenizer.decode([]) == "" and tokenizer.decode_bytes(np.zeros(0, np.uint16)) == b""


@patient
@given(UNICODE | TRICKY)
def test_round_trip_of_any_text(tokenizer: Tokenizer, text: str) -> None:
    if isinstance(tokenizer, CharTokenizer):
        tokenizer = CharTokenizer.from_text(text + ".")
    for ids in (tokenizer.encode(text), tokenizer.encode_ordinary(text)):
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()


def test_threads_make_of_a_text_what_one_makes(tokenizer: Tokenizer) -> None:
    texts = [SAMPLE[i:] + SAMPLE[:i] for i in range(len(SAMPLE))]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(tokenizer.encode_ordinary, texts))
    assert [ids.tolist() for ids in made] == [tokenizer.encode_ordinary(text).tolist() for text in texts]


def test_bytes_stream_through_an_incremental_decoder(tokenizer: Tokenizer) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    assert "".join(decoder.decode(tokenizer.decode_bytes([i])) for i in tokenizer.encode(SAMPLE)) == SAMPLE


def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        assert f"token {tokenizer.vocab_size} at position 1" in refusal(decode, [0, tokenizer.vocab_size])
        assert "token -1" in refusal(decode, [-1])
        with pytest.raises(TypeError):
            decode([0.5])


def test_lone_surrogates_are_refused(tokenizer: Tokenizer) -> None:
    assert "U+D83D) at position 1" in refusal(tokenizer.encode, "a\ud83d")


def test_json_round_trip(tokenizer: Tokenizer) -> None:
    document = json.loads(json.dumps(tokenizer.to_json()))
    assert document == tokenizer.to_json()
    again = tokenizer_from_json(document, assets.gpt2_ranks)
    assert again.to_json() == document and again.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(again.encode(SAMPLE), tokenizer.encode(SAMPLE))


class TestCharTokenizer:
    def test_characters_are_sorted_as_in_nanogpt(self) -> None:
        tokenizer = CharTokenizer.from_text("hello\nworld")
        assert tokenizer.itos == ["\n", "d", "e", "h", "l", "o", "r", "w"]
        assert tokenizer.stoi["h"] == 3 and tokenizer.vocab_size == 8 and tokenizer.eot_token is None
        assert tokenizer.encode("hello").tolist() == [3, 2, 4, 4, 5]

    @patient
    @given(UNICODE.filter(bool))
    def test_fast_encoding_equals_the_plain_one(self, text: str) -> None:
        tokenizer = CharTokenizer.from_text(text)
        assert tokenizer.encode(text).tolist() == [tokenizer.stoi[character] for character in text]

    @pytest.mark.parametrize("stranger", ["é", "!", "\U0010ffff", "\x00"])
    def test_a_stranger_is_named_with_its_place(self, stranger: str) -> None:
        message = refusal(CharTokenizer("abyz").encode, "aby" + stranger + "é")
        assert repr(stranger) in message and f"U+{ord(stranger):04X}" in message and "position 3" in message

    def test_the_type_of_the_ids_is_as_small_as_the_vocabulary_allows(self) -> None:
        everything = [chr(i) for i in range(0x20000) if not 0xD800 <= i < 0xE000]
        for size, dtype in ((65_536, np.uint16), (65_537, np.uint32)):
            ids = CharTokenizer(everything[:size]).encode(everything[size - 1])
            assert ids.tolist() == [size - 1] and ids.dtype == dtype

    def test_vocabularies_that_do_not_fit_are_refused(self) -> None:
        assert "bpe" in refusal(CharTokenizer, "")
        assert "'a' twice" in refusal(CharTokenizer, "aba")
        assert "'ab'" in refusal(CharTokenizer, ["ab"])


class TestGPT2Tokenizer:
    def test_known_encodings(self, gpt2: GPT2Tokenizer) -> None:
        assert gpt2.vocab_size == 50_257 and gpt2.eot_token == 50_256
        assert gpt2.encode("hello world").tolist() == [31373, 995]
        assert gpt2.encode("Hello, I'm a language model,").tolist() == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
        assert gpt2.encode("a<|endoftext|>").tolist() == [64, 50256]
        assert 50256 not in gpt2.encode_ordinary("a<|endoftext|>")

    @patient
    @given(TRICKY)
    def test_the_pattern_means_what_tiktokens_own_means(self, gpt2: GPT2Tokenizer, theirs: Any, text: str) -> None:
        assert gpt2.encode_ordinary(text).tolist() == theirs.encode_ordinary(text)


class TestBPETokenizer:
    def test_learns_what_is_frequent(self, bpe: BPETokenizer) -> None:
        assert 257 < bpe.vocab_size <= 300
        assert len(bpe.encode("speak")) < 5
        assert bpe.encode("\x00").tolist() == [0], "the first ids are the bytes themselves"

    def test_training_is_repeatable(self, bpe: BPETokenizer) -> None:
        assert BPETokenizer.train(iter([SAMPLE] * 2), 300).to_json() == bpe.to_json()

    def test_end_of_text_is_the_last_token_and_text_in_documents(self, bpe: BPETokenizer) -> None:
        assert bpe.eot_token == bpe.vocab_size - 1
        assert bpe.encode("a<|endoftext|>b").tolist() == [97, bpe.eot_token, 98]
        assert bpe.eot_token not in bpe.encode_ordinary("a<|endoftext|>b")
        assert bpe.decode([bpe.eot_token]) == "<|endoftext|>"

    @pytest.mark.parametrize("size", [-1, 0, 256, 2**24 + 1])
    def test_sizes_out_of_range_are_refused(self, size: int) -> None:
        assert "257" in refusal(BPETokenizer.train, ["text"], size)

    def test_endless_white_space_is_refused(self, bpe: BPETokenizer) -> None:
        assert "white space" in refusal(bpe.encode, " " * 1_500_000 + "x")

    def test_a_text_without_pairs_gives_the_bytes_alone(self) -> None:
        assert BPETokenizer.train(["abc"], 1000).vocab_size == 257


class TestCuts:
    @patient
    @given(st.text(st.sampled_from("ab1' \n\t\x1c\u3000é!")))
    def test_cut_is_at_the_last_word_end(self, text: str) -> None:
        places = [i for i in range(1, len(text)) if not text[i - 1].isspace() and text[i] in " \t\r\n"]
        assert word_cut(text) == max(places, default=0)

    @patient
    @given(TRICKY, TRICKY)
    def test_a_cut_leaves_the_tokens_alone(self, tokenizer: Tokenizer, text: str, more: str) -> None:
        if isinstance(tokenizer, CharTokenizer):
            tokenizer = CharTokenizer.from_text(text + more + ".")
        cut = tokenizer.cut(text)
        parts = [tokenizer.encode_ordinary(part).tolist() for part in (text[:cut], text[cut:] + more)]
        assert parts[0] + parts[1] == tokenizer.encode_ordinary(text + more).tolist()


class TestForeignDocuments:
    JSON = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=8,
    )
    VALID = (
        {"type": "char", "characters": "abc"},
        {"type": "gpt2"},
        {"type": "bpe", "merges": ["a b", "ab c", "Ġ a", "a bc"]},
    )

    @staticmethod
    def read(document: object) -> Tokenizer | None:
        try:
            return tokenizer_from_json(document, no_ranks)
        except UserError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 400
            return None

    @patient
    @given(JSON)
    def test_any_json(self, document: object) -> None:
        assert self.read(document) is None

    @patient
    @given(st.sampled_from(VALID), st.data())
    def test_mutations_of_valid_ones(self, valid: dict, data: st.DataObject) -> None:
        document = copy.deepcopy(valid)
        key = data.draw(st.sampled_from([*valid, "more"]))
        document[key] = data.draw(self.JSON | st.sampled_from(["char", "gpt2", "bpe"]) | st.text("abĠ "))
        if isinstance(document.get("merges"), list) and data.draw(st.booleans()):
            document["merges"].insert(data.draw(st.integers(0, 4)), data.draw(self.JSON | st.text("abcĠ ", max_size=4)))
        made = self.read(document)
        assert made is None or made.to_json() == document

    @pytest.mark.parametrize(
        ("document", "named"),
        [
            ({"type": "char", "characters": ["a", "b"]}, "no known form"),
            ({"type": "char", "characters": "aa"}, "twice"),
            ({"type": "char", "characters": "a\ud800"}, r"'\ud800'"),
            ({"type": "char", "characters": "a", "normalizer": "NFC"}, "no known form"),
            ({"type": "bpe", "merges": ["a  b"]}, "'a  b'"),
            ({"type": "bpe", "merges": [["a", "b"]]}, "['a', 'b']"),
            ({"type": "bpe", "merges": ["ab c"]}, "'ab c'"),
            ({"type": "bpe", "merges": ["a b", "a b"]}, "twice"),
            ({"type": "gpt2"}, "no ranks here"),
        ],
    )
    def test_what_is_wrong_is_named(self, document: dict, named: str) -> None:
        assert named in refusal(tokenizer_from_json, document, no_ranks)

    def test_merges_cannot_make_the_end_of_text(self) -> None:
        pieces = ["<|endoftext|>"[:i] for i in range(1, 14)]
        merges = [f"{piece} {whole[-1]}" for piece, whole in itertools.pairwise(pieces)]
        assert BPETokenizer(merges[:-1]).vocab_size == 257 + 11
        assert "'<|endoftext| >'" in refusal(BPETokenizer, merges)
