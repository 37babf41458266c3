"""The base that a run's delta belongs to: named in its checkpoints and told from others by a digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.train_step import Params
from nanogpt_jax.data.addresses import is_address
from nanogpt_jax.data.files import exists
from nanogpt_jax.weights.checkpoint_files import named
from nanogpt_jax.weights.hub import hub_name


def described(source: str, which: str, params: Params) -> dict[str, Any]:
    """What a checkpoint says of its base: where it lies, which weights of a run are meant, and the digest of all."""
    where = source if is_address(source) or hub_name(source) is not None else str(Path(source).absolute())
    return {"source": where, "which": which, "digest": digest_of(params)}


def digest_of(params: Params) -> str:
    """A hash of the names, shapes and numbers of parameters: the same wherever they lie, and in whatever files."""
    made = hashlib.blake2b(digest_size=16)
    for name, array in sorted(named(params).items()):
        made.update(f"{name} {array.dtype} {array.shape} ".encode())
        made.update(np.ascontiguousarray(_whole(array)).data)
    return made.hexdigest()


def _whole(array: Any) -> np.ndarray:
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def require_same(base: dict[str, Any], params: Params, run: object) -> None:
    """Raise `UserError` if `params`, found at the place that `base` names, are not those that `run` was tuned on."""
    found = digest_of(params)
    if found != base["digest"]:
        raise UserError(
            f"{run} was tuned on weights with the digest {base['digest']}, and those in {base['source']} have {found}; "
            "put the ones back that it belongs to"
        )


def place_of(base: dict[str, Any], run: object) -> str:
    """Where the base lies that the checkpoint of `run` names. Raises `UserError` if it is not there."""
    source = str(base["source"])
    if not is_address(source) and hub_name(source) is None and not exists(Path(source)):
        raise UserError(f"{run} holds a delta to the weights in {source}, which are not there; put them back")
    return source
