"""Texts in windows, items in passages: each token is asked for once, and what does not fit is cut or refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_jax.data.hf_tokenizer import HFTokenizer
from nanogpt_jax.data.tokenizer import BPETokenizer, CharTokenizer
from nanogpt_jax.evaluate import passages
from nanogpt_jax.evaluate.passages import Passage, Reader, segment_cuts, windows
from nanogpt_jax.evaluate.scores import padded
from nanogpt_jax.evaluate.tasks import Choice, Choices, Completion, LastWords, Pairs, Text
from tests.helpers.qwen import END, qwen, that_begins
from tests.helpers.refusals import refusal

FILE = Path("items.jsonl")
BYTES = BPETokenizer([])  # a token a byte, and the end of text
EOT = BYTES.eot_token
# One, two, three and four bytes long.
TEXTS = st.text(st.sampled_from("ab \né日🎉"), min_size=1, max_size=300)


@given(st.integers(1, 400), st.integers(1, 64), st.data())
def test_every_token_is_asked_for_once_after_all_that_fits(targets, block_size, data):
    stride = data.draw(st.integers(1, block_size))
    asked = []
    for number, (begin, end, count) in enumerate(windows(targets, block_size, stride)):
        assert 0 <= begin < end <= targets and end - begin <= block_size
        assert begin == max(0, end - block_size)  # as much before it as fits
        assert count == (min(block_size, targets) if number == 0 else min(stride, targets - asked[-1]))
        asked += range(end - count + 1, end + 1)
    assert asked == list(range(1, targets + 1))


@given(TEXTS, st.integers(1, 40), st.sampled_from(["char", "bytes"]), st.data())
def test_a_text_s_tokens_and_bytes_are_all_counted(text, block_size, kind, data):
    tokenizer = CharTokenizer.from_text(text + "ab") if kind == "char" else BYTES
    stride = data.draw(st.none() | st.integers(1, block_size))
    ids = tokenizer.encode_ordinary(text).tolist()
    if kind == "char" and len(ids) == 1:
        assert "has no token" in refusal(passages.of_text, Text(FILE, text), Reader("m", tokenizer, block_size), stride)
        return
    found = passages.of_text(Text(FILE, text), Reader("m", tokenizer, block_size), stride)
    # What was read first: the end of text where there is one, else the first character, which nothing predicts.
    assert found.passages[0].tokens[0] == (EOT if kind == "bytes" else ids[0])
    predicted = ids if kind == "bytes" else ids[1:]
    assert [token for p in found.passages for token in p.tokens[-p.asked :].tolist()] == predicted
    assert all(p.asked < len(p.tokens) <= block_size + 1 for p in found.passages)
    left_out = 0 if kind == "bytes" else len(text[0].encode())
    assert found.sizes.sum() == len(text.encode()) - left_out
    # Each token lies in the part of the text in which its first byte does.
    starts = np.cumsum([left_out, *(len(tokenizer.decode_bytes([token])) for token in predicted)])[:-1]
    cuts = segment_cuts(text)
    assert all(cuts[s] <= start < cuts[s + 1] for s, start in zip(found.segments, starts, strict=True))


@given(TEXTS)
def test_the_parts_of_a_text_are_about_a_fiftieth_and_whole_characters(text):
    cuts, data = segment_cuts(text), text.encode()
    assert (cuts[0], cuts[-1]) == (0, len(data)) and (np.diff(cuts) > 0).all() and len(cuts) <= 51
    assert "".join(data[a:b].decode() for a, b in itertools.pairwise(cuts)) == text
    assert np.diff(cuts).max() <= -(-len(data) // 50) + 3


def test_models_that_drop_characters_have_the_same_parts():
    text = Text(FILE, "ab" * 100 + "é" * 100 + "ab" * 100)
    whole = passages.of_text(text, Reader("m", BYTES, 8), None)
    part = passages.of_text(text, Reader("m", CharTokenizer("ab"), 8, "drop"), None)
    assert len(part.sizes) == len(whole.sizes) == 50
    assert part.sizes.sum() == 399 and whole.sizes.sum() == 600


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_few_lengths_are_compiled(length, block_size):
    length = min(length, block_size)
    assert length <= padded(length, block_size) <= min(block_size, max(64, 1.5 * length + 1))
    assert len({padded(n, 1024) for n in range(1, 1025)}) == 10


def listed(found: list[Passage]) -> list[tuple[str, int]]:
    """The text of each passage, with a bar for the end of text, and how many tokens are asked for."""
    return [
        ("".join("|" if t == EOT else BYTES.decode([t]) for t in passage.tokens), passage.asked) for passage in found
    ]


def test_the_ending_takes_the_space_and_contexts_lose_their_left():
    task = Choices(FILE, [Choice(1, "abcdefgh", ("x", "yyyy"), 0), Choice(2, "ab", ("x", "y"), 1)])
    found = passages.of_choices(task, Reader("m", BYTES, 8))
    assert listed(found.passages) == [("abcdefgh x"[-9:], 2), ("efgh yyyy", 5), ("ab x", 2), ("ab y", 2)]
    assert found.items == 1


def test_a_prompt_begins_as_the_tokenizer_begins_all():
    """As Llama 3's does: so are prompts sampled from, and examples learnt."""
    tokenizer = HFTokenizer(that_begins(qwen(300)[0], END), END)
    task = Pairs(FILE, [Completion(1, "ab", "c")])
    [passage] = passages.of_completions(task, Reader("m", tokenizer, 8)).passages
    first = tokenizer.eot_token
    assert passage.tokens.tolist() == [*tokenizer.encode("ab"), *tokenizer.encode_ordinary("c"), first]
    assert passage.tokens[0] == first and passage.asked == 2


def test_a_completion_is_followed_by_the_end_of_text_or_a_line_end():
    items = [Completion(1, "a", "b"), Completion(3, "", "b\n")]
    found = passages.of_completions(Pairs(FILE, items), Reader("m", BYTES, 8))
    assert listed(found.passages) == [("ab|", 2), ("|b\n|", 3)] and found.items == 0
    characters = CharTokenizer("\nab")
    found = passages.of_completions(Pairs(FILE, items[:1]), Reader("m", characters, 8))
    assert [characters.decode(p.tokens) for p in found.passages] == ["ab\n"]
    assert listed(passages.of_completions(LastWords(FILE, items[:1]), Reader("m", BYTES, 8)).passages) == [("ab", 1)]


@pytest.mark.parametrize(
    ("item", "reader", "message"),
    [
        (
            Completion(4, "a", "b" * 9),
            Reader("out-a", BYTES, 8),
            "items.jsonl line 4 asks for 10 tokens and out-a reads block_size=8 at once; shorten its ending, or leave "
            "the line out",
        ),
        (Completion(4, "", "b"), Reader("out-a", CharTokenizer("\nab"), 8), "line 4 has nothing before its ending"),
        (
            Completion(4, "aé", "b"),
            Reader("out-a", CharTokenizer("\nab"), 8),
            "items.jsonl line 4: the character 'é' (U+00E9) at position 1 is not among the 3 of the vocabulary; leave "
            "it out (--unknown=drop or --unknown=space)",
        ),
        (Completion(4, "a", "b"), Reader("out-a", CharTokenizer("ab"), 8), "items.jsonl: the character '\\n' (U+000A)"),
    ],
)
def test_what_a_model_cannot_read_is_refused_by_its_line(item, reader, message):
    assert message in refusal(passages.of_completions, Pairs(FILE, [item]), reader)


def test_a_stride_beyond_the_block_is_refused():
    assert refusal(passages.of_text, Text(FILE, "abc"), Reader("out-a", BYTES, 8), 9) == (
        "stride=9 is larger than the block_size=8 that out-a reads at once, and tokens would be left out; "
        "choose at most 8"
    )
