"""Many runs as one program: the training step and the evaluation of `train_step.py`, mapped over runs.

A run is its state, its batches and its numbers. Stacked, each with a leading axis R, they are R runs, and ``vmap`` of
the one update is an update of all. No run reads another's arrays, so that on several devices each has its share of the
runs, and nothing goes between them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.ops import AnyArray
from nanogpt_jax.core.optimizer import Hyperparameters, make_optimizer
from nanogpt_jax.core.switches import as_promised
from nanogpt_jax.core.train_step import AnyBatch, Metrics, Params, TrainState, updated, weighted_sum

RUNS = "runs"
"""The one axis of a mesh that runs are dealt out over."""


def runs_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """Where arrays with a leading axis of runs lie."""
    return None if mesh is None else NamedSharding(mesh, P(RUNS))


def make_many_step(
    model: nn.Module, settings: Settings, *, mesh: Mesh | None = None, in_turn: bool = False
) -> Callable[[TrainState, AnyBatch, Hyperparameters], tuple[TrainState, Metrics]]:
    """The jitted ``many_step(states, batches, numbers) -> (states, metrics)``, which donates the states.

    Every array has a leading axis of runs. Of `settings` it reads what they have in common: which optimizer, of what
    shape, whether there is dropout and clipping.

    On a `mesh` each device has its share of the runs. With `in_turn` it computes them one after the other instead of as
    one batch: faster where a single run fills the device, as it does a core.
    """
    skip = settings.nan_policy == "skip"

    def step(state: TrainState, batch: AnyBatch, numbers: Hyperparameters) -> tuple[TrainState, Metrics]:
        own = model.clone(dropout=numbers.dropout) if isinstance(model, GPT) else model
        return updated(own, make_optimizer(settings, numbers), state, batch, skip)

    many = _over_runs(step, (True, True, True), mesh, in_turn)
    return as_promised(jax.jit(many, donate_argnums=0))


def make_many_eval_step(
    model: nn.Module, *, same_data: bool, mesh: Mesh | None = None, in_turn: bool = False
) -> Callable[[Params, AnyBatch, Float[AnyArray, "B T"]], Float[Array, " R"]]:
    """`make_eval_step` of R runs' parameters at once, each on a batch of its own or all on the `same_data`."""
    many = _over_runs(functools.partial(weighted_sum, model), (True, not same_data, False), mesh, in_turn)
    return as_promised(jax.jit(many))


def _over_runs(
    function: Callable[..., Any], own: tuple[bool, ...], mesh: Mesh | None, in_turn: bool
) -> Callable[..., Any]:
    """`function` of one run made one of many; of its arguments, `own` says which each run has for itself."""
    axes = tuple(0 if is_own else None for is_own in own)

    def many(*arguments: Any) -> Any:
        if not in_turn:
            return jax.vmap(function, axes)(*arguments)

        def of_run(mine: Any) -> Any:
            rest = iter(mine)
            return function(*(next(rest) if is_own else x for is_own, x in zip(own, arguments, strict=True)))

        return jax.lax.map(of_run, [x for is_own, x in zip(own, arguments, strict=True) if is_own])

    if mesh is None:
        return many
    specs = tuple(P(RUNS) if is_own else P() for is_own in own)
    return jax.shard_map(many, mesh=mesh, in_specs=specs, out_specs=P(RUNS), check_vma=False)


def stacked(make: Callable[[int], Any], runs: int, mesh: Mesh | None = None) -> Any:
    """The trees that `make` gives for 0 to `runs` - 1 as one, with a leading axis; one or two lie beside it."""
    place = runs_sharding(mesh)
    first = make(0)

    @functools.partial(jax.jit, out_shardings=place)
    def room(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros((runs, *x.shape), x.dtype), tree)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=place)
    def put(whole: Any, tree: Any, run: Array) -> Any:
        return jax.tree.map(lambda all_of, x: all_of.at[run].set(x), whole, tree)

    everywhere = None if mesh is None else NamedSharding(mesh, P())
    whole = put(room(first), jax.device_put(first, everywhere), np.int32(0))
    for run in range(1, runs):
        whole = put(whole, jax.device_put(make(run), everywhere), np.int32(run))
    return whole


def run_of(trees: Any, run: int) -> Any:
    """The arrays of one run, from the device that holds them."""

    def own(x: jax.Array) -> jax.Array:
        for shard in x.addressable_shards:
            start = shard.index[0].start or 0
            if start <= run < start + len(shard.data):
                return shard.data[run - start]
        raise IndexError(run)

    return jax.tree.map(own, trees)


def side_by_side(batches: Sequence[Any], mesh: Mesh | None = None) -> Any:
    """Trees of numpy arrays, one for each run, stacked on the devices that hold those runs."""
    return jax.device_put(jax.tree.map(lambda *each: np.stack(each), *batches), runs_sharding(mesh))
