"""Examples packed into rows, and rows as a batch.

A row is as many examples, one after the other as they lie in the file, as fit into a block whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt, UInt8

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.train_step import IGNORED, AnyBatch, Batch, PackedBatch
from nanogpt_jax.data.files import refused
from nanogpt_jax.data.prepared import BEGINS, LEARNT
from nanogpt_jax.data.shards import Shards

_CHUNK = 1 << 22  # marks read at a time


@dataclass(frozen=True)
class Rows:
    """Where the R rows of a split lie, and its marks.

    Attributes:
        marks: a byte for each token: `LEARNT`, `BEGINS`.
        ends: where each row ends in the file, which is where the next one begins.
        targets: how many tokens of each row are learnt.
        apart: whether the examples of a row do not see each other.
    """

    marks: Shards | UInt8[np.ndarray, " N"]
    ends: Int64[np.ndarray, " R"]
    targets: Int64[np.ndarray, " R"]
    apart: bool = True

    def __len__(self) -> int:
        return len(self.ends)


def open_rows(paths: Sequence[Path], tokens: int, block_size: int, apart: bool) -> Rows:
    """Pack the examples whose marks lie at `paths`, one for each of `tokens`, into rows of a block.

    Raises `UserError` where there are no marks, or not of those tokens, or an example does not fit.
    """
    try:
        marks = Shards(paths, "uint8")
    except OSError as error:
        raise refused(error.filename or paths[0], error, "read") from error
    if len(marks) != tokens:
        raise UserError(f"{paths[0]} has {len(marks):,} marks for {tokens:,} tokens; prepare the examples again")
    begins, learnt = [], []
    for start in range(0, len(marks), _CHUNK):
        part = marks[start : start + _CHUNK]
        begins.append(start + np.flatnonzero(part & BEGINS))
        # The first token of an example follows nothing that it could be predicted from.
        learnt.append(start + np.flatnonzero((part & (LEARNT | BEGINS)) == LEARNT))
    starts, targets = np.concatenate(begins), np.concatenate(learnt)
    if not len(starts) or starts[0]:
        raise UserError(f"{paths[0]} does not begin with an example; prepare the examples again")
    sizes = np.diff(starts, append=tokens)
    if sizes.max() > block_size + 1:
        raise UserError(
            f"block_size={block_size} has room for examples of {block_size + 1:,} tokens, and the longest in "
            f"{paths[0].parent} has {sizes.max():,}; choose block_size={sizes.max() - 1}, or prepare them with "
            f"--block_size={block_size} --too_long=cut"
        )
    ends = packed(sizes, block_size + 1)
    return Rows(marks, ends, np.diff(np.searchsorted(targets, ends), prepend=0), apart)


def packed(sizes: Int64[np.ndarray, " E"], room: int) -> Int64[np.ndarray, " R"]:
    """Where rows of at most `room` tokens end, that hold examples of those sizes in their order and whole."""
    ends, total = [], np.cumsum(sizes)
    done = 0  # tokens in the rows so far
    while done < total[-1]:
        done = int(total[np.searchsorted(total, done + room, side="right") - 1])
        ends.append(done)
    return np.array(ends, np.int64)


def batch_of(
    tokens: Shards | UInt[np.ndarray, " N"], rows: Rows, which: Int64[np.ndarray, "*shape"], block_size: int
) -> AnyBatch:
    """Rows as a batch of int32 arrays (*which.shape, block_size); a row past the last has nothing to learn.

    What is not learnt is `IGNORED` among the targets, and so is what comes next after an example's end. Segments count
    the examples of a row, where those are `apart`.
    """
    shape = (*which.shape, block_size + 1)
    read, marks = np.zeros((which.size, block_size + 1), np.int32), np.zeros((which.size, block_size + 1), np.uint8)
    for row, number in enumerate(which.ravel().tolist()):
        if number < len(rows):
            start, stop = int(rows.ends[number - 1]) if number else 0, int(rows.ends[number])
            read[row, : stop - start] = tokens[start:stop]
            marks[row, : stop - start] = rows.marks[start:stop]
    read, marks = read.reshape(shape), marks.reshape(shape)
    is_target = (marks[..., 1:] & (LEARNT | BEGINS)) == LEARNT
    targets = np.where(is_target, read[..., 1:], IGNORED).astype(np.int32)
    if not rows.apart:
        return Batch(read[..., :-1], targets)
    return PackedBatch(read[..., :-1], targets, np.cumsum(marks[..., :-1] & BEGINS > 0, axis=-1, dtype=np.int32))
