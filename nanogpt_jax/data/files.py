"""Files that appear whole or not at all, and what the system says where it refuses one.

Everything this project writes to disk, apart from Orbax's own checkpoints and append-only logs, goes through
`replace_when_whole`: a reader never sees half a file, and a failed write leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.process import undone_by_signals


@contextlib.contextmanager
def replace_when_whole(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path` for writing and rename it to `path` once the block ends without an error.

    The bytes are flushed to the disk before the rename, so that a power cut leaves either the old file or the new
    one. On an error or a signal the neighbour is removed and `path` is untouched. Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.parent / f".{path.name[:40]}.{secrets.token_hex(4)}.part"
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
    where = (None, None, None) if beside is None else (".part", f".{beside.name[:40]}.", beside.parent)
    with tempfile.TemporaryDirectory(*where) as name, undone_by_signals(lambda: shutil.rmtree(name)):
        yield Path(name)


def cache_folder() -> Path:
    """Where what can be had again is kept for later: `nanogpt_jax` in `$XDG_CACHE_HOME`, or else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanogpt_jax"


def refused(what: object, error: OSError, doing: str) -> UserError:
    """What the system's refusal of a path means to a user: each cause in its own words, and the mend of it.

    `what` names the path, `doing` is what could not be done with it, as in "read".
    """
    mend = MENDS.get(error.errno, "name another")
    return UserError(f"{what} cannot be {doing} ({error.strerror or error}); {mend}")


_DENIED, _NO_ROOM = "get the permission for it, or name another", "make room, or name a place on another disk"
MENDS: dict[int | None, str] = {  # an `OSError` may have no number
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: _NO_ROOM,
    errno.EROFS: "name a place that can be written",
    errno.ENAMETOOLONG: "shorten it: file systems take names of 255 bytes",
    errno.ELOOP: "mend its links, which lead in a circle",
    errno.EISDIR: "it is a folder, name a file",
    errno.ENOTDIR: "a part of its path is a file, name another",
    errno.ENOENT: "check the name",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.EHOSTUNREACH: "check the network, and the credentials and address of the store in the environment",
    errno.ESTALE: "try again",
    errno.EIO: "see to the disk below it, or name another",
}
REFUSALS = frozenset(MENDS) - {errno.ENOENT, errno.EISDIR, errno.ENOTDIR}
"""What the system may refuse at any place; the other causes are looked for where a user's path is taken."""


def system_error(error: BaseException) -> OSError | None:
    """The operating system's refusal beneath an error of another library, which wraps it or quotes its number."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    for each in reversed(chain):
        if isinstance(each, OSError) and each.strerror:
            return each
        if quoted := re.search(r"os error (\d+)", str(each), re.IGNORECASE):
            return OSError(int(quoted[1]), os.strerror(int(quoted[1])))
    return None


def require_room(folder: Path, size: int, what: object) -> None:
    """Refuse to write `size` bytes of `what` to where less is free; `folder` need not be there yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if exists(path))
    free = shutil.disk_usage(there).free
    if size > free:
        raise UserError(
            f"{what} cannot be written: it takes {size / 1e6:,.1f} MB where {free / 1e6:,.1f} MB are free; {_NO_ROOM}"
        )


@contextlib.contextmanager
def refusals(what: object, doing: str) -> Iterator[None]:
    """Make `UserError` of what the system refuses in the block; see `refused`."""
    try:
        yield
    except OSError as error:
        raise refused(what, error, doing) from error


def is_file(path: Path) -> bool:
    """Whether a file lies there. Raises `UserError` where the system does not let us look, which is no absence."""
    return stat.S_ISREG(_mode(path))


def is_dir(path: Path) -> bool:
    """Whether a folder lies there; see `is_file`."""
    return stat.S_ISDIR(_mode(path))


def exists(path: Path) -> bool:
    """Whether anything lies there; see `is_file`."""
    return _mode(path) != 0


def names_in(folder: Path) -> list[str]:
    """The names of what lies in a folder, in order; none where there is no folder. See `is_file`."""
    if not is_dir(folder):
        return []
    with refusals(folder, "read"):
        return sorted(os.listdir(folder))


def require_permission(path: Path) -> None:
    """Refuse a file that other libraries would call damaged, or missing, when they are not let read it."""
    if exists(path):
        with refusals(path, "read"):
            os.close(os.open(path, os.O_RDONLY))


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a name that no file can have, as "\0"
        return 0
    except OSError as error:
        raise refused(path, error, "looked at") from error
