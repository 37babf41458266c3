"""Text to data sets: what `data/*/prepare.py` do. Texts are streamed and never held whole."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data import assets
from nanogpt_jax.data.commands import pasteable
from nanogpt_jax.data.encode import TRAINING_CHARACTERS, Part, encode, require_tokenizer
from nanogpt_jax.data.files import replace_when_whole
from nanogpt_jax.data.pieces import LONGEST_UNCUT, Item, Split, census, in_pieces, recut, split_at
from nanogpt_jax.data.prepared import Meta
from nanogpt_jax.data.sources import CHUNK, plain_os_errors, progress, read_text, require_regular_files
from nanogpt_jax.data.tokenizer import Tokenizer

MARKED_UP = (".jsonl", ".json", ".csv", ".tsv", ".html", ".xml")
"""Endings of files that hold text in a form of their own."""


@dataclass(frozen=True)
class Summary:
    """What was prepared: `length` is in `unit`s, "characters" or "documents". As text, nanoGPT's lines about it."""

    folder: Path
    unit: str
    length: int
    meta: Meta
    remarks: tuple[str, ...] = ()  # what a user may not expect, in sentences

    def __str__(self) -> str:
        of = self.meta.examples
        each = {split: "" if of is None else f" in {of[split]:,} examples" for split in ("train", "val")}
        return (
            f"length of dataset in {self.unit}: {self.length:,}\n"
            f"vocab size: {self.meta.vocab_size:,}\n"
            f"train has {self.meta.train_tokens:,} tokens{each['train']}\n"
            f"val has {self.meta.val_tokens:,} tokens{each['val']}"
        )


@plain_os_errors("preparing a text")
def prepare_text(
    sources: Sequence[Path],
    folder: Path,
    tokenizer: str | Tokenizer = "char",
    val_fraction: float = 0.1,
    *,
    unknown: str = "refuse",
    chunk: int = CHUNK,
    shard_tokens: int | None = None,
) -> Summary:
    """Make `folder` a data set of UTF-8 text files, taken one after the other as they are, line ends included.

    The first `1 - val_fraction` of the characters are for training, the rest for validation, encoded separately as in
    nanoGPT. `tokenizer` is `char`, `gpt2`, `bpe:SIZE` or an existing one; a BPE learns from the training characters
    alone, evenly thinned to `TRAINING_CHARACTERS`. Characters that an existing one lacks are named in a `UserError`, or
    dropped or made spaces: `unknown` is `refuse`, `drop` or `space`. Files are read `chunk` bytes at a time, twice, and
    thrice for a BPE that is trained. With `shard_tokens` a split lies in files of that many tokens, `train_000.bin` and
    so on. Raises `UserError` where a file cannot be read or is not UTF-8, or there is too little text.
    """
    require_tokenizer(tokenizer)
    require_fraction(val_fraction)
    require_regular_files(sources)
    found = census(read_text(sources, chunk, "reading"))
    names = ", ".join(map(str, sources))
    if found.length == 0:
        raise UserError(f"{names}: there is no text (0 characters); give a file with text in it")
    n_train = int(found.length * (1 - val_fraction))
    if not 0 < n_train < found.length:
        raise UserError(
            f"{names}: {found.length} characters are too few to split with val_fraction={val_fraction}; give more"
        )

    def parts(label: str, cut: Callable[[str], int]) -> Iterator[Part]:
        length = 0
        split_text = split_at(read_text(sources, chunk, label), n_train)
        for split, group in itertools.groupby(split_text, key=lambda part: part[0]):
            for piece in recut((text for _, text in group), cut):
                length += len(piece)
                yield Part(split, piece)
        if length != found.length:
            raise UserError(f"{names}: {length:,} characters where there were {found.length:,} just now; try again")

    stride = -(-n_train // TRAINING_CHARACTERS)
    meta, remarks = encode(parts, folder, tokenizer, unknown, shard_tokens, what=names, found=found, stride=stride)
    return Summary(folder, "characters", found.length, meta, (*_of_other_formats(sources), *remarks))


def _of_other_formats(sources: Sequence[Path]) -> Iterator[str]:
    """Remarks on files that are more than text by their names."""
    for path in sources:
        if path.suffix.lower() in MARKED_UP:
            remark = f"{path} was taken as plain text, with all its marks"
            if path.suffix.lower() == ".jsonl":
                remark += f"; for the `text` of each line: {pasteable('prepare openwebtext', path)}"
            yield remark


@plain_os_errors("preparing documents")
def prepare_documents(
    documents: Iterable[str],
    folder: Path,
    tokenizer: str | Tokenizer = "gpt2",
    val_fraction: float = 0.0005,
    seed: int = 2357,
    *,
    unknown: str = "refuse",
    shard_tokens: int | None = None,
) -> Summary:
    """Make `folder` a data set of documents, each followed by the end-of-text token; by a line end, of characters.

    Whether a document is for validation depends on `seed` and its index alone, see `is_validation`; where that would
    leave a split empty, the document that is nearest to it by its hash goes there. `tokenizer` and `unknown` are as in
    `prepare_text`. Except for GPT-2's tokens the documents are gone through twice; for a BPE, the first time until
    `TRAINING_CHARACTERS` have been learned from. Raises `UserError` for less than two documents.
    """
    require_tokenizer(tokenizer)
    require_fraction(val_fraction)
    if iter(documents) is documents and tokenizer != "gpt2":
        raise TypeError("documents must be an iterable that can be gone through twice, or tokenizer='gpt2'")
    documents, moved = in_both_splits(documents, seed, val_fraction, "documents")
    count = 0

    def parts(label: str, cut: Callable[[str], int]) -> Iterator[Part]:
        nonlocal count
        count = 0
        with progress(f"{label} documents", None) as advance:
            for index, document in enumerate(documents):
                split: Split = "val" if is_validation(seed, index, val_fraction) != (index == moved) else "train"
                *before, last = in_pieces(document, LONGEST_UNCUT, cut)
                yield from (Part(split, piece, name=f"document {index:,}") for piece in before)
                yield Part(split, last, ends=True, name=f"document {index:,}")
                count = index + 1
                advance(1)

    meta, remarks = encode(parts, folder, tokenizer, unknown, shard_tokens, what="the documents")
    return Summary(folder, "documents", count, meta, tuple(remarks))


def in_both_splits(
    documents: Iterable[Item], seed: int, val_fraction: float, kind: str
) -> tuple[Iterable[Item], int | None]:
    """The documents again, and the one among few that must change its split so that neither is empty.

    Raises `UserError`, which calls them what `kind` says, for less than two.
    """
    seen: list[Item] = []
    drawn: list[Fraction] = []
    iterator = iter(documents)
    for index, document in enumerate(iterator):
        seen.append(document)
        drawn.append(_draw(seed, index))
        if min(drawn) < val_fraction <= max(drawn):
            break
    else:
        if len(drawn) < 2:
            raise UserError(
                f"there are too few {kind} for two splits ({len(drawn)}); give more, or take the text as one: "
                + pasteable("prepare", "FILE...")
            )
        nearest = min(drawn) if val_fraction <= min(drawn) else max(drawn)
        return seen, drawn.index(nearest)
    return itertools.chain(seen, iterator) if iterator is documents else documents, None


def is_validation(seed: int, index: int, val_fraction: float) -> bool:
    """Whether document `index` is for validation: a hash of (seed, index), read as a number in [0, 1), is below."""
    return _draw(seed, index) < val_fraction


def _draw(seed: int, index: int) -> Fraction:
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return Fraction(int.from_bytes(digest, "little"), 2**64)


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


def require_fraction(val_fraction: float) -> None:
    """Refuse a share of the text that is none with a `UserError`."""
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction={val_fraction} is not between 0 and 1; choose for example 0.1")
