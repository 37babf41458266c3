"""Token files, and the batches drawn from them.

A batch is a pure function of (seed, split, index): the same on every host and in every run, whatever came before it.
That is what lets a stopped run go on with the data it would have seen.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.train_step import Batch
from nanogpt_jax.data.commands import to_prepare
from nanogpt_jax.data.files import refused
from nanogpt_jax.data.tokenizer import TokenType

_STREAMS = {"train": 0, "train_eval": 1, "val": 2}
"""Random streams that never meet: training batches, and the batches that estimate the loss on either split."""


class Shards:
    """Tokens that lie in files one after the other, read as one array: `len(tokens)` and `tokens[start:stop]`.

    They are read and not mapped into memory: a file that is cut short while in use is then an error and not a signal
    that ends the process.
    """

    def __init__(self, paths: Sequence[Path], dtype: TokenType = "uint16") -> None:
        """Raises `OSError` if a file can't be opened, and `UserError` if one is not of whole tokens."""
        self._paths, self._dtype = tuple(paths), np.dtype(dtype).newbyteorder("<")
        each = self._dtype.itemsize
        self._files, sizes = [], []
        for path in self._paths:
            self._files.append(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
            weakref.finalize(self, os.close, self._files[-1])
            sizes.append(os.fstat(self._files[-1]).st_size)
            if sizes[-1] == 0 or sizes[-1] % each:
                raise _damaged(path, sizes[-1], f"{each} bytes for every token ({dtype}), and one token at least,")
        self._ends = list(itertools.accumulate(size // each for size in sizes))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, part: slice) -> UInt[np.ndarray, " N"]:
        """Tokens of a slice without a step. Raises `UserError` if a file has become shorter."""
        start, stop, _ = part.indices(len(self))
        if stop <= start:
            return np.zeros(0, self._dtype)
        shard = bisect.bisect_right(self._ends, start)
        if stop <= self._ends[shard]:
            return self._read(shard, start, stop)
        pieces = []
        while start < stop:
            pieces.append(self._read(shard, start, min(stop, self._ends[shard])))
            start, shard = self._ends[shard], shard + 1
        return np.concatenate(pieces)

    def _read(self, shard: int, start: int, stop: int) -> UInt[np.ndarray, " {stop}-{start}"]:
        first = self._ends[shard - 1] if shard else 0
        each = self._dtype.itemsize
        size, offset = each * (stop - start), each * (start - first)
        data = os.pread(self._files[shard], size, offset)
        while len(data) < size:  # one call gives 2 GiB at most
            more = os.pread(self._files[shard], size - len(data), offset + len(data))
            if not more:
                was = each * (self._ends[shard] - first)
                found = os.fstat(self._files[shard]).st_size
                raise UserError(
                    f"{self._paths[shard]} has {found:,} bytes where {was:,} were at the start; it was changed while "
                    "in use: prepare the data set again, then go on with --init_from=resume"
                )
            data += more
        return np.frombuffer(data, self._dtype)


class TokenFile(NamedTuple):
    """One split: its tokens, where they came from, and how many different ones there may be."""

    tokens: Shards | UInt[np.ndarray, " N"]
    path: Path
    vocab_size: int


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
            raise _damaged(_named(paths), each * len(tokens), wanted)
    except OSError as error:
        at = error.filename or path
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise UserError(f"{at} is missing; prepare the data set again: {to_prepare(path.parent)}") from error
        raise refused(at, error, "read") from error
    except UserError:
        if wanted is None:
            raise
        raise _damaged(_named(paths), sum(map(os.path.getsize, paths)), wanted) from None
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


def _damaged(path: object, size: int, wanted: str) -> UserError:
    return UserError(f"{path} has {size:,} bytes where {wanted} belong; it is damaged, prepare the data set again")


_CHUNK = 1 << 20
# Small files are checked before anything starts; of large ones the first part, and each batch as it is drawn.
_CHECKED_AHEAD = 1 << 25


def random_batch(file: TokenFile, stream: str, seed: int, index: int, shape: tuple[int, ...], block_size: int) -> Batch:
    """Windows of `block_size` tokens at random places of a file, int32, of shape (*shape, block_size).

    The `index`-th batch of `stream` ("train", "train_eval" or "val") under `seed`.
    """
    return windows(file, random_starts(file, stream, seed, index, shape, block_size), block_size)


def random_starts(
    file: TokenFile, stream: str, seed: int, index: int, shape: tuple[int, ...], block_size: int
) -> Int64[np.ndarray, "*shape"]:
    """Where the windows of a random batch begin; with Philox (Salmon et al., 2011) without drawing those before it."""
    draw = np.random.Generator(np.random.Philox(key=[seed, _STREAMS[stream]], counter=[0, 0, 0, index]))
    return draw.integers(len(file.tokens) - block_size, size=shape)


def windows(file: TokenFile, starts: Int64[np.ndarray, "*shape"], block_size: int) -> Batch:
    """The windows of `block_size` tokens that begin at `starts`, int32, of shape (*starts.shape, block_size)."""
    read = np.stack([file.tokens[start : start + block_size + 1] for start in starts.ravel().tolist()])
    _check_vocabulary(file, read, None)
    read = read.astype(np.int32).reshape(*starts.shape, block_size + 1)
    return Batch(read[..., :-1], read[..., 1:])


def whole_split(
    file: TokenFile, batch_size: int, block_size: int
) -> Iterator[tuple[Batch, Float32[np.ndarray, "{batch_size} {block_size}"]]]:
    """Every token of a file but its first, predicted exactly once, in file order.

    Yields batches of `batch_size` windows side by side, and float32 weights (batch_size, block_size): one where there
    is a token to predict, zero in the padding that fills up the last batch.
    """
    for first in range(0, rows_in_split(file, block_size), batch_size):
        yield split_rows(file, first, batch_size, block_size)


def rows_in_split(file: TokenFile, block_size: int) -> int:
    """Windows of `block_size` that every token of a file but its first takes; the last may be a part of one."""
    return -(-(len(file.tokens) - 1) // block_size)


def split_rows(
    file: TokenFile, first: int, rows: int, block_size: int
) -> tuple[Batch, Float32[np.ndarray, "{rows} {block_size}"]]:
    """Windows `first` to `first + rows` of `whole_split`, and their weights; past the end of the file both are 0."""
    start, size = first * block_size, rows * block_size
    tokens = file.tokens[start : start + size + 1]
    _check_vocabulary(file, tokens, start)
    window = np.zeros(size + 1, np.int32)
    window[: len(tokens)] = tokens
    weights = (np.arange(size) < len(tokens) - 1).astype(np.float32)
    shape = (rows, block_size)
    return Batch(window[:-1].reshape(shape), window[1:].reshape(shape)), weights.reshape(shape)


def digest(file: TokenFile) -> str:
    """What tells a file's tokens from others: a hash of their number and of all, or of a sample where they are many."""
    number = len(file.tokens)
    made = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16)
    starts = range(0, number, _CHUNK)
    for start in starts[:: -(-len(starts) // _CHUNKS_DIGESTED)]:
        tokens = file.tokens[start : start + _CHUNK]
        made.update(np.ascontiguousarray(tokens, tokens.dtype.newbyteorder("<")).data)
    return made.hexdigest()


_CHUNKS_DIGESTED = 32


def _check_vocabulary(file: TokenFile, tokens: UInt[np.ndarray, ...], start: int | None) -> None:
    """Refuse tokens outside the vocabulary, which an embedding would silently take for the last one."""
    if tokens.size and tokens.max() >= file.vocab_size:
        where = "" if start is None else f" at position {start + int(np.argmax(tokens >= file.vocab_size)):,}"
        raise UserError(
            f"{file.path} holds token {tokens.max()}{where}, outside the vocabulary of {file.vocab_size}; "
            "prepare the data set again"
        )
