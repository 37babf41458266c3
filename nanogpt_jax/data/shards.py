"""Numbers that lie in files one after the other, such as the tokens of a split, read as one array."""

from __future__ import annotations

import bisect
import itertools
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt

from nanogpt_jax.core.errors import UserError


class Shards:
    """Tokens that lie in files one after the other, read as one array: `len(tokens)` and `tokens[start:stop]`.

    They are read and not mapped into memory: a file that is cut short while in use is then an error and not a signal
    that ends the process.
    """

    def __init__(self, paths: Sequence[Path], dtype: str = "uint16") -> None:
        """Raises `OSError` if a file can't be opened, and `UserError` if one is not of whole tokens."""
        self._paths, self._dtype = tuple(paths), np.dtype(dtype).newbyteorder("<")
        each = self._dtype.itemsize
        self._files, sizes = [], []
        for path in self._paths:
            self._files.append(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
            weakref.finalize(self, os.close, self._files[-1])
            sizes.append(os.fstat(self._files[-1]).st_size)
            if sizes[-1] == 0 or sizes[-1] % each:
                raise damaged(path, sizes[-1], f"{each} bytes for every token ({dtype}), and one token at least,")
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


def damaged(path: object, size: int, wanted: str) -> UserError:
    """The error that a file is not of the size that it should have."""
    return UserError(f"{path} has {size:,} bytes where {wanted} belong; it is damaged, prepare the data set again")
