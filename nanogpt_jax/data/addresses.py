"""Folders in a bucket by their addresses, and the folders of this machine in which their files are worked on.

All that reads and writes files goes on with paths: a run whose `out_dir` is ``s3://BUCKET/FOLDER`` is written in a
folder of the cache, from which `run/publishing.py` puts it into the bucket. Here is nothing but names.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.files import cache_folder

SCHEMES = ("s3", "gs")


def is_address(place: object) -> bool:
    """Whether a user's name of a folder is one of a bucket."""
    return isinstance(place, str) and place.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def at_hand(place: str) -> Path:
    """The folder of this machine that stands for `place`: itself, or where a run in a bucket is written."""
    return _runs() / in_one_name(place) if is_address(place) else Path(place)


def address_of(place: object) -> object:
    """What a user calls `place`: the address for which it stands, or itself."""
    return unquote(place.name) if isinstance(place, Path) and place.parent == _runs() else place


def fetched_for(address: str, what: str) -> Path:
    """The folder of this machine for what is read from an address, by others than the run that writes there."""
    return cache_folder() / "buckets" / what / in_one_name(address)


def require_on_disk(name: str, place: str) -> str:
    """`place`, which was given under `name`. Raises `UserError` if it is in a bucket, where only runs are written."""
    if is_address(place):
        raise UserError(f"{name}={place} is in a bucket, where only runs are written; name a folder, and copy it there")
    return place


def in_one_name(address: str) -> str:
    """An address as the name of a folder; ``s3://b/run/`` and ``s3://b/run`` are one."""
    return quote(address.rstrip("/"), safe="")


def _runs() -> Path:
    return cache_folder() / "buckets" / "runs"
