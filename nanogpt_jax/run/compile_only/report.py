"""What a training step takes on a TPU slice that is not there: compiled by libtpu, and read from the compiled program.

Nothing is computed: parameters are shapes. libtpu compiles for a topology by its name, on any Linux machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from nanogpt_jax.core import sharding
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.train_step import Batch, abstract_state, make_train_step
from nanogpt_jax.data.commands import to_install
from nanogpt_jax.run.accelerator import PEAK_FLOPS
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.compile_only.hlo_traffic import traffic
from nanogpt_jax.run.mesh import MeshShape, make_mesh, mesh_shape, require_fit
from nanogpt_jax.run.telemetry import flops_per_token

GIB = 2**30


class Chip(NamedTuple):
    """Published figures of one chip."""

    flops: float  # dense bfloat16, a second
    memory: float  # bytes
    memory_rate: float  # bytes a second
    link_rate: float  # bytes a second to all neighbours together


# Google Cloud's documentation, "TPU architecture", the pages of v5e, v5p and v6e; links are given there in bits.
CHIPS = {
    "v5e": Chip(PEAK_FLOPS["TPU v5e"], 16 * GIB, 819e9, 1600e9 / 8),
    "v5p": Chip(PEAK_FLOPS["TPU v5"], 95 * GIB, 2765e9, 4800e9 / 8),
    "v6e": Chip(PEAK_FLOPS["TPU v6"], 32 * GIB, 1640e9, 3584e9 / 8),
}


class Cost(NamedTuple):
    """What one training step takes, for each chip: bytes, floating-point operations, and what they are bound by."""

    chip: Chip
    chips: int
    mesh: MeshShape
    params: int
    opt_state: int
    temporaries: int
    needed: int  # at the peak; all there is to hold at once
    flops: float  # of the model: what MFU counts
    executed_flops: float  # with what remat computes again
    memory_traffic: float
    collectives: dict[str, float]  # bytes sent over the interconnect, by kind

    @property
    def seconds(self) -> dict[str, float]:
        """The least time that each bound allows."""
        return {
            "compute": self.executed_flops / self.chip.flops,
            "memory": self.memory_traffic / self.chip.memory_rate,
            "interconnect": sum(self.collectives.values()) / self.chip.link_rate,
        }

    @property
    def step_seconds(self) -> float:
        """The least time of a step: the three go on side by side at best."""
        return max(self.seconds.values())

    @property
    def mfu(self) -> float:
        """The share of the chip's peak that this allows."""
        return self.flops / self.step_seconds / self.chip.flops


class DoesNotFit(NamedTuple):
    """The compiler found no way to fit the step into the chip's memory, and says what it would take."""

    reason: str


def report(settings: Settings) -> str:
    """What a step of `settings` takes on the slice that they name, in words. Raises `UserError` if it has no name."""
    chip, devices = _devices(str(settings.compile_only))
    shape = mesh_shape(settings.mesh, len(devices))
    require_fit(shape, settings)
    lines = [
        f"{settings.compile_only}: {len(devices)} chips, mesh {shape}, {settings.tokens_per_iter:,} tokens a step "
        f"({settings.gradient_accumulation_steps} x {settings.batch_size} x {settings.block_size})"
        + (", remat" if settings.remat else "")
    ]
    found = cost(settings, chip, devices, shape)
    if isinstance(found, DoesNotFit):
        return "\n".join([*lines, f"does not fit: {found.reason}"])
    left = chip.memory - found.needed
    seconds = found.seconds
    bound = max(seconds, key=seconds.__getitem__)
    return "\n".join(
        [
            *lines,
            "each chip:",
            f"  parameters        {found.params / GIB:8.3f} GiB",
            f"  optimizer state   {found.opt_state / GIB:8.3f} GiB",
            f"  temporaries       {found.temporaries / GIB:8.3f} GiB",
            f"  peak              {found.needed / GIB:8.3f} GiB of {chip.memory / GIB:.0f}: "
            + (f"fits, {left / GIB:.2f} GiB left" if left >= 0 else f"does not fit, {-left / GIB:.2f} GiB too much"),
            f"  model FLOPs       {found.flops / 1e12:8.3f} TFLOP" + _executed(found),
            f"  memory traffic    {found.memory_traffic / 1e9:8.3f} GB",
            *(f"  {kind:18}{sent / 1e6:8.1f} MB" for kind, sent in sorted(found.collectives.items())),
            "at best: " + ", ".join(f"{name} {1000 * time:.2f} ms" for name, time in seconds.items()),
            f"step {1000 * found.step_seconds:.2f} ms ({bound} bound), "
            f"{settings.tokens_per_iter / found.step_seconds:,.0f} tokens/s, MFU {found.mfu:.1%}",
        ]
    )


def cost(settings: Settings, chip: Chip, devices: Any, shape: MeshShape) -> Cost | DoesNotFit:
    """Compile the training step for `devices` and read what it takes."""
    model = build_model(settings, settings.vocab_size or 50304, "tpu")
    tx = make_optimizer(settings)
    mesh = make_mesh(shape, devices)
    abstract = abstract_state(model, tx)
    state = sharding.placed(mesh, abstract)
    dims = (*settings.batch_shape, settings.block_size)
    tokens: Any = jax.ShapeDtypeStruct(dims, jnp.int32, sharding=sharding.batch_sharding(mesh, len(dims)))
    places = sharding.state_shardings(mesh, abstract)
    with sharding.use(mesh), _quiet():
        step: Any = make_train_step(model, tx, shardings=places)  # jitted, so it lowers, for arrays that are not there
        lowered = step.lower(state, Batch(tokens, tokens))
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm. Exceeded hbm capacity by ([\d.]+\w)", str(error))
            return DoesNotFit(f"it takes {used[1]} of {used[2]}, {used[3]} too much" if used else in_short(error))
    memory = compiled.memory_analysis()
    per_chip = settings.tokens_per_iter / len(devices)
    flops = flops_per_token(settings, abstract.params) * per_chip
    sent = traffic(compiled.as_text())
    return Cost(
        chip=chip,
        chips=len(devices),
        mesh=shape,
        params=_bytes(state.params),
        opt_state=_bytes(state.opt_state),
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
    )


def _devices(topology: str) -> tuple[Chip, Any]:
    """The chip and the devices of a slice such as v5e:4x4. Raises `UserError` if it is none, or libtpu is missing."""
    jax.config.update("jax_platforms", "cpu")  # nothing is to be looked for here
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it guards chips, and none is touched
    kind = topology.partition(":")[0]
    if kind not in CHIPS or not re.fullmatch(r"\w+:[0-9]+(x[0-9]+){1,2}", topology):
        raise UserError(
            f"compile_only={topology} is not a TPU slice; give {', '.join(CHIPS)} and its shape, as in v5e:4x4 or "
            "v5p:2x2x1"
        )
    try:
        with _quiet():
            return CHIPS[kind], topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # of libtpu and its loader, many kinds
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(f"compile_only needs libtpu (Linux); install it with {to_install('tpu')}") from error
        raise UserError(
            f"compile_only={topology} is no slice that libtpu knows ({in_short(error)}); choose one as v5e:4x4"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the terminal what libtpu writes there of a machine without TPUs; errors reach Python anyway."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _bytes(tree: Any) -> int:
    """What one chip holds of a tree of placed arrays."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)


def _executed(found: Cost) -> str:
    return "" if found.executed_flops == found.flops else f" ({found.executed_flops / 1e12:.3f} executed, with remat)"
