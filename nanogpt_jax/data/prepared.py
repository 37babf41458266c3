"""A prepared data set on the disk: `train.bin`, `val.bin` and `meta.json`, written whole and read back.

The token files are nanoGPT's, raw little-endian uint16, or uint32 where a vocabulary needs it; `meta.json` holds their
type, their sizes and the tokenizer, and is the seal: it is taken away first and put back last. Nothing here unpickles.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.core.limits import MAX_VOCAB_SIZE
from nanogpt_jax.data import assets
from nanogpt_jax.data.commands import to_adopt, to_prepare
from nanogpt_jax.data.files import exists, is_file, refused, replace_when_whole
from nanogpt_jax.data.pieces import Split
from nanogpt_jax.data.process import undone_by_signals
from nanogpt_jax.data.stored_tokenizer import tokenizer_from_json
from nanogpt_jax.data.tokenizer import TokenIds, Tokenizer, TokenType, shown, token_type

LEAST_SHARD = 1024  # tokens; smaller ones would be thousands of open files
MARKS = "_marks"  # after a split's name, in that of its marks' file: one byte a token
LEARNT, BEGINS = 1, 2  # bits of a mark: the token is learnt; an example begins with it
LARGEST_META = 1 << 28  # bytes; a vocabulary of 262,144 with its merges takes 43 million


@dataclass(frozen=True)
class Meta:
    """What `meta.json` says of a data set; `tokenizer` is the document of `Tokenizer.to_json`.

    Where splits are cut into several files, `files` names them in their order. Of a data set of examples, `examples`
    has how many there are in each split, the tokens of the longest, and the template of chats; beside each token file
    lies one of marks (`MARKS`).
    """

    vocab_size: int
    dtype: TokenType
    train_tokens: int
    val_tokens: int
    tokenizer: dict[str, Any]
    files: dict[str, list[str]] | None = None
    examples: dict[str, Any] | None = None

    def to_bytes(self) -> bytes:
        """What `meta.json` holds."""
        document = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"

    def shards(self, split: str) -> Sequence[str]:
        """The files of a split; none where it is one file under its own name."""
        return () if self.files is None else self.files[split]


def load_meta(folder: Path) -> Meta:
    """The `meta.json` of a data set. Raises `UserError` if it is missing, or not what `prepare_text` writes."""
    path = folder / "meta.json"
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_META + 1)
    except (FileNotFoundError, NotADirectoryError):
        if exists(folder / "meta.pkl"):
            raise UserError(
                f"{folder} has meta.pkl and no meta.json; a pickle can run code and is not read here, so say "
                f"what its tokens are: {to_adopt(folder)}"
            ) from None
        adopt = f", or take its token files over: {to_adopt(folder)}" if is_file(folder / "train.bin") else ""
        raise UserError(
            f"{folder} is not a prepared data set (no meta.json); run: {to_prepare(folder)}{adopt}"
        ) from None
    except OSError as error:
        raise refused(path, error, "read") from error

    def refuse(what: str) -> UserError:
        return UserError(f"{path} {what}; prepare the data set again: {to_prepare(folder)}")

    if len(data) > LARGEST_META:
        raise refuse(f"is larger than {LARGEST_META:,} bytes")
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise refuse(f"is not JSON ({in_short(error)})") from None
    if not isinstance(document, dict):
        raise refuse(f"holds {shown(document)} where an object belongs")
    if document.get("dtype") not in get_args(TokenType):
        raise refuse(f"has dtype {shown(document.get('dtype'))} where {' or '.join(get_args(TokenType))} belongs")
    for name, largest in (("vocab_size", MAX_VOCAB_SIZE), ("train_tokens", 2**63), ("val_tokens", 2**63)):
        value = document.get(name)
        if type(value) is not int or not 1 <= value <= largest:
            raise refuse(f"has {name} {shown(value)} where a number from 1 to {largest} belongs")
    if not isinstance(document.get("tokenizer"), dict):
        raise refuse(f"has tokenizer {shown(document.get('tokenizer'))} where an object belongs")
    files = document.get("files")
    if files is not None and not (isinstance(files, dict) and all(_are_names(files.get(s)) for s in ("train", "val"))):
        raise refuse(f"has files {shown(files)} where the names of both splits' files belong")
    examples = document.get("examples")
    if examples is not None and not _is_of_examples(examples):
        raise refuse(f"has examples {shown(examples)} where their numbers and the longest's tokens belong")
    known: dict[str, Any] = {name: document.get(name) for name in Meta.__dataclass_fields__}
    return Meta(**known)


def load_tokenizer(document: Any) -> Tokenizer:
    """The tokenizer of a `Meta.tokenizer`. Raises `UserError` if it is not one, or GPT-2's ranks can't be had."""
    return tokenizer_from_json(document, assets.gpt2_ranks)


def is_same_tokenizer(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two documents of `Tokenizer.to_json` mean one tokenizer; another version may have written either."""
    if one == other or not one.get("type") == other.get("type") == "hf":
        return one == other
    return load_tokenizer(one).to_json() == load_tokenizer(other).to_json()


class Piece(NamedTuple):
    """The next tokens (N,) of a split and, where they are an example's, their marks, uint8 (N,)."""

    split: Split
    ids: TokenIds
    marks: np.ndarray | None = None


def marked(learnt: np.ndarray) -> np.ndarray:
    """The marks, uint8 (N,), of an example of whose tokens those are learnt, booleans (N,)."""
    marks = learnt.astype(np.uint8) * np.uint8(LEARNT)
    marks[:1] |= BEGINS
    return marks


def write_data_set(
    folder: Path,
    tokenizer: Tokenizer,
    pieces: Iterable[Piece],
    shard_tokens: int | None,
    examples: dict[str, Any] | None = None,
) -> Meta:
    """Write a data set. Until all of it lies on the disk whole, the one that was there stays as it is.

    With `examples`, each piece is one, and those are what `meta.json` is to say of them besides their numbers.
    """
    is_new = not exists(folder)

    def forget() -> None:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()

    try:
        with undone_by_signals(forget), contextlib.ExitStack() as stack:
            # Files get their names in the reverse order, the seal last.
            seal = stack.enter_context(replace_when_whole(folder / "meta.json"))
            dtype = token_type(tokenizer.vocab_size)
            of = ["val", "train"] if examples is None else ["val", "train", f"val{MARKS}", f"train{MARKS}"]
            splits = {
                name: _SplitFiles(folder, name, "uint8" if name.endswith(MARKS) else dtype, shard_tokens, stack)
                for name in of
            }
            if examples is not None:
                examples = {"train": 0, "val": 0, "longest": 0, **examples}
            for split, ids, own in pieces:
                splits[split].write(ids)
                if examples is not None and own is not None:
                    splits[split + MARKS].write(own)
                    examples[split] += 1
                    examples["longest"] = max(examples["longest"], len(ids))
            sizes = (splits["train"].tokens, splits["val"].tokens)
            names = None if shard_tokens is None else {split: files.names for split, files in splits.items()}
            meta = Meta(tokenizer.vocab_size, dtype, *sizes, tokenizer.to_json(), names, examples)
            seal.write(meta.to_bytes())
            for file in (seal, *(file for files in splits.values() for file in files.files)):
                file.flush()
                os.fsync(file.fileno())
            (folder / "meta.json").unlink(missing_ok=True)
    except BaseException:
        forget()
        raise
    return meta


def token_files(folder: Path, meta: Meta, split: str) -> list[Path]:
    """The files of a split, in their order."""
    return [folder / name for name in meta.shards(split) or (f"{split}.bin",)]


def token_chunks(paths: Iterable[Path], dtype: TokenType) -> Iterator[TokenIds]:
    """The tokens of files one after the other, a million at a time. Raises `UserError` for a part of a token."""
    of_file = np.dtype(dtype).newbyteorder("<")
    for path in paths:
        with open(path, "rb") as file:
            while data := file.read(_CHUNK * of_file.itemsize):
                if len(data) % of_file.itemsize:
                    raise UserError(
                        f"{path} does not end with a whole token of {of_file.itemsize} bytes ({dtype}); it is damaged, "
                        "copy it again"
                    )
                yield np.frombuffer(data, of_file).astype(dtype)


_CHUNK = 1 << 20  # tokens


class _SplitFiles:
    """A split being written: one file, or as many as it takes with `shard_tokens` tokens in each but the last."""

    def __init__(
        self, folder: Path, split: str, dtype: str, shard_tokens: int | None, stack: contextlib.ExitStack
    ) -> None:
        self._folder, self._split, self._shard_tokens, self._stack = folder, split, shard_tokens, stack
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self.tokens = 0
        self.names: list[str] = []
        self.files: list[IO[bytes]] = []
        self._next()

    def write(self, ids: TokenIds | npt.NDArray[np.uint8]) -> None:
        """Add tokens at the end."""
        while self._shard_tokens is not None and self.tokens + len(ids) > self._shard_tokens * len(self.files):
            left = self._shard_tokens * len(self.files) - self.tokens
            self._append(ids[:left])
            ids = ids[left:]
            self._next()
        self._append(ids)

    def _append(self, ids: TokenIds | npt.NDArray[np.uint8]) -> None:
        self.files[-1].write(ids.astype(self._dtype).tobytes())
        self.tokens += len(ids)

    def _next(self) -> None:
        self.names.append(
            f"{self._split}.bin" if self._shard_tokens is None else f"{self._split}_{len(self.names):03}.bin"
        )
        self.files.append(self._stack.enter_context(replace_when_whole(self._folder / self.names[-1])))


def require_shard(shard_tokens: int | None) -> None:
    """Refuse files of too few tokens with a `UserError`."""
    if shard_tokens is not None and shard_tokens < LEAST_SHARD:
        raise UserError(
            f"shard_tokens={shard_tokens} is less than {LEAST_SHARD}; choose for example 100000000, for 200 MB each"
        )


def _is_of_examples(examples: Any) -> bool:
    """Whether that is what `write_data_set` says of examples."""
    if not isinstance(examples, dict):
        return False
    numbers = [examples.get(name) for name in ("train", "val", "longest")]
    return all(type(number) is int and number > 0 for number in numbers)


def _are_names(names: Any) -> bool:
    """Whether that is a list of plain file names, of which there is one at least."""
    return (
        isinstance(names, list)
        and bool(names)
        and all(isinstance(name, str) and name.endswith(".bin") and Path(name).name == name for name in names)
    )
