"""A run that lies in a bucket, read: which of its checkpoints are whole, and their files fetched to this machine.

The objects have the names that the files of a run's folder have. A checkpoint is there when its ``files/sums.json``
is, which is put last and taken away first: it holds the sums of all its other files.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.addresses import fetched_for
from nanogpt_jax.data.bucket import Bucket, fetched_once
from nanogpt_jax.data.files import is_dir, is_file, names_in, refusals, temporary_folder
from nanogpt_jax.weights.checkpoint import FOLDER, damage_in
from nanogpt_jax.weights.checkpoint_files import FILES, RUN, SUMS

_ITEMS = ("params", "rest")


def marker_of(step: int) -> str:
    """The name of the object with which a checkpoint is there."""
    return f"{folder_of(step)}{FILES}/{SUMS}"


def folder_of(step: int) -> str:
    """What the names of a checkpoint's objects begin with."""
    return f"{FOLDER}/{step}/"


def whole_steps(names: Iterable[str]) -> list[int]:
    """The checkpoints that are there whole, of a bucket that holds objects of these names."""
    parts = (name.split("/") for name in names if name.startswith(f"{FOLDER}/") and name.endswith(f"/{FILES}/{SUMS}"))
    return sorted(int(step) for _, step, *rest in parts if step.isascii() and step.isdigit() and len(rest) == 2)


def fetched_checkpoint(address: str, which: str) -> Path:
    """A run's folder with the checkpoint of it that `which` (best or last) means, in the cache of this machine.

    A damaged one is reported, and another taken. Copies of what is not in the bucket any more are removed. Raises
    `UserError` if there is none, or it cannot be had.
    """
    bucket, place = Bucket(address), fetched_for(address, "checkpoints")
    with refusals(address, "read"):
        found = bucket.objects(FOLDER)
        steps = whole_steps(found)
        require_checkpoint(address, steps)
        sums = {step: bucket.read(marker_of(step)) for step in steps}
        order = sorted(steps, reverse=True)
        if which == "best":
            losses = {step: _val_loss(bucket.read(f"{folder_of(step)}{FILES}/{RUN}")) for step in steps}
            order.sort(key=losses.__getitem__)  # which leaves the later one first where two have the same
    copies = {step: f"{step}-{zlib.crc32(data):08x}" for step, data in sums.items()}
    for step in order:
        objects = {name: each for name, each in found.items() if name.startswith(folder_of(step))}
        folder = fetched_once(bucket, objects, place / copies[step], kept={*copies.values()})
        damage = damage_in(folder / FOLDER / str(step), _ITEMS)
        if damage is None:
            return folder
        shutil.rmtree(folder, ignore_errors=True)  # perhaps it was damaged on the way
        print(
            f"warning: {address}, checkpoint {step} is damaged ({damage}); taking another", file=sys.stderr, flush=True
        )
    raise UserError(f"{address} holds no checkpoint that is whole; train again, or name another folder")


def require_checkpoint(address: str, steps: Collection[int]) -> None:
    """Raise `UserError` where a run in a bucket has no checkpoint that is whole."""
    if not steps:
        raise UserError(f"{address} holds no finished checkpoint; train one there, or name another folder")


def fetch_checkpoints(bucket: Bucket, names: Collection[str], folder: Path) -> None:
    """Make the checkpoints in the run's `folder` those of the bucket, which holds objects of these names.

    Others are removed, as those that never came to the bucket; what is the same is not fetched again. Raises `OSError`
    where that is refused.
    """
    steps, here = whole_steps(names), folder / FOLDER
    here.mkdir(exist_ok=True)
    for name in names_in(here):
        if name not in map(str, steps):
            remove(here / name)
    for step in steps:
        marker = folder / marker_of(step)
        is_same = is_file(marker) and marker.read_bytes() == bucket.read(marker_of(step))
        if is_same and damage_in(here / str(step), _ITEMS) is None:
            continue
        remove(here / str(step))
        with temporary_folder(beside=here / str(step)) as partial:
            bucket.download([name for name in names if name.startswith(folder_of(step))], partial)
            (partial / folder_of(step)).rename(here / str(step))


def remove(path: Path) -> None:
    """Remove a file or a folder of the cache, if it is there."""
    if is_dir(path) and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _val_loss(document: bytes) -> float:
    try:
        loss = json.loads(document).get("val_loss")
    except (ValueError, AttributeError):  # damaged, which is found when it is read
        loss = None
    return float("inf") if loss is None else float(loss)
