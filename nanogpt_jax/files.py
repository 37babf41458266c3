"""Files that appear whole or not at all.

Everything this project writes to disk, apart from Orbax's own checkpoints and append-only logs, goes through
`replace_when_whole`: a reader never sees half a file, and a failed write leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replace_when_whole(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO]:
    """Open a temporary neighbour of `path` for writing and rename it to `path` once the block ends without an error.

    The bytes are flushed to the disk before the rename, so that a power cut leaves either the old file or the new
    one. On an error the neighbour is removed and `path` is untouched. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, neighbour = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    encoding = None if "b" in mode else "utf-8"
    try:
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(neighbour, 0o666 & ~_umask())  # mkstemp makes files private; give them the usual rights
        os.replace(neighbour, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(neighbour)
        raise


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
