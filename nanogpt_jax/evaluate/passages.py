"""Items in tokens: what a model reads, and which tokens of it the model is asked for.

A passage is at most `block_size` + 1 tokens long: all but the last are read, and what is asked for are its last ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.chat import beginning
from nanogpt_jax.data.tokenizer import Tokenizer
from nanogpt_jax.data.unknown import rescue
from nanogpt_jax.evaluate.tasks import Choices, Completion, LastWords, Pairs, Text

SEGMENTS = 50
Tokens = Int[np.ndarray, "..."]
"""Token ids (N,), as models read them."""


class Passage(NamedTuple):
    """N tokens, of which the last `asked` are to be predicted, each after all that stand before it."""

    tokens: Tokens
    asked: int


@dataclass(frozen=True)
class Reader:
    """How a model reads: its name for messages, its tokenizer, the tokens it reads at once.

    `unknown` says what becomes of characters that the tokenizer lacks: `refuse`, `drop` or `space`.
    """

    name: str
    tokenizer: Tokenizer
    block_size: int
    unknown: str = "refuse"

    def readable(self, text: str) -> str:
        """The text with the characters that have no token dropped, or made spaces, where that is asked for."""
        if self.unknown == "refuse":
            return text
        return text.translate(rescue(self.tokenizer, set(text), self.unknown))

    def tokens(self, text: str) -> Tokens:
        """The text as a document's tokens: the name of the end-of-text token in it is text like any other."""
        return self.tokenizer.encode_ordinary(self.readable(text)).astype(np.int32)


class Cut(NamedTuple):
    """The passages of a file, and how many of its items have a context that had to be cut at its left."""

    passages: list[Passage]
    items: int


class Windows(NamedTuple):
    """A text in overlapping windows, which ask for each of its T tokens once, in their order.

    `segments` says in which of S parts of the text, of nearly as many bytes each, a token begins, and `sizes` how many
    bytes of each part the tokens stand for.
    """

    passages: list[Passage]
    segments: Int[np.ndarray, " T"]
    sizes: Int[np.ndarray, " S"]


def windows(targets: int, block_size: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows (begin, end, asked): it reads tokens begin to end - 1, and is asked for the `asked` up to token end.

    `targets` tokens follow the first one, each asked for once: in the first window all, in every other one the last
    `stride`, after as much as fits before them.
    """
    done = 0
    while done < targets:
        end = min(targets, done + stride if done else block_size)
        yield max(0, end - block_size), end, end - done
        done = end


def of_text(task: Text, reader: Reader, stride: int | None) -> Windows:
    """A text in windows that move on by `stride` tokens, by default half a block.

    The first token is predicted after the end-of-text token; where there is none, it and its bytes are left out.
    """
    stride = max(1, reader.block_size // 2) if stride is None else stride
    if stride > reader.block_size:
        raise UserError(
            f"stride={stride} is larger than the block_size={reader.block_size} that {reader.name} reads at once, and "
            f"tokens would be left out; choose at most {reader.block_size}"
        )
    text = reader.readable(task.text)
    tokens = _of_line(f"{task.path}", text, reader)
    starts, size = _starts(tokens, text, reader.tokenizer)
    skipped = 0
    if reader.tokenizer.eot_token is not None:
        tokens = np.concatenate([np.array([reader.tokenizer.eot_token], np.int32), tokens])
    elif len(tokens) > 1:
        starts, skipped = starts[1:], int(starts[1])
    if len(tokens) < 2:
        raise UserError(f"{task.path} has no token for {reader.name} to predict (1 at most); give a longer text")
    passages = [
        Passage(tokens[begin : end + 1], asked)
        for begin, end, asked in windows(len(tokens) - 1, reader.block_size, stride)
    ]
    # Parts of the text as it is in the file, so that every model has the same ones, whatever its tokenizer drops.
    cuts = segment_cuts(task.text)
    whole = cuts[-1]
    in_file = starts * whole // size if size else starts
    segments = np.searchsorted(cuts[1:-1], in_file, side="right").astype(np.int32)
    bounds = cuts * size // whole
    sizes = np.diff(np.maximum(bounds, skipped)).astype(np.int64)
    return Windows(passages, segments, sizes)


def segment_cuts(text: str) -> Int[np.ndarray, " N"]:
    """Where a text is cut into parts of about a fiftieth of its bytes, at characters: 0, ..., the number of bytes."""
    data = text.encode()
    cuts = {0, len(data)}
    for part in range(1, SEGMENTS):
        at = part * len(data) // SEGMENTS
        while at < len(data) and data[at] & 0xC0 == 0x80:  # inside a character
            at += 1
        cuts.add(at)
    return np.array(sorted(cuts), np.int64)


def _starts(tokens: Tokens, text: str, tokenizer: Tokenizer) -> tuple[Int[np.ndarray, " N"], int]:
    """At which byte of the text each token begins, and how many bytes the text has.

    Of a tokenizer that changes the text (lower case, say) tokens have other bytes; their places are then in proportion.
    """
    sizes = {token: len(tokenizer.decode_bytes([token])) for token in np.unique(tokens).tolist()}
    ends = np.cumsum([0, *(sizes[token] for token in tokens.tolist())], dtype=np.int64)
    size = len(text.encode())
    if ends[-1] not in (0, size):
        ends = ends * size // ends[-1]
    return ends[:-1], size


def of_choices(task: Choices, reader: Reader) -> Cut:
    """A passage for every ending of every item: the context, then a space and the ending, encoded apart."""
    passages, cut = [], 0
    for item in task.items:
        where = f"{task.path} line {item.line:,}"
        context = _context(where, item.context, reader)
        each = [_passage(where, context, _of_line(where, f" {ending}", reader), reader) for ending in item.endings]
        passages += [passage for passage, _ in each]
        cut += any(was_cut for _, was_cut in each)
    return Cut(passages, cut)


def of_completions(task: LastWords | Pairs, reader: Reader) -> Cut:
    """A passage for every item: the prompt, then the completion, encoded apart.

    Of pairs, the end-of-text token follows, which is asked for too; a line end where the tokenizer has none.
    """
    end = np.zeros(0, np.int32)
    if isinstance(task, Pairs):
        eot = reader.tokenizer.eot_token
        end = _of_line(f"{task.path}", "\n", reader) if eot is None else np.array([eot], np.int32)
    each = [_of_completion(f"{task.path} line {item.line:,}", item, end, reader) for item in task.items]
    return Cut([passage for passage, _ in each], sum(was_cut for _, was_cut in each))


def _of_completion(where: str, item: Completion, end: Tokens, reader: Reader) -> tuple[Passage, bool]:
    target = np.concatenate([_of_line(where, item.completion, reader), end])
    return _passage(where, _context(where, item.prompt, reader), target, reader)


def _passage(where: str, context: Tokens, target: Tokens, reader: Reader) -> tuple[Passage, bool]:
    """The target after its context, and whether that was cut at its left; nothing stands for the end-of-text token."""
    if len(target) == 0:
        raise UserError(f"{where} asks for no token at all; give it an ending of one character and more")
    if len(target) > reader.block_size:
        raise UserError(
            f"{where} asks for {len(target):,} tokens and {reader.name} reads block_size={reader.block_size:,} at "
            "once; shorten its ending, or leave the line out"
        )
    if len(context) == 0:
        if reader.tokenizer.eot_token is None:
            raise UserError(f"{where} has nothing before its ending, for {reader.name} to begin with; give a context")
        context = np.array([reader.tokenizer.eot_token], np.int32)
    tokens = np.concatenate([context, target])
    return Passage(tokens[-reader.block_size - 1 :], len(target)), len(tokens) > reader.block_size + 1


def _context(where: str, text: str, reader: Reader) -> Tokens:
    """The tokens of what is continued, after those that the tokenizer begins every prompt with."""
    begins = beginning(reader.tokenizer).astype(np.int32)
    return np.concatenate([begins, _of_line(where, text, reader)])


def _of_line(where: str, text: str, reader: Reader) -> Tokens:
    """The tokens of a text. Raises `UserError` with its place for a character that has none."""
    try:
        return reader.tokens(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
