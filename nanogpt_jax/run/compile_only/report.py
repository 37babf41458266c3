"""What a training step takes on TPUs or GPUs that are not there: compiled for them, and read from the compiled program.

Nothing is computed: parameters are shapes.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nanogpt_jax.core import sharding
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import in_short
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.train_step import Batch, TrainState, abstract_state, make_train_step
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.compile_only.chips import GIB, Chip, Slice, chips_of, quiet
from nanogpt_jax.run.compile_only.hlo_traffic import traffic
from nanogpt_jax.run.mesh import MeshShape, make_mesh, mesh_shape, require_fit
from nanogpt_jax.run.telemetry import flops_per_token

_TAKEN = 0.75  # the share of a GPU's memory that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION names another


class Cost(NamedTuple):
    """What one training step takes, for each chip: bytes, floating-point operations, and what they are bound by."""

    chip: Chip
    chips: int
    mesh: MeshShape
    params: int
    opt_state: int
    arguments: int  # all that goes in: these, and the batch
    temporaries: int
    needed: int  # at the peak; all there is to hold at once
    flops: float  # of the model: what MFU counts
    executed_flops: float  # with what remat computes again
    memory_traffic: float
    collectives: dict[str, float]  # bytes sent, by kind
    between_hosts: float  # of those, the bytes that a network carries and no faster link

    @property
    def seconds(self) -> dict[str, float]:
        """The least time that each bound allows."""
        linked = sum(self.collectives.values()) - self.between_hosts
        bounds = {
            "compute": self.executed_flops / self.chip.flops,
            "memory": self.memory_traffic / self.chip.memory_rate,
            "interconnect": linked / self.chip.link_rate,
        }
        return bounds | ({"network": self.between_hosts / self.chip.network_rate} if self.between_hosts else {})

    @property
    def step_seconds(self) -> float:
        """The least time of a step: all of them go on side by side at best."""
        return max(self.seconds.values())

    @property
    def mfu(self) -> float:
        """The share of the chip's peak that this allows."""
        return self.flops / self.step_seconds / self.chip.flops


class DoesNotFit(NamedTuple):
    """The compiler found no way to fit the step into the chip's memory, and says what it would take."""

    reason: str


def report(settings: Settings) -> str:
    """What a step of `settings` takes on the chips that they name, in words. Raises `UserError` if it names none."""
    chips = chips_of(str(settings.compile_only))
    shape = mesh_shape(settings.mesh, len(chips.devices))
    require_fit(shape, settings)
    count = len(chips.devices)
    lines = [
        f"{settings.compile_only}: {count} chip{'s' if count > 1 else ''}, mesh {shape}, "
        f"{settings.tokens_per_iter:,} tokens a step "
        f"({settings.gradient_accumulation_steps} x {settings.batch_size} x {settings.block_size})"
        + (", remat" if settings.remat else "")
    ]
    found = cost(settings, chips, shape)
    if isinstance(found, DoesNotFit):
        return "\n".join([*lines, f"does not fit: {found.reason}"])
    seconds = found.seconds
    bound = max(seconds, key=seconds.__getitem__)
    return "\n".join(
        [
            *lines,
            "each chip:",
            f"  parameters        {found.params / GIB:8.3f} GiB",
            f"  optimizer state   {found.opt_state / GIB:8.3f} GiB",
            f"  arguments         {found.arguments / GIB:8.3f} GiB, these and the batch",
            f"  temporaries       {found.temporaries / GIB:8.3f} GiB",
            f"  peak              {found.needed / GIB:8.3f} GiB of {found.chip.memory / GIB:.1f}: {_verdict(found)}",
            f"  model FLOPs       {found.flops / 1e12:8.3f} TFLOP" + _executed(found),
            f"  memory traffic    {found.memory_traffic / 1e9:8.3f} GB",
            *(f"  {kind:18}{sent / 1e6:8.1f} MB" for kind, sent in sorted(found.collectives.items())),
            *([f"  between hosts     {found.between_hosts / 1e6:8.1f} MB of these"] if found.between_hosts else []),
            "at best: " + ", ".join(f"{name} {1000 * time:.2f} ms" for name, time in seconds.items()),
            f"step {1000 * found.step_seconds:.2f} ms ({bound} bound), "
            f"{settings.tokens_per_iter / found.step_seconds:,.0f} tokens/s, MFU {found.mfu:.1%}",
        ]
    )


def cost(settings: Settings, chips: Slice, shape: MeshShape) -> Cost | DoesNotFit:
    """Compile the training step for `chips` and read what it takes."""
    try:
        state, compiled = compiled_step(settings, chips, shape)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return DoesNotFit(what_is_lacking(error))
    memory = compiled.memory_analysis()
    flops = flops_per_token(settings, state.params) * settings.tokens_per_iter / len(chips.devices)
    sent = traffic(compiled.as_text(), chips.of_a_host)
    return Cost(
        chip=chips.chip,
        chips=len(chips.devices),
        mesh=shape,
        params=_bytes(state.params),
        opt_state=_bytes(state.opt_state),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        needed=memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        flops=flops,
        executed_flops=flops * (4 / 3 if settings.remat else 1),
        memory_traffic=sent.memory,
        collectives=sent.collectives,
        between_hosts=sent.between_hosts,
    )


def what_is_lacking(error: Exception) -> str:
    """How much memory the compiler says that a step takes, and of how much; each libtpu has its own words for it."""
    if used := re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm. Exceeded hbm capacity by ([\d.]+\w)", str(error)):
        return f"it takes {used[1]} of {used[2]}, {used[3]} too much"
    if used := re.search(r"required for ([\w ]+) \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", str(error)):
        return f"its {used[1]} take {used[2]}, more than the {used[3]} there are"
    return in_short(error)


def compiled_step(settings: Settings, chips: Slice, shape: MeshShape) -> tuple[TrainState, Any]:
    """The training step compiled for `chips`, and the state that it takes: shapes that know where they lie."""
    model = build_model(settings, settings.vocab_size or 50304, "tpu" if chips.chip.gpu is None else "gpu")
    tx = make_optimizer(settings)
    mesh = make_mesh(shape, chips.devices)
    abstract = abstract_state(model, tx)
    state = sharding.placed(mesh, abstract)
    dims = (*settings.batch_shape, settings.block_size)
    tokens: Any = jax.ShapeDtypeStruct(dims, jnp.int32, sharding=sharding.batch_sharding(mesh, len(dims)))
    places = sharding.state_shardings(mesh, abstract)
    with sharding.use(mesh), quiet():
        step: Any = make_train_step(model, tx, shardings=places)  # jitted, so it lowers, for arrays that are not there
        return state, step.lower(state, Batch(tokens, tokens)).compile()


def _bytes(tree: Any) -> int:
    """What one chip holds of a tree of placed arrays."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)


def _executed(found: Cost) -> str:
    return "" if found.executed_flops == found.flops else f" ({found.executed_flops / 1e12:.3f} executed, with remat)"


def _verdict(found: Cost) -> str:
    left = found.chip.memory - found.needed
    if left < 0:
        return f"does not fit, {-left / GIB:.2f} GiB too much"
    shut_out = found.chip.gpu is not None and found.needed > _TAKEN * found.chip.memory
    return f"fits, {left / GIB:.2f} GiB left" + (", with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" if shut_out else "")
