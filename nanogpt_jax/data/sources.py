"""Text as it comes: UTF-8 files read piece by piece, and documents out of parquet, JSON lines, text files or a hub.

What the operating system or a file's contents refuse becomes a `UserError` of one line.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import importlib.util
import itertools
import json
import logging
import os
import shlex
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.data.commands import pasteable, to_install
from nanogpt_jax.data.files import MENDS, require_permission
from nanogpt_jax.data.tokenizer import shown

CHUNK = 1 << 18  # bytes read at a time
SECONDS_BETWEEN_LINES = 10  # of progress, where there is no terminal to draw a bar on
OPENWEBTEXT = "Skylion007/openwebtext"  # by Gokaslan and Cohen, 2019, at Hugging Face's hub
HUB_SECONDS = 10  # for an answer of the hub


@contextlib.contextmanager
def plain_os_errors(doing: str) -> Iterator[None]:
    """Turn what the operating system refuses into a `UserError` of one line."""
    mends = {**MENDS, errno.EISDIR: "name the files in it"}
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename or doing
        reason = error.strerror or in_short(error)
        raise UserError(f"{name}: {reason}; {mends.get(error.errno, 'nothing was prepared')}") from error


def read_text(paths: Sequence[Path], chunk: int, label: str) -> Iterator[str]:
    """The text of UTF-8 files, one after the other, `chunk` bytes at a time; other bytes are named by their place.

    A byte order mark at the beginning of a file is no text.
    """
    with progress(label, sum(os.path.getsize(path) for path in paths)) as advance:
        for path in paths:
            decoder, position, data = codecs.getincrementaldecoder("utf-8-sig")(), 0, b"."
            with open(path, "rb") as file:
                while data:
                    data = file.read(chunk)
                    try:
                        text = decoder.decode(data, final=not data)
                    except UnicodeDecodeError as error:  # its object is what was left over, and `data`
                        start = position + len(data) - len(error.object) + error.start
                        raise UserError(
                            f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {start:,}; "
                            f"{_conversion_of(path)}"
                        ) from None
                    position += len(data)
                    advance(len(data))
                    if text:
                        yield text


def _conversion_of(path: Path) -> str:
    """How to make UTF-8 of a file, as far as its first bytes say what it is."""
    with open(path, "rb") as file:
        begins = file.read(4)
    if begins[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return f"it is UTF-16, so convert it first: iconv -f UTF-16 -t UTF-8 {shlex.quote(str(path))} > utf8.txt"
    if begins == b"PAR1":
        return f"it is parquet; for its column `text`: {pasteable('prepare openwebtext', path)}"
    return "convert it first, for example with iconv"


@dataclass(frozen=True)
class Documents:
    """Documents out of local files, or OpenWebText's from the hub if `paths` is empty; the first `limit`.

    Each row's `text` in a .parquet or .jsonl file is a document, and so is a .txt file as a whole: a single
    document is held in memory. All can be gone through again and again. Raises `UserError` where a file can't be read.
    """

    paths: tuple[Path, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        with plain_os_errors("looking for documents"):
            require_regular_files(self.paths)
        for path in self.paths:
            if path.suffix not in _READERS:
                raise UserError(f"{path} is none of {', '.join(sorted(_READERS))}; rename or convert it")

    def __iter__(self) -> Iterator[str]:
        each = (_READERS[path.suffix](path) for path in self.paths) if self.paths else [_openwebtext()]
        return itertools.islice(itertools.chain.from_iterable(each), self.limit)


def _openwebtext() -> Iterator[str]:
    """OpenWebText: each file is fetched when it is its turn, into the cache of Hugging Face's hub, and read there."""
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # it has no __all__

    _require_pyarrow("OpenWebText")
    disable_progress_bars()  # they would draw over ours
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what a user must know reaches them as an exception
    with _told_of_the_hub():
        info, names = _parquet_files(huggingface_hub.HfApi(), "main")
        if not names:  # as it was before the authors did away with its script: the hub's own conversion
            info, names = _parquet_files(huggingface_hub.HfApi(), "refs/convert/parquet")
    if not names:
        raise UserError(f"{OPENWEBTEXT} has no parquet files of its whole any more; fetch it otherwise and name them")
    for number, name in enumerate(names, start=1):
        with _told_of_the_hub():
            print(f"OpenWebText: file {number} of {len(names)}, {name}", file=sys.stderr, flush=True)
            path = huggingface_hub.hf_hub_download(OPENWEBTEXT, name, repo_type="dataset", revision=info.sha)
        yield from _parquet_texts(Path(path))


def _parquet_files(hub: Any, revision: str) -> tuple[Any, list[str]]:
    """What the hub says of OpenWebText at `revision`, and the names of its files; none where it has a part alone."""
    info = hub.dataset_info(OPENWEBTEXT, revision=revision, timeout=HUB_SECONDS)
    names = sorted(file.rfilename for file in info.siblings if file.rfilename.endswith(".parquet"))
    return info, [] if any("partial-" in name for name in names) else [name for name in names if "train" in name]


@contextlib.contextmanager
def _told_of_the_hub() -> Iterator[None]:
    """Turn what the hub and the network below it raise into a `UserError`; a full disk stays what it is."""
    from huggingface_hub import constants

    try:
        yield
    except Exception as error:  # of many kinds; to a user they all mean the same
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise
        raise UserError(
            f"OpenWebText cannot be fetched from {constants.ENDPOINT} ({type(error).__name__}: {in_short(error)}); "
            "go online, or name local .parquet, .jsonl or .txt files"
        ) from error


def _require_pyarrow(what: object) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{what} needs pyarrow, which is not installed; run {to_install('datasets')}")


def _parquet_texts(path: Path) -> Iterator[str]:
    _require_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_permission(path)
    try:
        with pq.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise UserError(
                    f"{path} has no column `text`; rename the one of {shown(file.schema_arrow.names)} that holds it"
                )
            kind = file.schema_arrow.field("text").type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(f"{path} has a column `text` of {kind} where strings belong; convert it")
            for batch in file.iter_batches(batch_size=256, columns=["text"]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as parquet ({in_short(error)}); fetch it again") from error


def json_of_line(line: bytes, number: int) -> Any:
    """What line `number` of a file, counted from 1, holds. Raises `ValueError` or `RecursionError` if it is no JSON."""
    return json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))


def _jsonl_texts(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                match json_of_line(line, number):
                    case {"text": str(text)}:
                        yield text
                    case _:
                        raise ValueError("there is none")
            except (ValueError, RecursionError) as error:
                reason = in_short(error)
                raise UserError(
                    f"{path} line {number:,} is not a JSON object with a string `text` ({reason}); mend it"
                ) from None


def _txt_text(path: Path) -> Iterator[str]:
    yield "".join(read_text([path], CHUNK, str(path)))


_READERS = {".parquet": _parquet_texts, ".jsonl": _jsonl_texts, ".txt": _txt_text}


def require_regular_files(paths: Iterable[Path]) -> None:
    """Refuse what cannot be read twice, such as a pipe."""
    for path in paths:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path} is a folder; name the files in it")
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is not a regular file and can't be read twice; save it to a file first")


@contextlib.contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
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
