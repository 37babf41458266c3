"""What a training batch has where everything comes once an epoch: a function of (seed, index) alone.

Each epoch has an order of its own, and batches go through one epoch after the other, over their ends.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Int64

_ORDERS, _OFFSETS = 3, 4  # streams of their own, beside those of `dataset.py`


def rows_of_batch(rows: int, seed: int, index: int, shape: tuple[int, ...]) -> Int64[np.ndarray, "*shape"]:
    """The numbers of rows that training batch `index` has, each of which is below `rows` and comes once an epoch."""
    places = _places(index, shape)
    epochs = range(int(places[0]) // rows, int(places[-1]) // rows + 1)
    return np.concatenate([_order(rows, seed, e)[places[places // rows == e] % rows] for e in epochs]).reshape(shape)


def windows_of_batch(
    tokens: int, block_size: int, seed: int, index: int, shape: tuple[int, ...]
) -> Int64[np.ndarray, "*shape"]:
    """Where the windows of training batch `index` begin in a file of so many tokens, which are more than a window has.

    The windows of an epoch lie side by side, from a place on that is drawn anew for each, so that what stands at the
    end of one in this epoch stands elsewhere in the next. Less than two windows are left out at the ends of the file.
    """
    windows = max(1, (tokens - block_size) // block_size)
    room = min(block_size, tokens - windows * block_size)  # a target follows the last token of a window
    epochs, of_each = np.unique(_places(index, shape) // windows, return_inverse=True)
    begins = np.array([_philox(seed, _OFFSETS, int(epoch)).integers(room) for epoch in epochs])
    return rows_of_batch(windows, seed, index, shape) * block_size + begins[of_each].reshape(shape)


def _places(index: int, shape: tuple[int, ...]) -> Int64[np.ndarray, " N"]:
    """Where the rows of a batch stand among all that training has."""
    size = math.prod(shape)
    return np.arange(index * size, (index + 1) * size)


@functools.lru_cache(2)  # a batch has rows of two epochs at most where there are more rows than it takes
def _order(rows: int, seed: int, epoch: int) -> Int64[np.ndarray, " {rows}"]:
    """The order of the rows in an epoch."""
    return _philox(seed, _ORDERS, epoch).permutation(rows)


def _philox(seed: int, stream: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, epoch]))
