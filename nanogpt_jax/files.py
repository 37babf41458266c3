"""Files that appear whole or not at all.

Everything this project writes to disk, apart from Orbax's own checkpoints and append-only logs, goes through
`replace_when_whole`: a reader never sees half a file, and a failed write leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nanogpt_jax.process import undone_by_signals


@contextlib.contextmanager
def replace_when_whole(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO]:
    """Open a temporary neighbour of `path` for writing and rename it to `path` once the block ends without an error.

    The bytes are flushed to the disk before the rename, so that a power cut leaves either the old file or the new
    one. On an error or a signal the neighbour is removed and `path` is untouched. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    encoding = None if "b" in mode else "utf-8"
    with undone_by_signals(lambda: neighbour.unlink(missing_ok=True)):
        try:
            with open(neighbour, mode.replace("w", "x"), encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(neighbour, path)
        except BaseException:
            neighbour.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """A folder that is gone after the block, or once a signal ends the process: a neighbour of `beside`, or in /tmp."""
    where = {} if beside is None else {"dir": beside.parent, "prefix": f".{beside.name}.", "suffix": ".part"}
    with tempfile.TemporaryDirectory(**where) as name, undone_by_signals(lambda: shutil.rmtree(name)):
        yield Path(name)
