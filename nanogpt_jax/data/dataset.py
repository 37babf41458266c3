"""Token files, and the batches drawn from them.

A batch is a pure function of (seed, split, index): the same on every host and in every run, whatever came before it.
That is what lets a stopped run go on with the data it would have seen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, Integer, UInt

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.train_step import AnyBatch, Batch
from nanogpt_jax.data.commands import to_prepare
from nanogpt_jax.data.epochs import rows_of_batch, windows_of_batch
from nanogpt_jax.data.examples import Rows, batch_of
from nanogpt_jax.data.files import refused
from nanogpt_jax.data.shards import Shards, damaged
from nanogpt_jax.data.tokenizer import TokenType

_STREAMS = {"train": 0, "train_eval": 1, "val": 2}
"""Random streams that never meet: training batches, and the batches that estimate the loss on either split."""


class TokenFile(NamedTuple):
    """One split: its tokens, where they came from, how many different ones there may be, and how batches are drawn."""

    tokens: Shards | UInt[np.ndarray, " N"]
    path: Path
    vocab_size: int
    rows: Rows | None = None  # where it is of examples
    once: bool = False  # training has each window once an epoch


def open_tokens(
    path: Path,
    vocab_size: int,
    block_size: int,
    expected: int | None = None,
    shards: Sequence[str] = (),
    dtype: TokenType = "uint16",
) -> TokenFile:
    """Open a file of little-endian tokens, nanoGPT's layout, or the `shards` beside it that it is cut into.

    `expected` is the number of tokens it should hold, where that is known. Raises `UserError` if a file is missing,
    cut short, too short for one window of `block_size` + 1 tokens, or holds a token outside the vocabulary.
    """
    paths = [path.parent / name for name in shards] or [path]
    each = np.dtype(dtype).itemsize
    wanted = None if expected is None else f"{each * expected:,} bytes ({expected:,} tokens of {dtype})"
    try:
        tokens = Shards(paths, dtype)
        if wanted is not None and len(tokens) != expected:
            raise damaged(_named(paths), each * len(tokens), wanted)
    except OSError as error:
        at = error.filename or path
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise UserError(f"{at} is missing; prepare the data set again: {to_prepare(path.parent)}") from error
        raise refused(at, error, "read") from error
    except UserError:
        if wanted is None:
            raise
        raise damaged(_named(paths), sum(map(os.path.getsize, paths)), wanted) from None
    if len(tokens) <= block_size:
        short = f"block_size={block_size} does not fit {_named(paths)}, which has {len(tokens):,} token"
        if len(tokens) == 1:
            raise UserError(f"{short}, and none to predict; prepare a longer text, or another val_fraction")
        raise UserError(f"{short}s; choose at most {len(tokens) - 1}, or prepare a longer text")
    file = TokenFile(tokens, path, vocab_size)
    for start in range(0, min(len(tokens), _CHECKED_AHEAD), _CHUNK):
        _check_vocabulary(file, tokens[start : start + _CHUNK], start)
    return file


def _named(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"


_CHUNK = 1 << 20
# Small files are checked before anything starts; of large ones the first part, and each batch as it is drawn.
_CHECKED_AHEAD = 1 << 25


def random_batch(
    file: TokenFile, stream: str, seed: int, index: int, shape: tuple[int, ...], block_size: int
) -> AnyBatch:
    """Windows of `block_size` tokens at random places of a file, int32, of shape (*shape, block_size); or its examples.

    The `index`-th batch of `stream` ("train", "train_eval" or "val") under `seed`.
    """
    return windows(file, random_starts(file, stream, seed, index, shape, block_size), block_size)


def random_starts(
    file: TokenFile, stream: str, seed: int, index: int, shape: tuple[int, ...], block_size: int
) -> Int64[np.ndarray, "*shape"]:
    """Where the windows of a random batch begin; with Philox (Salmon et al., 2011) without drawing those before it.

    Of examples, the numbers of rows. For training those come once an epoch, and windows do where the file says so.
    """
    if stream == "train" and file.rows is not None:
        return rows_of_batch(len(file.rows), seed, index, shape)
    if stream == "train" and file.once:
        return windows_of_batch(len(file.tokens), block_size, seed, index, shape)
    draw = np.random.Generator(np.random.Philox(key=[seed, _STREAMS[stream]], counter=[0, 0, 0, index]))
    return draw.integers(len(file.tokens) - block_size if file.rows is None else len(file.rows), size=shape)


def starts_of_batches(
    file: TokenFile, stream: str, seed: int, indices: Iterable[int], batch_size: int, block_size: int, rows: int
) -> Iterator[Int64[np.ndarray, " _"]]:
    """`random_starts` of several batches, one after the other, `rows` at a time; the last may be fewer."""
    held = np.empty(0, np.int64)
    for index in indices:
        held = np.concatenate([held, random_starts(file, stream, seed, index, (batch_size,), block_size)])
        while len(held) >= rows:
            yield held[:rows]
            held = held[rows:]
    if held.size:
        yield held


def filled_up(
    starts: Int64[np.ndarray, " _"], rows: int, block_size: int
) -> tuple[Int64[np.ndarray, " {rows}"], Float32[np.ndarray, "{rows} {block_size}"]]:
    """`rows` of starts, the last again where there are fewer; and the weights of their windows, zero in those."""
    there = (np.arange(rows) < len(starts)).astype(np.float32)
    return np.pad(starts, (0, rows - len(starts)), mode="edge"), np.repeat(there[:, None], block_size, axis=1)


def windows(file: TokenFile, starts: Int64[np.ndarray, "*shape"], block_size: int) -> AnyBatch:
    """The windows of `block_size` tokens that begin at `starts`, int32, of shape (*starts.shape, block_size).

    Of examples, the rows of those numbers.
    """
    if file.rows is not None:
        batch = batch_of(file.tokens, file.rows, starts, block_size)
        _check_vocabulary(file, np.asarray(batch.tokens), None)
        return batch
    read = np.stack([file.tokens[start : start + block_size + 1] for start in starts.ravel().tolist()])
    _check_vocabulary(file, read, None)
    read = read.astype(np.int32).reshape(*starts.shape, block_size + 1)
    return Batch(read[..., :-1], read[..., 1:])


def whole_split(
    file: TokenFile, batch_size: int, block_size: int
) -> Iterator[tuple[AnyBatch, Float32[np.ndarray, "{batch_size} {block_size}"]]]:
    """Every token of a file but its first, predicted exactly once, in file order; of examples, all that are learnt.

    Yields batches of `batch_size` windows side by side, and float32 weights (batch_size, block_size): one where there
    is a token to predict, zero in the padding that fills up the last batch.
    """
    for first in range(0, rows_in_split(file, block_size), batch_size):
        yield split_rows(file, first, batch_size, block_size)


def rows_in_split(file: TokenFile, block_size: int) -> int:
    """Windows of `block_size` that every token of a file but its first takes; the last may be a part of one."""
    if file.rows is not None:
        return len(file.rows)
    return -(-(len(file.tokens) - 1) // block_size)


def split_rows(
    file: TokenFile, first: int, rows: int, block_size: int
) -> tuple[AnyBatch, Float32[np.ndarray, "{rows} {block_size}"]]:
    """Windows `first` to `first + rows` of `whole_split`, and their weights; past the end of the file both are 0."""
    if file.rows is not None:
        return windows(file, np.arange(first, first + rows), block_size), np.ones((rows, block_size), np.float32)
    start, size = first * block_size, rows * block_size
    tokens = file.tokens[start : start + size + 1]
    _check_vocabulary(file, tokens, start)
    window = np.zeros(size + 1, np.int32)
    window[: len(tokens)] = tokens
    weights = (np.arange(size) < len(tokens) - 1).astype(np.float32)
    shape = (rows, block_size)
    return Batch(window[:-1].reshape(shape), window[1:].reshape(shape)), weights.reshape(shape)


def targets_in_split(file: TokenFile) -> int:
    """How many tokens of a file are to be predicted."""
    return len(file.tokens) - 1 if file.rows is None else int(file.rows.targets.sum())


def targets_at(file: TokenFile, starts: Int64[np.ndarray, "*shape"], block_size: int) -> int:
    """How many are to be predicted in the windows that begin at `starts`."""
    return starts.size * block_size if file.rows is None else int(file.rows.targets[starts].sum())


def digest(file: TokenFile) -> str:
    """What tells a file's tokens from others: a hash of their number and of all, or of a sample where they are many."""
    number = len(file.tokens)
    made = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16)
    starts = range(0, number, _CHUNK)
    for start in starts[:: -(-len(starts) // _CHUNKS_DIGESTED)]:
        for numbers in (file.tokens,) if file.rows is None else (file.tokens, file.rows.marks):
            part = numbers[start : start + _CHUNK]
            made.update(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).data)
    return made.hexdigest()


_CHUNKS_DIGESTED = 32


def _check_vocabulary(file: TokenFile, tokens: Integer[np.ndarray, ...], start: int | None) -> None:
    """Refuse tokens outside the vocabulary, which an embedding would silently take for the last one."""
    if tokens.size and tokens.max() >= file.vocab_size:
        where = "" if start is None else f" at position {start + int(np.argmax(tokens >= file.vocab_size)):,}"
        raise UserError(
            f"{file.path} holds token {tokens.max()}{where}, outside the vocabulary of {file.vocab_size}; "
            "prepare the data set again"
        )
