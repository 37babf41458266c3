"""Text files to token files: a data set is a folder with `train.bin`, `val.bin` and `meta.json`.

The token files are nanoGPT's, raw little-endian uint16; `meta.json` holds their sizes and the tokenizer, and is the
seal: it is taken away first and put back last. Texts are streamed and never held whole. Nothing here unpickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from nanogpt_jax import assets
from nanogpt_jax.errors import UserError, in_short
from nanogpt_jax.files import replace_when_whole
from nanogpt_jax.sources import CHUNK, plain_os_errors, progress, read_text, require_regular_files
from nanogpt_jax.tokenizer import (
    MAX_VOCAB_SIZE,
    BPETokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    TokenIds,
    Tokenizer,
    codepoints,
    shown,
    tokenizer_from_json,
    word_cut,
)

LONGEST_UNCUT = 1 << 17  # characters without a place to cut, after which they are cut anyway
TRAINING_PIECE = 1 << 12  # characters that a BPE learns from at a time, and so nearly the longest word it sees
TRAINING_CHARACTERS = 1 << 28  # that a BPE learns from at most, since every different word is held in memory
WORKERS = min(os.cpu_count() or 1, 8)
LEAST_SHARD = 1024  # tokens; smaller ones would be thousands of open files
LARGEST_META = 1 << 26  # bytes; 65,536 merges take a few million

Split = Literal["train", "val"]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Meta:
    """What `meta.json` says of a data set; `tokenizer` is the document of `Tokenizer.to_json`.

    Where splits are cut into several files, `files` names them in their order.
    """

    vocab_size: int
    dtype: str
    train_tokens: int
    val_tokens: int
    tokenizer: dict[str, Any]
    files: dict[str, list[str]] | None = None

    def shards(self, split: str) -> Sequence[str]:
        """The files of a split; none where it is one file under its own name."""
        return () if self.files is None else self.files[split]


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
    _require_shard(shard_tokens)
    require_regular_files(sources)
    length, characters = _census(read_text(sources, chunk, "reading"))
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
        parts = _split(read_text(sources, TRAINING_PIECE, "learning the tokenizer"), n_train)
        training = recut((text for split, text in parts if split == "train"), word_cut, TRAINING_PIECE)
        made: Tokenizer = BPETokenizer.train(itertools.islice(training, 0, None, stride), size)
    else:
        made = CharTokenizer(characters) if tokenizer == "char" else GPT2Tokenizer(assets.gpt2_ranks())

    def pieces() -> Iterator[tuple[Split, str]]:
        found = 0
        parts = _split(read_text(sources, chunk, "encoding"), n_train)
        for split, group in itertools.groupby(parts, key=lambda part: part[0]):
            for piece in recut((text for _, text in group), made.cut):
                found += len(piece)
                yield split, piece
        if found != length:
            raise UserError(f"{names}: {found:,} characters where there were {length:,} just now; try again")

    def encode(piece: tuple[Split, str]) -> tuple[Split, TokenIds]:
        return piece[0], made.encode_ordinary(piece[1])

    meta = _write(folder, made, _in_order(encode, pieces()), shard_tokens)
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
    _require_shard(shard_tokens)
    if tokenizer == "char":
        raise UserError("tokenizer=char has no token to end a document with; choose gpt2 or bpe:SIZE")
    if size is not None and iter(documents) is documents:
        raise TypeError("to train a BPE, documents must be an iterable that can be gone through twice")
    if size is not None:
        training = (text for i, text in enumerate(documents) if not is_validation(seed, i, val_fraction))
        small = (piece for text in training for piece in _in_pieces(text, TRAINING_PIECE))
        made: Tokenizer = BPETokenizer.train(_first(small, TRAINING_CHARACTERS), size)
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
            ids = [made.encode_ordinary(piece) for piece in _in_pieces(document, LONGEST_UNCUT)]
        except UserError as error:
            raise UserError(f"document {index:,}: {error}") from None
        split: Split = "val" if is_validation(seed, index, val_fraction) else "train"
        return split, np.append(np.concatenate(ids), np.uint16(made.eot_token))

    def parts() -> Iterator[tuple[Split, TokenIds]]:
        empty: set[Split] = {"train", "val"}
        for split, ids in _in_order(encode, counted()):
            empty.discard(split)
            yield split, ids
        if empty:
            raise UserError(
                f"{count:,} documents with val_fraction={val_fraction} leave {' and '.join(sorted(empty))} empty; "
                "give more documents, or another val_fraction"
            )

    meta = _write(folder, made, parts(), shard_tokens)
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


def load_meta(folder: Path) -> Meta:
    """The `meta.json` of a data set. Raises `UserError` if it is missing, or not what `prepare_text` writes."""
    path = folder / "meta.json"
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_META + 1)
    except (FileNotFoundError, NotADirectoryError):
        if (folder / "meta.pkl").exists():
            raise UserError(
                f"{folder} has meta.pkl and no meta.json; a pickle can run code and is not read here, "
                f"prepare the data set anew: {_command_for(folder)}"
            ) from None
        raise UserError(f"{folder} is not a prepared data set (no meta.json); run: {_command_for(folder)}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check who may read it") from error

    def refuse(what: str) -> UserError:
        return UserError(f"{path} {what}; prepare the data set again: {_command_for(folder)}")

    if len(data) > LARGEST_META:
        raise refuse(f"is larger than {LARGEST_META:,} bytes")
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise refuse(f"is not JSON ({in_short(error)})") from None
    if not isinstance(document, dict):
        raise refuse(f"holds {shown(document)} where an object belongs")
    if document.get("dtype") != "uint16":
        raise refuse(f"has dtype {shown(document.get('dtype'))} where uint16 belongs")
    for name, largest in (("vocab_size", MAX_VOCAB_SIZE), ("train_tokens", 2**63), ("val_tokens", 2**63)):
        value = document.get(name)
        if type(value) is not int or not 1 <= value <= largest:
            raise refuse(f"has {name} {shown(value)} where a number from 1 to {largest} belongs")
    if not isinstance(document.get("tokenizer"), dict):
        raise refuse(f"has tokenizer {shown(document.get('tokenizer'))} where an object belongs")
    files = document.get("files")
    if files is not None and not (isinstance(files, dict) and all(_are_names(files.get(s)) for s in ("train", "val"))):
        raise refuse(f"has files {shown(files)} where the names of both splits' files belong")
    return Meta(**{name: document.get(name) for name in Meta.__dataclass_fields__})


def load_tokenizer(document: Any) -> Tokenizer:
    """The tokenizer of a `Meta.tokenizer`. Raises `UserError` if it is not one, or GPT-2's ranks can't be had."""
    return tokenizer_from_json(document, assets.gpt2_ranks)


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


class _Census(NamedTuple):
    length: int  # in characters
    characters: list[str]  # the different ones, sorted


def _census(chunks: Iterable[str]) -> _Census:
    length, seen = 0, np.zeros(sys.maxunicode + 1, bool)
    for chunk in chunks:
        length += len(chunk)
        seen[codepoints(chunk)] = True
    return _Census(length, [chr(i) for i in np.flatnonzero(seen)])


def _split(chunks: Iterable[str], n_train: int) -> Iterator[tuple[Split, str]]:
    """The first `n_train` characters as training text, the rest as validation text."""
    left = n_train
    for chunk in chunks:
        if left > 0:
            yield "train", chunk[:left]
        if left < len(chunk):
            yield "val", chunk[max(left, 0) :]
        left -= len(chunk)


def _in_pieces(text: str, size: int) -> Iterator[str]:
    """A text in pieces of at most about `size` characters that end where a BPE allows; a short one as it is."""
    if len(text) <= size:
        yield text
    else:
        yield from recut((text[i : i + size] for i in range(0, len(text), size)), word_cut, size)


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Texts until they have that many characters together."""
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return


def _in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` on a few threads, since encoders let go of the GIL; two items a thread are under way at most."""
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write(
    folder: Path, tokenizer: Tokenizer, parts: Iterable[tuple[Split, TokenIds]], shard_tokens: int | None
) -> Meta:
    """Write a data set. Until all of it lies on the disk whole, the one that was there stays as it is."""
    is_new = not folder.exists()
    try:
        with contextlib.ExitStack() as stack:
            # Files get their names in the reverse order, the seal last.
            seal = stack.enter_context(replace_when_whole(folder / "meta.json"))
            splits = {split: _SplitFiles(folder, split, shard_tokens, stack) for split in ("val", "train")}
            for split, ids in parts:
                splits[split].write(ids)
            sizes = (splits["train"].tokens, splits["val"].tokens)
            names = None if shard_tokens is None else {split: files.names for split, files in splits.items()}
            meta = Meta(tokenizer.vocab_size, "uint16", *sizes, tokenizer.to_json(), names)
            document = {name: value for name, value in asdict(meta).items() if value is not None}
            seal.write(json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")
            for file in (seal, *splits["val"].files, *splits["train"].files):
                file.flush()
                os.fsync(file.fileno())
            (folder / "meta.json").unlink(missing_ok=True)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return meta


class _SplitFiles:
    """A split being written: one file, or as many as it takes with `shard_tokens` tokens in each but the last."""

    def __init__(self, folder: Path, split: str, shard_tokens: int | None, stack: contextlib.ExitStack) -> None:
        self._folder, self._split, self._shard_tokens, self._stack = folder, split, shard_tokens, stack
        self.tokens, self.names, self.files = 0, [], []
        self._next()

    def write(self, ids: TokenIds) -> None:
        """Add tokens at the end."""
        while self._shard_tokens is not None and self.tokens + len(ids) > self._shard_tokens * len(self.files):
            left = self._shard_tokens * len(self.files) - self.tokens
            self._append(ids[:left])
            ids = ids[left:]
            self._next()
        self._append(ids)

    def _append(self, ids: TokenIds) -> None:
        self.files[-1].write(ids.astype("<u2").tobytes())
        self.tokens += len(ids)

    def _next(self) -> None:
        self.names.append(
            f"{self._split}.bin" if self._shard_tokens is None else f"{self._split}_{len(self.names):03}.bin"
        )
        self.files.append(self._stack.enter_context(replace_when_whole(self._folder / self.names[-1])))


def _are_names(names: Any) -> bool:
    """Whether that is a list of plain file names, of which there is one at least."""
    return (
        isinstance(names, list)
        and bool(names)
        and all(isinstance(name, str) and name.endswith(".bin") and Path(name).name == name for name in names)
    )


def _require_shard(shard_tokens: int | None) -> None:
    if shard_tokens is not None and shard_tokens < LEAST_SHARD:
        raise UserError(f"shard_tokens={shard_tokens} is less than {LEAST_SHARD}; 100000000 makes files of 200 MB")


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


def _command_for(folder: Path) -> str:
    """The command that prepares the data set which belongs in `folder`."""
    own_script = folder.name in (*KNOWN, "openwebtext")
    command = f"data/{folder.name}/prepare.py" if own_script else f"data/prepare.py FILE... --name={folder.name}"
    return f"python {command}" + ("" if folder.parent == Path("data") else f" --data_dir={folder.parent}")
