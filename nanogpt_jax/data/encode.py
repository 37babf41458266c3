"""Parts of text to a data set: the tokenizer made or taken as it is, what it lacks, and every part encoded in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import MAX_VOCAB_SIZE, require_at_most
from nanogpt_jax.data import assets, chat
from nanogpt_jax.data.chat import Span
from nanogpt_jax.data.pieces import Census, Split, census, first, in_order, in_pieces
from nanogpt_jax.data.prepared import Meta, Piece, marked, require_shard, write_data_set
from nanogpt_jax.data.tokenizer import (
    BPETokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    TokenIds,
    Tokenizer,
    token_type,
    word_cut,
)
from nanogpt_jax.data.unknown import listed, rescue, unknown_characters

TRAINING_PIECE = 1 << 12  # characters that a BPE learns from at a time, and so nearly the longest word it sees
TRAINING_CHARACTERS = 1 << 28  # that a BPE learns from at most, since every different word is held in memory


class Part(NamedTuple):
    """A piece of a split's text; a document `ends` with it or not. `name` says where it is from, if that is known.

    An example of a task is one part, which its `spans` make up.
    """

    split: Split
    text: str
    ends: bool = False
    name: str = ""
    spans: tuple[Span, ...] = ()


Parts = Callable[[str, Callable[[str], int]], Iterator[Part]]
"""Gives all parts of a text, with each call anew: under a label of progress, cut where the second argument says."""


class ExampleRules(NamedTuple):
    """What becomes of examples: tokens and what is learnt of them, `fitted` to a size; `template` is for meta.json."""

    fitted: Callable[[TokenIds, np.ndarray, str], tuple[TokenIds, np.ndarray]]
    template: dict[str, Any] | None


class Encoded(NamedTuple):
    """A data set that was written, and what there is to remark on it, in sentences."""

    meta: Meta
    remarks: list[str]


def encode(
    parts: Parts,
    folder: Path,
    tokenizer: str | Tokenizer,
    unknown: str,
    shard_tokens: int | None,
    *,
    what: str,
    found: Census | None = None,
    stride: int = 1,
    examples: ExampleRules | None = None,
) -> Encoded:
    """Write the data set of `parts` into `folder`; `what` they are goes before what is said against them.

    With `examples` each part is one of those, and its marks are written too.

    `tokenizer` is one, or `char`, `gpt2` or `bpe:SIZE`; a BPE learns from every `stride`-th piece of the training split
    until it has `TRAINING_CHARACTERS`. A character without a token is refused, dropped, or made a space, as `unknown`
    says. A document ends with the end-of-text token, or with a line end where there is no such token. `found` is the
    census of the parts; where it is None and needed, all parts are gone through for it. Raises `UserError` where a
    split would be empty.
    """
    require_tokenizer(tokenizer)
    require_shard(shard_tokens)
    of_bytes = (
        tokenizer != "char" if isinstance(tokenizer, str) else isinstance(tokenizer, GPT2Tokenizer | BPETokenizer)
    )
    if found is None and not of_bytes:
        found = census(part.text + "\n" * part.ends for part in parts("reading", len))
    remarks = []
    if isinstance(tokenizer, str):
        made = _made(tokenizer, parts, found, stride)
        size = _bpe_size(tokenizer) or 0
        if made.vocab_size < size:
            remarks.append(
                f"the BPE has {made.vocab_size:,} tokens and not {size:,}: no other pair occurs twice in the text"
            )
    else:
        made = tokenizer
        require_at_most("vocab_size", made.vocab_size, MAX_VOCAB_SIZE, "what float32 can count")
    table = _table(made, found, unknown, what, remarks)
    end = made.eot_token

    def known(text: str) -> str:
        return text.translate(table) if table else text

    def encoded(part: Part) -> Piece:
        try:
            if examples is not None:
                spans = (span._replace(text=known(span.text)) for span in part.spans)
                ids, learnt = chat.encoded(spans, made, from_the_beginning=True)
                ids, learnt = examples.fitted(ids, learnt, part.name)
                return Piece(part.split, ids, marked(learnt))
            ids = made.encode_ordinary(known(part.text + "\n" * (part.ends and end is None)))
        except UserError as error:
            named = part.name and not str(error).startswith(part.name)
            raise UserError(f"{part.name}: {error}" if named else str(error)) from None
        if end is not None and part.ends:
            ids = np.append(ids, end).astype(token_type(made.vocab_size))
        return Piece(part.split, ids)

    def all_encoded() -> Iterator[Piece]:
        empty: set[Split] = {"train", "val"}
        for piece in in_order(encoded, parts("encoding", made.cut)):
            if piece.ids.size:
                empty.discard(piece.split)
            yield piece
        if empty:
            raise UserError(f"{what}: {' and '.join(sorted(empty))} would be empty; give more text, or other fractions")

    of_examples = None if examples is None else {"template": examples.template}
    return Encoded(write_data_set(folder, made, all_encoded(), shard_tokens, of_examples), remarks)


def require_tokenizer(tokenizer: str | Tokenizer) -> None:
    """Refuse what names no tokenizer with a `UserError`."""
    if isinstance(tokenizer, str):
        _bpe_size(tokenizer)


def _made(tokenizer: str, parts: Parts, found: Census | None, stride: int) -> Tokenizer:
    if tokenizer == "gpt2":
        return GPT2Tokenizer(assets.gpt2_ranks())
    if tokenizer == "char" and found is not None:
        return CharTokenizer(found.characters)
    training = (part.text for part in parts("learning the tokenizer", word_cut) if part.split == "train")
    small = (piece for text in training for piece in in_pieces(text, TRAINING_PIECE, word_cut))
    thinned = itertools.islice(small, 0, None, stride)
    return BPETokenizer.train(first(thinned, TRAINING_CHARACTERS), _bpe_size(tokenizer) or 0)


def _table(
    tokenizer: Tokenizer, found: Census | None, unknown: str, what: str, remarks: list[str]
) -> dict[int, str] | None:
    """How `str.translate` makes the text one that the tokenizer has tokens for; None: there is nothing to translate."""
    if found is None:  # a tokenizer of bytes, which has a token for all but the halves of UTF-16 pairs
        return rescue(tokenizer, map(chr, range(0xD800, 0xE000)), unknown) if unknown != "refuse" else None
    strangers = unknown_characters(tokenizer, found.characters)
    if not strangers:
        return None
    number = found.count(strangers)
    said = f"{number:,} characters that the tokenizer lacks, {listed(strangers)}"
    if unknown == "refuse":
        raise UserError(
            f"{what}: there are {said}; drop them with --unknown=drop, or make them spaces with --unknown=space"
        )
    remarks.append(f"{'dropped' if unknown == 'drop' else 'put a space for'} {said}")
    return rescue(tokenizer, strangers, unknown)


def _bpe_size(tokenizer: str) -> int | None:
    """SIZE of `bpe:SIZE`, None for `char` and `gpt2`. Raises `UserError` for anything else."""
    if tokenizer in ("char", "gpt2"):
        return None
    kind, _, size = tokenizer.partition(":")
    least = BPETokenizer.MIN_VOCAB_SIZE
    if kind != "bpe" or not (
        size.isascii() and size.isdigit() and len(size) < 9 and least <= int(size) <= MAX_VOCAB_SIZE
    ):
        raise UserError(
            f"tokenizer={tokenizer} is not char, gpt2 or bpe:SIZE, SIZE from {least} to {MAX_VOCAB_SIZE}; choose one"
        )
    return int(size)
