"""The rules that say which axis of an array lies on which axis of the mesh of devices.

A mesh has three axes. Batches are split over ``data`` and ``fsdp``. Parameters and the optimizer's moments are split
over ``fsdp`` as well, and gathered where they are used (ZeRO: Rajbhandari et al., 2020), and over ``tensor`` each block
is split by heads and by hidden units (Megatron: Shoeybi et al., 2019). The rules go by a parameter's name; XLA derives
the rest of the program and all communication from them. Without a mesh, on one device, every function here leaves its
array alone, and the program is that of one device.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray

from nanogpt_jax.core import ops
from nanogpt_jax.core.both_ways import both_ways
from nanogpt_jax.core.lora import A, B
from nanogpt_jax.core.own_draws import own_key

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""The axes of the mesh that rows of a batch, and all that is computed of them, are split over."""

# Which axis of a matrix is split over `tensor`. Columns of c_attn are queries, keys and values side by side, so that no
# run of columns is what one device needs: it is stored by rows, and dealt out by heads where it is used.
_TENSOR_AXIS = {"c_attn": 1, "c_fc": 1, "c_gate": 1, "c_proj": 0, "wte": 0, "lm_head": 1}


def state_shardings(mesh: Mesh | AbstractMesh, state: Any) -> Any:
    """Where every array of a tree of parameters, or of a `TrainState`, is stored.

    The optimizer's moments have the paths of their parameters inside their own, and so lie as those do.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        if names[-1] in (A, B):  # thin, and whole everywhere
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, stored_spec(names[-2] if len(names) > 1 else "", leaf.shape, mesh.shape))

    return jax.tree_util.tree_map_with_path(place, state)


def placed(mesh: Mesh | None, state: Any) -> Any:
    """A tree of abstract arrays that know where on the mesh they lie; without a mesh, as they are."""
    if mesh is None:
        return state
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        state_shardings(mesh, state),
    )


def use(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Compile what is called in the block for the mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def use_none() -> contextlib.AbstractContextManager[Any]:
    """Compile what is called in the block for one device, whatever mesh is in force around it."""
    return jax.set_mesh(Mesh(np.empty((), object), ()))


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Where a batch (..., B, T) lies: its rows B over `data` and `fsdp`, micro-batches before them on every device."""
    return NamedSharding(mesh, P(*[None] * (ndim - 2), ROWS, None))


def stored_spec(layer: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    """How a parameter of `layer` is stored on a mesh of `sizes`: devices along an axis, by its name.

    Vectors are whole on every device: they are next to nothing, and gathering each would cost more than it saves.
    """
    if len(shape) < 2:
        return P()
    if layer == "c_attn":
        return P(("fsdp", "tensor"), None)
    spec = list(used_spec(layer, shape, sizes))
    left = [axis for axis, name in enumerate(spec) if name is None and shape[axis] % sizes["fsdp"] == 0]
    if left:
        spec[max(left, key=lambda axis: shape[axis])] = "fsdp"
    return P(*spec)


def used_spec(layer: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    """How a matrix of `layer` lies when it is multiplied with: whole along `fsdp`, split over `tensor` alone."""
    axis = _TENSOR_AXIS.get(layer)
    if axis is None or shape[axis] % sizes["tensor"]:
        return P(None, None)
    return P(*("tensor" if i == axis else None for i in range(2)))


def gathered(x: Float[Array, "*K M"], layer: str, heads: tuple[int, int] | None = None) -> Float[Array, "*K M"]:
    """A parameter of `layer` as it is used; the gradient is brought back to where the parameter is stored.

    `heads` are the numbers of query heads and of key heads of a ``c_attn``.
    """
    sizes = _current_mesh()
    if sizes is None:
        return x
    if x.ndim < 2:
        x = _constrained(x, P())
        return _constrained(dealt_out(x, *heads), P()) if heads else x
    stored, used = stored_spec(layer, x.shape, sizes), used_spec(layer, x.shape, sizes)
    if heads:
        x = _constrained(dealt_out(_constrained(x, stored), *heads), stored)  # dealt out, and put together, where whole
        stored = P("fsdp", "tensor")
    x = _moved(_constrained(x, stored), used, stored)
    # Rows are added to the table's gradient one by one; XLA cannot bring them to a share of both axes in one go.
    return _constrained(x, used) if layer == "wte" and sizes["tensor"] > 1 else x


def split_heads(
    qkv: Float[Array, "N QKV"], batch: int, heads: int, key_heads: int
) -> tuple[Float[Array, "{batch} {heads} T D"], Float[Array, "{batch} K T D"], Float[Array, "{batch} K T D"]]:
    """`ops.split_heads` of columns in the order that a gathered ``c_attn`` gives them: by device, then q, k and v.

    K is `key_heads`, or the least multiple of them that can be dealt out to the devices.
    """
    groups = _head_groups()
    if groups == 1:
        return ops.split_heads(qkv, batch, heads, key_heads)
    own = batch, heads // groups, math.lcm(groups, key_heads) // groups
    split = jax.vmap(lambda columns: ops.split_heads(columns, *own), in_axes=1, out_axes=1)
    q, k, v = (x.reshape(batch, -1, *x.shape[3:]) for x in split(qkv.reshape(len(qkv), groups, -1)))
    return q, k, v


def dealt_out(qkv: Float[Array, "*K QKV"], heads: int, key_heads: int) -> Float[Array, "*K QKV2"]:
    """Columns of queries, keys and values in another order: those of one device's heads side by side.

    A key head whose queries lie on several devices is there for each of them.
    """
    groups = _head_groups()
    if groups == 1:
        return qkv
    lead = qkv.shape[:-1]
    columns = qkv.reshape(*lead, heads + 2 * key_heads, -1)
    q, k, v = jnp.split(columns, [heads, heads + key_heads], axis=-2)
    k, v = (jnp.repeat(x, math.lcm(groups, key_heads) // key_heads, axis=-2) for x in (k, v))
    return jnp.concatenate([x.reshape(*lead, groups, -1) for x in (q, k, v)], axis=-1).reshape(*lead, -1)


def _head_groups() -> int:
    """Over how many devices the heads are split."""
    sizes = _current_mesh()
    return 1 if sizes is None else sizes["tensor"]


def split_by_rows(x: Float[Array, "N C"]) -> Float[Array, "N C"]:
    """Activations, said to be split by rows alone: what a block reads from and writes to."""
    return x if _current_mesh() is None else _constrained(x, P(ROWS, *[None] * (x.ndim - 1)))


def _constrained(x: Array, spec: P) -> Array:
    """`x`, laid out as `spec` says on the mesh of the program being compiled."""
    return jax.lax.with_sharding_constraint(x, _left(spec))


def on_own_heads(function: Callable[..., Array]) -> Callable[..., Array]:
    """A `function` of arrays (B, H, ...) that knows each row and head alone, made to run on each device's own.

    For kernels that XLA cannot split by itself.
    """
    if _current_mesh() is None:
        return function
    spec = _left(P(ROWS, "tensor"))
    return lambda *arrays: jax.shard_map(
        function, in_specs=(spec,) * len(arrays), out_specs=spec, axis_names=set(_left_axes(AXES)), check_vma=False
    )(*arrays)


def sum_over_rows(function: Callable[..., Array]) -> Callable[..., Array]:
    """A `function` (x, table, targets, weights) that sums over rows, made to sum over each device's own rows first.

    So that what it accumulates in a loop, a gradient of the table, goes between devices once and not at every turn.
    """
    sizes = _current_mesh()
    axes = _left_axes(ROWS)
    if sizes is None or math.prod(sizes[axis] for axis in axes) == 1:
        return function
    by_rows = jax.shard_map(
        lambda *arrays: function(*arrays)[None],
        in_specs=(P(axes), P(), P(axes), P(axes)),
        out_specs=P(axes),
        axis_names=set(axes),
        check_vma=False,
    )
    return lambda *arrays: by_rows(*arrays).sum()


def sum_along_data(function: Callable[[PRNGKeyArray, Any, Any], Any]) -> Callable[[PRNGKeyArray, Any, Any], Any]:
    """A `function` (key, whole, batches) that gives sums over rows, made to add them up along ``data`` at its end.

    So that the gradients of micro-batches go along ``data`` once an update. `whole` is a tree of arrays that are alike
    everywhere along ``data``, `batches` one of arrays (A, B, ...), of which each has its own rows B. The rest of the
    mesh is left to XLA as it is without this: along ``fsdp`` a gradient goes to its shares in each micro-batch, since
    no device is to hold all of it.
    """
    sizes = _current_mesh()
    if sizes is None or sizes["data"] == 1:
        return function

    def own(key: PRNGKeyArray, whole: Any, batches: Any) -> Any:
        sums = function(own_key(key, jax.lax.axis_index("data")), whole, batches)
        return jax.tree.map(lambda x: x[None], sums)

    in_specs = P(), P(), P(None, "data")
    by_data = jax.shard_map(own, in_specs=in_specs, out_specs=P("data"), axis_names={"data"}, check_vma=False)
    return lambda *given: jax.tree.map(lambda x: x.sum(axis=0), by_data(*given))


def _left(spec: P) -> P:
    """`spec` along the axes that are XLA's to split: the program around may have split the others itself."""
    parts = ((part,) if isinstance(part, str) else part or () for part in spec)
    return P(*(_left_axes(part) or None for part in parts))


def _left_axes(axes: Sequence[str]) -> tuple[str, ...]:
    taken = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(axis for axis in axes if axis not in taken)


def _current_mesh() -> Mapping[str, int] | None:
    """Axis sizes of the mesh that the program is being compiled for, or None for one device.

    On a mesh of another kind, as many runs have it (`many.py`), each device's program is that of one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape if mesh.axis_names == AXES else None


@functools.partial(both_ways, nondiff_argnums=(1, 2))
def _moved(x: Array, to: P, back: P) -> Array:
    """`x` laid out as `to`, its gradient as `back`: a constraint's own gradient would lie as `to`, whole."""
    return _constrained(x, to)


_moved.defvjp(lambda x, to, back: (_constrained(x, to), None), lambda to, back, _, dx: (_constrained(dx, back),))
