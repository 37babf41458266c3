"""`metrics.jsonl` of a run in a bucket, where no object can grow: parts that make the file when joined."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.addresses import fetched_for, is_address
from nanogpt_jax.data.bucket import Bucket
from nanogpt_jax.data.files import refusals, replace_when_whole, temporary_folder
from nanogpt_jax.run.recipe import CONFIG_FILE
from nanogpt_jax.run.sinks import METRICS_FILE

_FOLDER = "metrics"


def part(number: int) -> str:
    """The name of a part, of which the first has the number 0."""
    return f"{_FOLDER}/{number:06}.jsonl"


def parts_in(names: Collection[str]) -> list[str]:
    """The parts among the objects of these names, in their order: from the first on, as far as none is missing."""
    there, found = set(names), list[str]()
    while (following := part(len(found))) in there:
        found.append(following)
    return found


def fetched_parts(bucket: Bucket, names: Collection[str]) -> list[bytes]:
    """What the metrics file is, in its parts, in a bucket with objects of these names. Raises `OSError`."""
    with temporary_folder() as folder:
        bucket.download(parts_in(names), folder)
        return [(folder / name).read_bytes() for name in parts_in(names)]


def curves_at_hand(place: str) -> Path:
    """A folder with the metrics and settings of the run in `place`: itself, or what is fetched for it from a bucket.

    Raises `UserError` if there are none, or they cannot be had.
    """
    if not is_address(place):
        return Path(place)
    bucket = Bucket(place)
    folder = fetched_for(place, "curves") / bucket.address.rpartition("/")[2]
    with refusals(place, "read"):
        names = list(bucket.objects())
        if not parts_in(names):
            raise UserError(f"{place} holds no {METRICS_FILE} (there is no {part(0)}); name the folder of a run")
        with replace_when_whole(folder / METRICS_FILE) as file:
            file.writelines(fetched_parts(bucket, names))
        with replace_when_whole(folder / CONFIG_FILE) as file:
            file.write(bucket.read(CONFIG_FILE) if CONFIG_FILE in names else b"")
    return folder
