"""Chips that are not there: their published figures, and slices and hosts of them as devices to compile for.

libtpu compiles for a slice by its name. JAX's CUDA plugin compiles for a GPU by a description, which is made of the
figures here. Both run on any Linux machine.
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
from jax.experimental import topologies

from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.data.commands import to_install
from nanogpt_jax.run.accelerator import PEAK_FLOPS

GIB = 2**30
GPUS_OF_A_HOST = 8  # at most: of a DGX, and of most others


class Gpu(NamedTuple):
    """What a compiler must know of a GPU, beside its `Chip`."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    float32_units: int  # of a multiprocessor
    threads: int  # likewise
    shared_memory: int  # likewise, KiB
    l2_cache: float  # MiB
    clock: float  # GHz


class Chip(NamedTuple):
    """Published figures of one chip."""

    flops: float  # dense bfloat16, a second
    memory: float  # bytes
    memory_rate: float  # bytes a second
    link_rate: float  # bytes a second to the others of its slice, or host; of a TPU, to all neighbours together
    network_rate: float = 0.0  # bytes a second to other hosts, one way; 0 where there is no figure
    gpu: Gpu | None = None


# Where the figures are from. Of TPUs, docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e: what a chip sends to its
# neighbours is half of "bidirectional inter-chip interconnect bandwidth", 400, 1200 and 800 GB/s; their GB are GiB.
#
# Of GPUs, what is computed, the memory and the links are from NVIDIA's data sheets: A100 (SXM, 80 GB), H100 and H200
# (SXM), HGX B200 and L4; the 4090's from the white paper "NVIDIA Ada GPU Architecture". Half of what they state with
# sparsity, links one way, and GB as 10^9 bytes, a little less than there are. NVLink joins the first four (600, 900,
# 900 and 1800 GB/s both ways), PCIe 4.0 x16 the others. The B200's memory is said to give 8 TB/s; its bus and clock, as
# CUDA tells them, make 7.67 (github.com/pytorch/ao/pull/4002). The network is an adapter for each GPU, of 200 Gbit/s in
# DGX A100 and 400 in DGX H100, H200 and B200 (docs.nvidia.com/dgx, their user guides).
#
# What a multiprocessor holds is in NVIDIA's tuning guides of Ampere, Ada, Hopper and Blackwell (docs.nvidia.com/cuda).
# How many there are, caches and clocks are as CUDA tells them: of the first four in github.com/openxla/xla,
# xla/backends/gpu/target_config/specs; of the 4090 as in its white paper. The L4's 121 TFLOP/s in bfloat16 and 30.3 in
# float32 are those of 58 multiprocessors at 2.04 GHz.
CHIPS = {
    "v5e": Chip(PEAK_FLOPS["TPU v5e"], 16 * GIB, 819e9, 400e9 / 2),
    "v5p": Chip(PEAK_FLOPS["TPU v5"], 95 * GIB, 2765e9, 1200e9 / 2),
    "v6e": Chip(PEAK_FLOPS["TPU v6"], 32 * GIB, 1638e9, 800e9 / 2),
    "a100": Chip(
        PEAK_FLOPS["A100"], 80e9, 2039e9, 300e9, 25e9, Gpu("A100-SXM4-80GB", (8, 0), 108, 64, 2048, 164, 40, 1.41)
    ),
    "h100": Chip(
        PEAK_FLOPS["H100"], 80e9, 3350e9, 450e9, 50e9, Gpu("H100 80GB HBM3", (9, 0), 132, 128, 2048, 228, 50, 1.98)
    ),
    "h200": Chip(PEAK_FLOPS["H200"], 141e9, 4800e9, 450e9, 50e9, Gpu("H200", (9, 0), 132, 128, 2048, 228, 50, 1.98)),
    "b200": Chip(
        PEAK_FLOPS["B200"], 180e9, 7672e9, 900e9, 50e9, Gpu("B200", (10, 0), 148, 128, 2048, 228, 126.5, 1.965)
    ),
    "l4": Chip(PEAK_FLOPS["L4"], 24e9, 300e9, 32e9, gpu=Gpu("L4", (8, 9), 58, 128, 1536, 100, 48, 2.04)),
    "4090": Chip(
        PEAK_FLOPS["RTX 4090"], 24e9, 1008e9, 32e9, gpu=Gpu("GeForce RTX 4090", (8, 9), 128, 128, 1536, 100, 72, 2.52)
    ),
}


class Slice(NamedTuple):
    """Chips of one kind, as many and as they lie: a TPU slice, or hosts of GPUs."""

    chip: Chip
    devices: Any
    of_a_host: int | None = None  # devices that a fast link joins; None: it joins them all


def chips_of(topology: str) -> Slice:
    """What ``v5e:4x4``, ``h100:8`` or ``h100:2x8`` (two hosts of eight) names.

    Raises `UserError` if it names nothing, or what compiles for it is not installed.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing is to be looked for here
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it guards chips, and none is touched
    kind, _, shape = topology.partition(":")
    chip = CHIPS.get(kind)
    sizes = [int(size) for size in shape.split("x")] if re.fullmatch(r"\d{1,3}(x\d{1,3}){0,2}", shape, re.A) else []
    if chip is None or len(sizes) not in ((2, 3) if chip.gpu is None else (1, 2)) or 0 in sizes:
        tpus, gpus = (", ".join(name for name, chip in CHIPS.items() if bool(chip.gpu) == is_gpu) for is_gpu in (0, 1))
        raise UserError(
            f"compile_only={topology} names no chips that are known here; give a TPU slice ({tpus}) as v5e:4x4 or "
            f"v5p:2x2x1, or GPUs ({gpus}) as h100:8, or h100:2x8 for two hosts of eight"
        )
    if chip.gpu is None:
        return Slice(chip, _compiled_for(topology, "tpu", ("libtpu",), topology_name=topology))
    hosts, each = sizes if len(sizes) == 2 else (1, *sizes)
    if each > GPUS_OF_A_HOST:
        raise UserError(
            f"compile_only={topology} is of {each} GPUs in a host, which holds {GPUS_OF_A_HOST} at most; give "
            f"{kind}:{-(-each // GPUS_OF_A_HOST) * hosts}x{GPUS_OF_A_HOST}"
        )
    if hosts > 1 and not chip.network_rate:
        raise UserError(
            f"compile_only={topology} is of {hosts} hosts, and no network between hosts of {kind} is published; give "
            f"{kind}:{each}"
        )
    plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin")
    described = {"topology": f"1x{hosts}x{each}", "target_config": _described(chip, chip.gpu)}
    return Slice(chip, _compiled_for(topology, "cuda", plugins, **described), each)


def _compiled_for(asked: str, platform: str, packages: tuple[str, ...], **named: str) -> Any:
    """The devices that a compiler for `platform`, of one of the packages, has by what it calls those that are asked."""
    try:
        with quiet():
            return topologies.get_topology_desc(platform=platform, **named).devices
    except Exception as error:  # of the compilers and their loaders, many kinds
        if not any(importlib.util.find_spec(package) for package in packages):
            raise UserError(
                f"compile_only={asked} needs {packages[0]} (Linux); install it with {to_install(platform)}"
            ) from error
        raise UserError(
            f"compile_only={asked} is nothing that {packages[0]} knows ({in_short(error)}); choose as v5e:4x4 or h100:8"
        ) from error


def _described(chip: Chip, gpu: Gpu) -> str:
    """A GPU as XLA reads it: the text form of its `GpuTargetConfigProto`."""
    major, minor = gpu.capability
    return f"""
        gpu_device_info {{
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          core_count: {gpu.multiprocessors} fpus_per_core: {gpu.float32_units} clock_rate_ghz: {gpu.clock}
          threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {gpu.threads}
          block_dim_limit_x: {2**31 - 1} block_dim_limit_y: {2**16 - 1} block_dim_limit_z: {2**16 - 1}
          registers_per_block_limit: {2**16} registers_per_core_limit: {2**16}
          shared_memory_per_core: {gpu.shared_memory * 2**10} shared_memory_per_block: {48 * 2**10}
          shared_memory_per_block_optin: {(gpu.shared_memory - 1) * 2**10}
          l2_cache_size: {gpu.l2_cache * 2**20:.0f}
          device_memory_size: {chip.memory:.0f} memory_bandwidth: {chip.memory_rate:.0f}
        }}
        platform_name: "CUDA" device_description_str: "NVIDIA {gpu.name}"
        dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 8 }}
    """


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep from the terminal what compilers write there of a machine without their chips; errors reach Python."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
