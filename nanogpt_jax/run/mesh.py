"""The mesh that a run asks for, as `--mesh=data:2,fsdp:4` names it, and whether the run's sizes fit it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import AxisType, Mesh

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.sharding import AXES, ROWS


class MeshShape(NamedTuple):
    """How many devices lie along each axis of the mesh."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __str__(self) -> str:
        return ",".join(f"{name}:{size}" for name, size in zip(AXES, self, strict=True) if size > 1) or "data:1"


def mesh_shape(requested: str, devices: int) -> MeshShape:
    """The shape that ``data:2,fsdp:2,tensor:2`` asks for, or all `devices` along ``data`` for ``auto``.

    Raises `UserError` if `requested` says anything else, or its product is not the number of devices.
    """
    if requested == "auto":
        return MeshShape(data=devices)
    sizes: dict[str, int] = {}
    for part in requested.split(","):
        name, _, size = part.strip().partition(":")
        if name not in AXES or name in sizes or not (size.isascii() and size.isdigit() and 0 < int(size) < 10**6):
            raise UserError(
                f"mesh={requested} has the part {part.strip()!r}; give each of {', '.join(AXES)} at most once with the "
                "number of devices along it, as in data:2,fsdp:4"
            )
        sizes[name] = int(size)
    shape = MeshShape(**sizes)
    if math.prod(shape) != devices:
        raise UserError(
            f"mesh={requested} is of {math.prod(shape)} devices where there are {devices}; choose sizes whose product "
            f"is {devices}"
        )
    return shape


def require_fit(shape: MeshShape, settings: Settings) -> None:
    """Raise `UserError` if the mesh does not divide the batch, the heads or the width."""
    rows = shape.data * shape.fsdp
    sequences = settings.batch_size * settings.gradient_accumulation_steps
    if settings.batch_size % rows and sequences % rows == 0:
        raise UserError(
            f"batch_size={settings.batch_size} cannot be split over the {rows} devices along data and fsdp of "
            f"mesh={shape}; choose batch_size={rows} with gradient_accumulation_steps={sequences // rows}, as much"
        )
    for name, what, along in (
        ("batch_size", rows, "data and fsdp"),
        ("n_head", shape.tensor, "tensor"),
        ("n_embd", shape.fsdp * shape.tensor, "fsdp and tensor"),
    ):
        size = getattr(settings, name)
        if size % what:
            raise UserError(
                f"{name}={size} cannot be split over the {what} devices along {along} of mesh={shape}; choose a "
                f"multiple of {what}, or another mesh"
            )


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh, with neighbours along `tensor`, then along `fsdp`, close to each other in the machine."""
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def rounded_up(rows: int, mesh: Mesh | None) -> int:
    """The least number of rows, from `rows` on, that the mesh divides."""
    devices = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in ROWS)
    return -(-rows // devices) * devices
