"""Text files to token files: a data set is a folder with `train.bin`, `val.bin` and `meta.json`.

The token files are nanoGPT's, raw little-endian uint16; `meta.json` holds their sizes and the tokenizer, and is the
seal: it is taken away first and put back last. Texts are streamed and never held whole. Nothing here unpickles.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from nanogpt_jax import assets
from nanogpt_jax.errors import UserError
from nanogpt_jax.files import replace_when_whole
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

CHUNK = 1 << 18  # bytes read at a time
LONGEST_UNCUT = 1 << 17  # characters without a place to cut, after which they are cut anyway
TRAINING_PIECE = 1 << 12  # characters that a BPE learns from at a time, and so nearly the longest word it sees
TRAINING_CHARACTERS = 1 << 28  # that a BPE learns from at most, since every different word is held in memory
WORKERS = min(os.cpu_count() or 1, 8)
SECONDS_BETWEEN_LINES = 10  # of progress, where there is no terminal to draw a bar on
LARGEST_META = 1 << 26  # bytes; 65,536 merges take a few million

Split = Literal["train", "val"]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Meta:
    """What `meta.json` says of a data set; `tokenizer` is the document of `Tokenizer.to_json`."""

    vocab_size: int
    dtype: str
    train_tokens: int
    val_tokens: int
    tokenizer: dict[str, Any]


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


@contextlib.contextmanager
def _plain_os_errors(doing: str) -> Iterator[None]:
    """Turn what the operating system refuses into a `UserError` of one line."""
    mends = {
        errno.ENOENT: "check the name",
        errno.EISDIR: "name the files in it",
        errno.EACCES: "check who may read and write there",
        errno.ENOSPC: "make room and try again",
    }
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename or doing
        reason = error.strerror or _in_short(error)
        raise UserError(f"{name}: {reason}; {mends.get(error.errno, 'nothing was prepared')}") from error


@_plain_os_errors("preparing a text")
def prepare_text(
    sources: Sequence[Path], folder: Path, tokenizer: str = "char", val_fraction: float = 0.1, *, chunk: int = CHUNK
) -> Summary:
    """Make `folder` a data set of UTF-8 text files, taken one after the other as they are, line ends included.

    The first `1 - val_fraction` of the characters are for training, the rest for validation, encoded separately as in
    nanoGPT. `tokenizer` is `char`, `gpt2` or `bpe:SIZE`; a BPE learns from the training characters alone, evenly
    thinned to `TRAINING_CHARACTERS`. Files are read `chunk` bytes at a time, twice, and thrice for a BPE that is
    trained. Raises `UserError` where a file cannot be read or is not UTF-8, or there is too little text.
    """
    size = _bpe_size(tokenizer)
    _require_fraction(val_fraction)
    _require_regular_files(sources)
    length, characters = _census(_read(sources, chunk, "reading"))
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
        parts = _split(_read(sources, TRAINING_PIECE, "learning the tokenizer"), n_train)
        training = recut((text for split, text in parts if split == "train"), word_cut, TRAINING_PIECE)
        made: Tokenizer = BPETokenizer.train(itertools.islice(training, 0, None, stride), size)
    else:
        made = CharTokenizer(characters) if tokenizer == "char" else GPT2Tokenizer(assets.gpt2_ranks())

    def pieces() -> Iterator[tuple[Split, str]]:
        found = 0
        parts = _split(_read(sources, chunk, "encoding"), n_train)
        for split, group in itertools.groupby(parts, key=lambda part: part[0]):
            for piece in recut((text for _, text in group), made.cut):
                found += len(piece)
                yield split, piece
        if found != length:
            raise UserError(f"{names}: {found:,} characters where there were {length:,} just now; try again")

    def encode(piece: tuple[Split, str]) -> tuple[Split, TokenIds]:
        return piece[0], made.encode_ordinary(piece[1])

    meta = _write(folder, made, _in_order(encode, pieces()))
    return Summary(folder, "characters", length, meta)


@_plain_os_errors("preparing documents")
def prepare_documents(
    documents: Iterable[str], folder: Path, tokenizer: str = "gpt2", val_fraction: float = 0.0005, seed: int = 2357
) -> Summary:
    """Make `folder` a data set of documents, each followed by the end-of-text token.

    Whether a document is for validation depends on `seed` and its index alone, see `is_validation`. `tokenizer` is
    `gpt2` or `bpe:SIZE`; for the latter the documents are gone through twice, the first time until
    `TRAINING_CHARACTERS` have been learned from. Raises `UserError` where either split would be empty.
    """
    size = _bpe_size(tokenizer)
    _require_fraction(val_fraction)
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
        with _progress("encoding documents", None) as advance:
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

    meta = _write(folder, made, parts())
    return Summary(folder, "documents", count, meta)


@dataclass(frozen=True)
class Documents:
    """Documents out of local files, or OpenWebText's from the datasets library if `paths` is empty; the first `limit`.

    Each row's `text` in a .parquet or .jsonl file is a document, and so is a .txt file as a whole: a single
    document is held in memory. All can be gone through again and again. Raises `UserError` where a file can't be read.
    """

    paths: tuple[Path, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        with _plain_os_errors("looking for documents"):
            _require_regular_files(self.paths)
        for path in self.paths:
            if path.suffix not in _READERS:
                raise UserError(f"{path} is none of {', '.join(sorted(_READERS))}; rename or convert it")

    def __iter__(self) -> Iterator[str]:
        each = (_READERS[path.suffix](path) for path in self.paths) if self.paths else [_openwebtext()]
        return itertools.islice(itertools.chain.from_iterable(each), self.limit)


def _openwebtext() -> Iterator[str]:
    """OpenWebText (Gokaslan and Cohen, 2019), streamed."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            "no FILE is named and the datasets library, which would fetch OpenWebText, is not installed; "
            "run pip install -e '.[datasets]', or name local .parquet, .jsonl or .txt files"
        ) from None
    # The branch that the hub converted: the main one has long been a script, which datasets 4 and later do not run.
    try:
        rows = load_dataset("Skylion007/openwebtext", revision="refs/convert/parquet", split="train", streaming=True)
        for row in rows:
            yield row["text"]
    except Exception as error:  # the library raises whatever lies below it
        raise UserError(f"OpenWebText can't be fetched ({_in_short(error)}); name local files instead") from error


def _parquet_texts(path: Path) -> Iterator[str]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{path} needs pyarrow, which is not installed; run pip install -e '.[datasets]'") from None
    try:
        with pq.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise UserError(f"{path} has no column `text`; it has {shown(file.schema_arrow.names)}")
            kind = file.schema_arrow.field("text").type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(f"{path} has a column `text` of {kind} where strings belong; convert it")
            for batch in file.iter_batches(batch_size=256, columns=["text"]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as parquet ({_in_short(error)}); fetch it again") from error


def _jsonl_texts(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                match json.loads(line.decode()):
                    case {"text": str(text)}:
                        yield text
                    case _:
                        raise ValueError("there is none")
            except (ValueError, RecursionError) as error:
                reason = _in_short(error)
                raise UserError(
                    f"{path} line {number:,} is not a JSON object with a string `text` ({reason}); mend it"
                ) from None


def _txt_text(path: Path) -> Iterator[str]:
    yield "".join(_read([path], CHUNK, str(path)))


_READERS = {".parquet": _parquet_texts, ".jsonl": _jsonl_texts, ".txt": _txt_text}


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


@_plain_os_errors("preparing Tiny Shakespeare")
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
        raise refuse(f"is not JSON ({_in_short(error)})") from None
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
    return Meta(**{name: document[name] for name in Meta.__dataclass_fields__})


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


def _read(paths: Sequence[Path], chunk: int, label: str) -> Iterator[str]:
    """The text of UTF-8 files, one after the other, `chunk` bytes at a time; other bytes are named by their place."""
    with _progress(label, sum(os.path.getsize(path) for path in paths)) as advance:
        for path in paths:
            decoder, position, data = codecs.getincrementaldecoder("utf-8")(), 0, b"."
            with open(path, "rb") as file:
                while data:
                    data = file.read(chunk)
                    try:
                        text = decoder.decode(data, final=not data)
                    except UnicodeDecodeError as error:  # its object is what was left over, and `data`
                        start = position + len(data) - len(error.object) + error.start
                        raise UserError(
                            f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {start:,}; "
                            "convert it first, for example with iconv"
                        ) from None
                    position += len(data)
                    advance(len(data))
                    if text:
                        yield text


def _write(folder: Path, tokenizer: Tokenizer, parts: Iterable[tuple[Split, TokenIds]]) -> Meta:
    """Write a data set. Until all of it lies on the disk whole, the one that was there stays as it is."""
    is_new = not folder.exists()
    tokens = {"train": 0, "val": 0}
    try:
        with contextlib.ExitStack() as stack:
            # They get their names in the reverse order, the seal last.
            names = ("meta.json", "val.bin", "train.bin")
            files = {name: stack.enter_context(replace_when_whole(folder / name)) for name in names}
            for split, ids in parts:
                files[f"{split}.bin"].write(ids.astype("<u2").tobytes())
                tokens[split] += len(ids)
            meta = Meta(tokenizer.vocab_size, "uint16", tokens["train"], tokens["val"], tokenizer.to_json())
            files["meta.json"].write(json.dumps(asdict(meta), indent=2, ensure_ascii=False).encode() + b"\n")
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
            (folder / "meta.json").unlink(missing_ok=True)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return meta


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


def _in_short(error: Exception) -> str:
    """An error as part of one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def _require_fraction(val_fraction: float) -> None:
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction={val_fraction} is not between 0 and 1; choose for example 0.1")


def _require_regular_files(paths: Iterable[Path]) -> None:
    """Refuse what cannot be read twice, such as a pipe."""
    for path in paths:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path} is a folder; name the files in it")
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is not a regular file and can't be read twice; save it to a file first")


def _command_for(folder: Path) -> str:
    """The command that prepares the data set which belongs in `folder`."""
    own_script = folder.name in (*KNOWN, "openwebtext")
    command = f"data/{folder.name}/prepare.py" if own_script else f"data/prepare.py FILE... --name={folder.name}"
    return f"python {command}" + ("" if folder.parent == Path("data") else f" --data_dir={folder.parent}")


@contextlib.contextmanager
def _progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, or a line now and then where that is no terminal; call what it gives with the steps done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(show_speed=True),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            yield functools.partial(bar.advance, bar.add_task(label, total=total))
        return
    done, due = 0, time.monotonic() + SECONDS_BETWEEN_LINES

    def advance(steps: int) -> None:
        nonlocal done, due
        done += steps
        if time.monotonic() >= due:
            due = time.monotonic() + SECONDS_BETWEEN_LINES
            print(f"{label}: {done / total:.0%}" if total else f"{label}: {done:,}", file=sys.stderr, flush=True)

    yield advance


# The command lines of data/*.py. `cli` is imported late: it is a command itself, and this module is used by others.


def main(argv: Sequence[str], data_dir: Path = Path("data")) -> int:
    """`python data/prepare.py FILE...`; 0, or a `UserError` for wrong use."""
    from nanogpt_jax.cli import Parser

    parser = Parser(
        "python data/prepare.py FILE... [--name=value ...]",
        "Make a data set of your own UTF-8 text: train.bin, val.bin and meta.json in DATA_DIR/NAME.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="text files, taken one after the other")
    parser.add_argument(
        "--tokenizer", metavar="WHICH", default="char", help="char, gpt2, or bpe:SIZE to train one on the text (char)"
    )
    parser.add_argument("--name", help="of the data set (the first file's name without its ending)")
    parser.add_argument("--data_dir", default=data_dir, type=Path, metavar="DIR", help="where data sets lie (data)")
    parser.add_argument("--val_fraction", default=0.1, type=float, metavar="X", help="the end, for validation (0.1)")
    given = parser.parse(argv)
    name = given.get("name", given["files"][0].stem)
    _require_name(name)
    return _report(
        prepare_text(given["files"], given["data_dir"] / name, given["tokenizer"], given["val_fraction"]), data_dir
    )


def main_known(name: str, argv: Sequence[str], data_dir: Path = Path("data")) -> int:
    """`python data/NAME/prepare.py` for the data sets in `KNOWN`; 0, or a `UserError` for wrong use."""
    from nanogpt_jax.cli import Parser

    about, _, _ = str(KNOWN[name].__doc__).partition(". ")
    parser = Parser(f"python data/{name}/prepare.py [--data_dir=DIR]", f"Prepare {about}.")
    parser.add_argument(
        "--data_dir", default=data_dir, type=Path, metavar="DIR", help=f"the data set goes to DIR/{name} (data)"
    )
    return _report(KNOWN[name](parser.parse(argv)["data_dir"] / name), data_dir)


def main_openwebtext(argv: Sequence[str], data_dir: Path = Path("data")) -> int:
    """`python data/openwebtext/prepare.py [FILE...]`; 0, or a `UserError` for wrong use."""
    from nanogpt_jax.cli import Parser

    parser = Parser(
        "python data/openwebtext/prepare.py [FILE...] [--name=value ...]",
        "Make a data set of documents, each followed by the end-of-text token: of local files, or of OpenWebText,\n"
        "which the datasets library fetches (pip install -e '.[datasets]'; some 40 GB of text).",
    )
    parser.add_argument(
        "files", nargs="*", metavar="FILE", type=Path, help="*.parquet or *.jsonl with a column `text`, or *.txt"
    )
    parser.add_argument(
        "--tokenizer", metavar="WHICH", default="gpt2", help="gpt2, or bpe:SIZE to train one on the documents (gpt2)"
    )
    parser.add_argument("--num_docs", default=None, type=int, metavar="N", help="take the first N documents (all)")
    parser.add_argument("--val_fraction", default=0.0005, type=float, metavar="X", help="for validation (0.0005)")
    parser.add_argument("--seed", default=2357, type=int, metavar="N", help="draws the validation documents (2357)")
    parser.add_argument("--data_dir", default=data_dir, type=Path, metavar="DIR", help="where data sets lie (data)")
    given = parser.parse(argv)
    if given["num_docs"] is not None and given["num_docs"] < 2:
        raise UserError(f"num_docs={given['num_docs']} is less than 2, one for each split; give more")
    documents = Documents(tuple(given["files"]), given["num_docs"])
    folder = given["data_dir"] / "openwebtext"
    return _report(
        prepare_documents(documents, folder, given["tokenizer"], given["val_fraction"], given["seed"]), data_dir
    )


def _report(summary: Summary, data_dir: Path) -> int:
    where = "" if summary.folder.parent == data_dir else f" --data_dir={summary.folder.parent}"
    print(f"{summary}\ntrain on it with: python train.py --dataset={summary.folder.name}{where}")
    return 0


def _require_name(name: str) -> None:
    """Refuse a name that would not be a folder of its own inside the data folder."""
    if not name.strip(".") or not name.isprintable() or any(mark in name for mark in "/\\"):
        raise UserError(f"name={name!r} can't be the name of a folder; choose one with --name=NAME, without / or \\")
