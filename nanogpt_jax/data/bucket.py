"""Folders in a bucket of S3 or Google Cloud Storage: their objects listed, read, put and taken away, by fsspec.

An object appears whole or not at all, and a listing shows what was put before it was asked for; both stores promise
that. Credentials and the store's address come from the environment, as s3fs and gcsfs read it (`AWS_ENDPOINT_URL`,
`STORAGE_EMULATOR_HOST`). What a store refuses is an `OSError` that names the address, as a disk's refusal names a path.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.data.addresses import fetched_for, is_address
from nanogpt_jax.data.commands import to_install
from nanogpt_jax.data.files import MENDS, is_dir, names_in, refusals, require_room, temporary_folder

_LARGE = 100_000_000  # bytes; who waits for them is told
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}


class Object(NamedTuple):
    """What a listing says of an object: its bytes, and what tells its content from any other it has had."""

    size: int
    tag: str


class Bucket:
    """The folder at an address; names of objects are relative to it, with slashes. Every method may raise `OSError`.

    Attributes:
        address: as the user gave it, without a slash at its end.
    """

    def __init__(self, address: str) -> None:
        """Open it, which asks nothing of the store. Raises `UserError` without a bucket's name, or the extra."""
        self.address = address.rstrip("/")
        scheme, _, self._path = self.address.partition("://")
        if not self._path or self._path.startswith("/"):
            raise UserError(f"{address} names no bucket; give {scheme}://BUCKET/FOLDER")
        package = _PACKAGES[scheme]
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{address} needs {package}, which is not installed; {to_install('bucket')}")
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks for each bucket's kind, and warns
        import fsspec

        for each in _PACKAGES.values():
            logging.getLogger(each).setLevel(logging.CRITICAL)  # what matters reaches us as an exception
        with self._refusals():
            self._store: Any = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)

    def objects(self, under: str = "") -> dict[str, Object]:
        """The objects whose names begin with the folder `under`, in the order of their names."""
        with self._refusals("there is no such bucket"):
            found = self._store.find(self._named(under), detail=True)
        first = len(self._path) + 1
        return {
            path[first:]: Object(int(each["size"]), str(each.get("ETag") or each.get("generation") or each["etag"]))
            for path, each in sorted(found.items())
            if each["type"] == "file" and path.startswith(f"{self._named(under)}/") and not path.endswith("/")
        }

    def read(self, name: str) -> bytes:
        """The content of an object."""
        with self._refusals(f"{name} is not there"):
            return bytes(self._store.cat_file(self._named(name)))

    def write(self, name: str, data: bytes) -> None:
        """Put an object, in the place of one that may be there."""
        with self._refusals("there is no such bucket"):
            self._store.pipe_file(self._named(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Put an object where there is none; whether there was none. Of several that try at once, one does."""
        with self._refusals("there is no such bucket"):
            try:
                self._store.pipe_file(self._named(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def upload(self, files: Mapping[str, Path]) -> None:
        """Put files, each as the object of its name, side by side and in no order."""
        with self._refusals("there is no such bucket"):
            self._store.put([str(path) for path in files.values()], [self._named(name) for name in files])

    def download(self, names: Collection[str], folder: Path) -> None:
        """Fetch objects to their own names in `folder`, side by side; half a file may be left where that fails."""
        paths = [folder / name for name in names]
        for parent in {path.parent for path in paths}:
            parent.mkdir(parents=True, exist_ok=True)
        with self._refusals("it changed meanwhile", errno.ESTALE):
            self._store.get([self._named(name) for name in names], [str(path) for path in paths])

    def delete(self, names: Collection[str]) -> None:
        """Take objects away, one after the other in the order given; what is gone already is no error."""
        for name in names:
            with self._refusals(), contextlib.suppress(FileNotFoundError):
                self._store.rm_file(self._named(name))

    def _named(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path

    @contextlib.contextmanager
    def _refusals(self, absent: str = "it is not there", number: int = errno.ENOENT) -> Iterator[None]:
        """Make `OSError` of what the store, or the library between, raises; refusals of the own disk are that."""
        try:
            yield
        except OSError as error:
            if error.errno in MENDS and error.strerror:
                raise
            if isinstance(error, FileNotFoundError):
                raise OSError(number, absent, self.address) from error
            cause = errno.EACCES if isinstance(error, PermissionError) else errno.EHOSTUNREACH
            raise OSError(cause, in_short(error), self.address) from error
        except Exception as error:  # botocore's, aiohttp's and google's: no credentials, no such host, no answer
            raise OSError(errno.EHOSTUNREACH, in_short(error), self.address) from error


def data_set_at(data_dir: str, name: str) -> Path:
    """The folder of the data set of that name: in `data_dir`, or in the cache where that is in a bucket."""
    return fetched_data_set(f"{data_dir.rstrip('/')}/{name}") if is_address(data_dir) else Path(data_dir) / name


def fetched_data_set(address: str) -> Path:
    """The data set at an address, in a folder of the cache: it is fetched where that has no copy, or another one.

    Copies of what lay there before are removed. Raises `UserError` if it cannot be had, or is none.
    """
    bucket, place = Bucket(address), fetched_for(address, "data")
    with refusals(address, "read"):
        there = bucket.objects().items()
    objects = {name: each for name, each in there if re.fullmatch(r"[^/]+\.bin|meta\.json", name)}
    if "meta.json" not in objects:
        raise UserError(f"{address} is not a prepared data set (no meta.json); prepare it in a folder, and copy that")
    content = hashlib.blake2b(repr(sorted(objects.items())).encode(), digest_size=8).hexdigest()
    return fetched_once(bucket, objects, place / content, kept={content})


def fetched_once(bucket: Bucket, objects: Mapping[str, Object], folder: Path, kept: Collection[str]) -> Path:
    """`folder` with these objects under their names, fetched if it is not there; it appears whole or not at all.

    Its neighbours but for those `kept` are removed. Raises `UserError` where that is refused.
    """
    if is_dir(folder):
        return folder
    size = sum(each.size for each in objects.values())
    require_room(folder, size, f"a copy of {bucket.address} in {folder.parent}")
    if size > _LARGE:
        print(f"fetching {size / 1e6:,.0f} MB from {bucket.address}", file=sys.stderr, flush=True)
    with refusals(bucket.address, "read"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(beside=folder) as partial:
            bucket.download(objects, partial / "whole")
            try:
                (partial / "whole").rename(folder)
            except OSError:
                if not is_dir(folder):  # else another process was faster
                    raise
    for name in names_in(folder.parent):
        if not name.startswith(".") and name not in kept and name != folder.name:
            shutil.rmtree(folder.parent / name, ignore_errors=True)
    return folder
