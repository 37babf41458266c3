"""Text in pieces: a stream of it is counted, split, cut where its tokens allow, and encoded on a few threads."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from nanogpt_jax.data.tokenizer import codepoints

LONGEST_UNCUT = 1 << 17  # characters without a place to cut, after which they are cut anyway
WORKERS = min(os.cpu_count() or 1, 8)

Split = Literal["train", "val"]
Item = TypeVar("Item")
Result = TypeVar("Result")


def recut(chunks: Iterable[str], cut: Callable[[str], int], longest: int = LONGEST_UNCUT) -> Iterator[str]:
    """The same text in pieces that end where `cut` allows, so that their tokens are those of the whole.

    After `longest` characters without such a place the text is cut all the same, which may change a token or two
    there: a file that is a single word must not need memory or time without bounds, and tiktoken cannot take a million
    characters of white space.
    """
    pending = ""
    for chunk in chunks:
        pending += chunk
        end = cut(pending)
        if end:
            yield pending[:end]
            pending = pending[end:]
        while len(pending) > longest:
            yield pending[:longest]
            pending = pending[longest:]
    if pending:
        yield pending


class Census(NamedTuple):
    """How often each character occurs in a text."""

    counts: npt.NDArray[np.int64]  # by code point

    @property
    def length(self) -> int:
        """Of the text, in characters."""
        return int(self.counts.sum())

    @property
    def characters(self) -> list[str]:
        """The different ones, sorted."""
        return [chr(i) for i in np.flatnonzero(self.counts)]

    def count(self, characters: Iterable[str]) -> int:
        """How often any of `characters` occurs."""
        return int(self.counts[[ord(character) for character in characters]].sum())


def census(chunks: Iterable[str]) -> Census:
    """Count a text."""
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    for chunk in chunks:
        found = np.bincount(codepoints(chunk))
        counts[: len(found)] += found
    return Census(counts)


def split_at(chunks: Iterable[str], n_train: int) -> Iterator[tuple[Split, str]]:
    """The first `n_train` characters as training text, the rest as validation text."""
    left = n_train
    for chunk in chunks:
        if left > 0:
            yield "train", chunk[:left]
        if left < len(chunk):
            yield "val", chunk[max(left, 0) :]
        left -= len(chunk)


def in_pieces(text: str, size: int, cut: Callable[[str], int]) -> Iterator[str]:
    """A text in pieces of at most about `size` characters that end where `cut` allows; a short one as it is."""
    if len(text) <= size:
        yield text
    else:
        yield from recut((text[i : i + size] for i in range(0, len(text), size)), cut, size)


def first(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Texts until they have that many characters together."""
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` on a few threads, since encoders let go of the GIL; two items a thread are under way at most."""
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
