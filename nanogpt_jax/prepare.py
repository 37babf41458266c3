"""Text to data sets: what `data/*/prepare.py` do. Texts are streamed and never held whole."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanogpt_jax import assets
from nanogpt_jax.errors import UserError
from nanogpt_jax.files import replace_when_whole
from nanogpt_jax.pieces import LONGEST_UNCUT, Split, census, first, in_order, in_pieces, recut, split_at
from nanogpt_jax.prepared import Meta, require_shard, write_data_set
from nanogpt_jax.sources import CHUNK, plain_os_errors, progress, read_text, require_regular_files
from nanogpt_jax.tokenizer import (
    MAX_VOCAB_SIZE,
    BPETokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    TokenIds,
    Tokenizer,
    word_cut,
)

TRAINING_PIECE = 1 << 12  # characters that a BPE learns from at a time, and so nearly the longest word it sees
TRAINING_CHARACTERS = 1 << 28  # that a BPE learns from at most, since every different word is held in memory


@dataclass(frozen=True)
class Summary:
    """What was prepared: `length` is in `unit`s, "characters" or "documents". As text, nanoGPT's lines about it."""

    folder: Path
    unit: str
    length: int
    meta: Meta

    def __str__(self) -> str:
        return (
            f"length of dataset in {self.unit}: {self.length:,}\n"
            f"vocab size: {self.meta.vocab_size:,}\n"
            f"train has {self.meta.train_tokens:,} tokens\n"
            f"val has {self.meta.val_tokens:,} tokens"
        )


@plain_os_errors("preparing a text")
def prepare_text(
    sources: Sequence[Path],
    folder: Path,
    tokenizer: str = "char",
    val_fraction: float = 0.1,
    *,
    chunk: int = CHUNK,
    shard_tokens: int | None = None,
) -> Summary:
    """Make `folder` a data set of UTF-8 text files, taken one after the other as they are, line ends included.

    The first `1 - val_fraction` of the characters are for training, the rest for validation, encoded separately as in
    nanoGPT. `tokenizer` is `char`, `gpt2` or `bpe:SIZE`; a BPE learns from the training characters alone, evenly
    thinned to `TRAINING_CHARACTERS`. Files are read `chunk` bytes at a time, twice, and thrice for a BPE that is
    trained. With `shard_tokens` a split lies in files of that many tokens, `train_000.bin` and so on. Raises
    `UserError` where a file cannot be read or is not UTF-8, or there is too little text.
    """
    size = _bpe_size(tokenizer)
    _require_fraction(val_fraction)
    require_shard(shard_tokens)
    require_regular_files(sources)
    length, characters = census(read_text(sources, chunk, "reading"))
    names = ", ".join(map(str, sources))
    if length == 0:
        raise UserError(f"{names}: there is no text (0 characters); give a file with text in it")
    n_train = int(length * (1 - val_fraction))
    if not 0 < n_train < length:
        raise UserError(
            f"{names}: {length} characters are too few to split with val_fraction={val_fraction}; give more"
        )

    if size is not None:
        stride = -(-n_train // TRAINING_CHARACTERS)
        parts = split_at(read_text(sources, TRAINING_PIECE, "learning the tokenizer"), n_train)
        training = recut((text for split, text in parts if split == "train"), word_cut, TRAINING_PIECE)
        made: Tokenizer = BPETokenizer.train(itertools.islice(training, 0, None, stride), size)
    else:
        made = CharTokenizer(characters) if tokenizer == "char" else GPT2Tokenizer(assets.gpt2_ranks())

    def pieces() -> Iterator[tuple[Split, str]]:
        found = 0
        parts = split_at(read_text(sources, chunk, "encoding"), n_train)
        for split, group in itertools.groupby(parts, key=lambda part: part[0]):
            for piece in recut((text for _, text in group), made.cut):
                found += len(piece)
                yield split, piece
        if found != length:
            raise UserError(f"{names}: {found:,} characters where there were {length:,} just now; try again")

    def encode(piece: tuple[Split, str]) -> tuple[Split, TokenIds]:
        return piece[0], made.encode_ordinary(piece[1])

    meta = write_data_set(folder, made, in_order(encode, pieces()), shard_tokens)
    return Summary(folder, "characters", length, meta)


@plain_os_errors("preparing documents")
def prepare_documents(
    documents: Iterable[str],
    folder: Path,
    tokenizer: str = "gpt2",
    val_fraction: float = 0.0005,
    seed: int = 2357,
    *,
    shard_tokens: int | None = None,
) -> Summary:
    """Make `folder` a data set of documents, each followed by the end-of-text token.

    Whether a document is for validation depends on `seed` and its index alone, see `is_validation`. `tokenizer` is
    `gpt2` or `bpe:SIZE`; for the latter the documents are gone through twice, the first time until
    `TRAINING_CHARACTERS` have been learned from. Raises `UserError` where either split would be empty.
    """
    size = _bpe_size(tokenizer)
    _require_fraction(val_fraction)
    require_shard(shard_tokens)
    if tokenizer == "char":
        raise UserError("tokenizer=char has no token to end a document with; choose gpt2 or bpe:SIZE")
    if size is not None and iter(documents) is documents:
        raise TypeError("to train a BPE, documents must be an iterable that can be gone through twice")
    if size is not None:
        training = (text for i, text in enumerate(documents) if not is_validation(seed, i, val_fraction))
        small = (piece for text in training for piece in in_pieces(text, TRAINING_PIECE))
        made: Tokenizer = BPETokenizer.train(first(small, TRAINING_CHARACTERS), size)
    else:
        made = GPT2Tokenizer(assets.gpt2_ranks())
    count = 0

    def counted() -> Iterator[tuple[int, str]]:
        nonlocal count
        with progress("encoding documents", None) as advance:
            for count, document in enumerate(documents, start=1):
                yield count - 1, document
                advance(1)

    def encode(numbered: tuple[int, str]) -> tuple[Split, TokenIds]:
        index, document = numbered
        try:
            ids = [made.encode_ordinary(piece) for piece in in_pieces(document, LONGEST_UNCUT)]
        except UserError as error:
            raise UserError(f"document {index:,}: {error}") from None
        split: Split = "val" if is_validation(seed, index, val_fraction) else "train"
        return split, np.append(np.concatenate(ids), np.uint16(made.eot_token))

    def parts() -> Iterator[tuple[Split, TokenIds]]:
        empty: set[Split] = {"train", "val"}
        for split, ids in in_order(encode, counted()):
            empty.discard(split)
            yield split, ids
        if empty:
            raise UserError(
                f"{count:,} documents with val_fraction={val_fraction} leave {' and '.join(sorted(empty))} empty; "
                "give more documents, or another val_fraction"
            )

    meta = write_data_set(folder, made, parts(), shard_tokens)
    return Summary(folder, "documents", count, meta)


def is_validation(seed: int, index: int, val_fraction: float) -> bool:
    """Whether document `index` is for validation: a hash of (seed, index), read as a number in [0, 1), is below."""
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < val_fraction * 2**64


def prepare_shakespeare_char(folder: Path) -> Summary:
    """Tiny Shakespeare by characters, and the text itself as `input.txt`. Raises `UserError` if it can't be had."""
    return _prepare_shakespeare(folder, "char")


def prepare_shakespeare(folder: Path) -> Summary:
    """Tiny Shakespeare in GPT-2's tokens, and the text itself as `input.txt`. Raises `UserError` if it can't be had."""
    return _prepare_shakespeare(folder, "gpt2")


KNOWN: dict[str, Callable[[Path], Summary]] = {
    "shakespeare_char": prepare_shakespeare_char,
    "shakespeare": prepare_shakespeare,
}
"""The data sets that can be made from nothing, by the name of their folder."""


@plain_os_errors("preparing Tiny Shakespeare")
def _prepare_shakespeare(folder: Path, tokenizer: str) -> Summary:
    text = assets.tiny_shakespeare()
    if tokenizer == "gpt2":
        assets.gpt2_ranks()  # so that nothing is written where they can't be had
    with replace_when_whole(folder / "input.txt") as file:
        file.write(text.encode())
    return prepare_text([folder / "input.txt"], folder, tokenizer)


def _bpe_size(tokenizer: str) -> int | None:
    """SIZE of `bpe:SIZE`, None for `char` and `gpt2`. Raises `UserError` for anything else."""
    if tokenizer in ("char", "gpt2"):
        return None
    kind, _, size = tokenizer.partition(":")
    least = BPETokenizer.MIN_VOCAB_SIZE
    if kind != "bpe" or not (
        size.isascii() and size.isdigit() and len(size) < 7 and least <= int(size) <= MAX_VOCAB_SIZE
    ):
        raise UserError(
            f"tokenizer={tokenizer} is not char, gpt2 or bpe:SIZE, SIZE from {least} to {MAX_VOCAB_SIZE}; choose one"
        )
    return int(size)


def _require_fraction(val_fraction: float) -> None:
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction={val_fraction} is not between 0 and 1; choose for example 0.1")
