"""Token files, memory-mapped, and the batches drawn from them.

A batch is a pure function of (seed, split, index): the same on every host and in every run, whatever came before it.
That is what lets a stopped run go on with the data it would have seen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nanogpt_jax.errors import UserError
from nanogpt_jax.training import Batch

_STREAMS = {"train": 0, "train_eval": 1, "val": 2}
"""Random streams that never meet: training batches, and the batches that estimate the loss on either split."""


class TokenFile(NamedTuple):
    """One split: its tokens, where they came from, and how many different ones there may be."""

    tokens: np.ndarray  # (N,) uint16, memory-mapped
    path: Path
    vocab_size: int


def open_tokens(path: Path, vocab_size: int, block_size: int, expected: int | None = None) -> TokenFile:
    """Map a file of little-endian uint16 tokens, nanoGPT's layout.

    `expected` is the number of tokens it should hold, where that is known. Raises `UserError` if the file is missing,
    cut short, too short for one window of `block_size` + 1 tokens, or holds a token outside the vocabulary.
    """
    try:
        size = os.path.getsize(path)
        tokens = np.memmap(path, np.dtype("<u2"), "r") if size >= 2 and size % 2 == 0 else None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); prepare the data set again") from error
    if tokens is None or (expected is not None and len(tokens) != expected):
        wanted = "an even number of bytes" if expected is None else f"{2 * expected:,} bytes ({expected:,} tokens)"
        raise UserError(f"{path} has {size:,} bytes where {wanted} belong; it is damaged, prepare the data set again")
    if len(tokens) <= block_size:
        raise UserError(
            f"block_size={block_size} does not fit {path}, which has {len(tokens):,} tokens; "
            f"choose at most {len(tokens) - 1}"
        )
    file = TokenFile(tokens, path, vocab_size)
    for start in range(0, min(len(tokens), _CHECKED_AHEAD), _CHUNK):
        _check_vocabulary(file, tokens[start : start + _CHUNK], start)
    return file


_CHUNK = 1 << 20
# Small files are checked before anything starts; of large ones the first part, and each batch as it is drawn.
_CHECKED_AHEAD = 1 << 25


def random_batch(file: TokenFile, stream: str, seed: int, index: int, shape: tuple[int, ...], block_size: int) -> Batch:
    """Windows of `block_size` tokens at random places of a file, int32, of shape (*shape, block_size).

    The `index`-th batch of `stream` ("train", "train_eval" or "val") under `seed`; with Philox (Salmon et al., 2011) it
    is reached without drawing those before it.
    """
    draw = np.random.Generator(np.random.Philox(key=[seed, _STREAMS[stream]], counter=[0, 0, 0, index]))
    starts = draw.integers(len(file.tokens) - block_size, size=shape)
    windows = file.tokens[starts[..., None] + np.arange(block_size + 1)]
    _check_vocabulary(file, windows, None)
    windows = windows.astype(np.int32)
    return Batch(windows[..., :-1], windows[..., 1:])


def whole_split(file: TokenFile, batch_size: int, block_size: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Every token of a file but its first, predicted exactly once, in file order.

    Yields batches of `batch_size` windows side by side, and float32 weights (batch_size, block_size): one where there
    is a token to predict, zero in the padding that fills up the last batch.
    """
    targets = len(file.tokens) - 1
    per_batch = batch_size * block_size
    for start in range(0, targets, per_batch):
        n = min(per_batch, targets - start)
        window = np.zeros(per_batch + 1, np.int32)
        window[: n + 1] = file.tokens[start : start + n + 1]
        _check_vocabulary(file, window, start)
        shape = (batch_size, block_size)
        weights = (np.arange(per_batch) < n).astype(np.float32)
        yield Batch(window[:-1].reshape(shape), window[1:].reshape(shape)), weights.reshape(shape)


def digest(file: TokenFile) -> str:
    """What tells a file's tokens from others: a hash of their number and of all, or of a sample where they are many."""
    number = len(file.tokens)
    made = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16)
    starts = range(0, number, _CHUNK)
    for start in starts[:: -(-len(starts) // _CHUNKS_DIGESTED)]:
        made.update(np.ascontiguousarray(file.tokens[start : start + _CHUNK], "<u2"))
    return made.hexdigest()


_CHUNKS_DIGESTED = 32


def _check_vocabulary(file: TokenFile, tokens: np.ndarray, start: int | None) -> None:
    """Refuse tokens outside the vocabulary, which an embedding would silently take for the last one."""
    if tokens.size and tokens.max() >= file.vocab_size:
        where = "" if start is None else f" at position {start + int(np.argmax(tokens >= file.vocab_size)):,}"
        raise UserError(
            f"{file.path} holds token {tokens.max()}{where}, outside the vocabulary of {file.vocab_size}; "
            "prepare the data set again"
        )
