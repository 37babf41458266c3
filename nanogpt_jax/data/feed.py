"""Batches on their way to the devices: each process reads its own rows of them, in the background and ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64

from nanogpt_jax.core.ops import AnyArray
from nanogpt_jax.core.sharding import batch_sharding
from nanogpt_jax.core.train_step import AnyBatch
from nanogpt_jax.data import dataset
from nanogpt_jax.data.dataset import TokenFile

AHEAD = 2  # batches made before they are asked for

Item = TypeVar("Item")
Made = TypeVar("Made")
Rows = tuple[slice, ...]


def random_batch(
    mesh: Mesh | None, file: TokenFile, stream: str, seed: int, index: int, shape: tuple[int, ...], block_size: int
) -> AnyBatch:
    """`dataset.random_batch` on the devices: the same batch on every mesh."""
    starts = dataset.random_starts(file, stream, seed, index, shape, block_size)
    return _on_devices(mesh, (*shape, block_size), lambda rows: dataset.windows(file, starts[rows], block_size))


def windows_at(
    mesh: Mesh | None, file: TokenFile, starts: Int64[np.ndarray, " _"], rows: int, block_size: int
) -> tuple[AnyBatch, AnyArray]:
    """The windows that begin at `starts`, filled up to `rows`, and their weights, on the devices."""
    padded, weights = dataset.filled_up(starts, rows, block_size)
    return _on_devices(
        mesh, (rows, block_size), lambda at: (dataset.windows(file, padded[at], block_size), weights[at])
    )


def whole_split(
    mesh: Mesh | None, file: TokenFile, batch_size: int, block_size: int
) -> Iterator[tuple[AnyBatch, AnyArray]]:
    """`dataset.whole_split` on the devices."""
    for first in range(0, dataset.rows_in_split(file, block_size), batch_size):

        def read(rows: Rows, first: int = first) -> tuple[AnyBatch, AnyArray]:
            start, stop, _ = rows[0].indices(batch_size)
            return dataset.split_rows(file, first + start, stop - start, block_size)

        yield _on_devices(mesh, (batch_size, block_size), read)


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Generator[Made, None, None]:
    """`map`, with the next `AHEAD` results made by a thread while the last one is in use.

    What `make` raises is raised where its result is due. Closing the iterator ends the thread.
    """
    pool = ThreadPoolExecutor(1, "batches")
    try:
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _on_devices(mesh: Mesh | None, shape: tuple[int, ...], read: Callable[[Rows], Made]) -> Made:
    """Arrays of `shape`, split by rows over the mesh, from a function that reads the rows it is asked for.

    Rows that several devices of this process hold are read once, rows of other processes not at all.
    """
    if mesh is None:
        return jax.device_put(read((slice(None),) * (len(shape) - 1)))
    place = batch_sharding(mesh, len(shape))
    read_already: dict[str, Made] = {}
    parts = []
    for device, index in place.addressable_devices_indices_map(shape).items():
        assert index is not None  # as it is for devices of other processes
        rows = index[:-1]
        if str(rows) not in read_already:
            read_already[str(rows)] = read(rows)
        parts.append(jax.device_put(read_already[str(rows)], device))
    return jax.tree.map(lambda *each: jax.make_array_from_single_device_arrays(shape, place, list(each)), *parts)
