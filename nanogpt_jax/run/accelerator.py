"""Which kind of device a run uses: CPU, GPU or TPU, as asked for or as found."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Callable

import jax

from nanogpt_jax.core import switches
from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.data.commands import to_install
from nanogpt_jax.data.files import cache_folder

_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD = -8, -4, -1
_EXTRAS = {"gpu": "cuda", "tpu": "tpu"}
_SUPPORT = {"gpu": ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin"), "tpu": ("libtpu",)}  # packages
_LOOK = {
    "gpu": "nvidia-smi must list a GPU, under a driver as new as this CUDA asks for",
    "tpu": "this must be a TPU's machine, and no other process may hold it",
}
_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")  # of the environment, by which JAX is told where to run

# Switches of JAX that would change a number or end a command half-way, beside those that the core holds. A caller of
# the library sets these to debug, and may.
_SWITCHES = {
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_disable_jit": False,
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_debug_key_reuse": False,
    "jax_transfer_guard": None,
    "jax_transfer_guard_host_to_device": None,
    "jax_transfer_guard_device_to_device": None,
    "jax_transfer_guard_device_to_host": None,
}

# Dense bfloat16 peak of one device, in FLOP/s, by a part of its `device_kind`, the first that it has; from the makers'
# data sheets.
PEAK_FLOPS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


def use_accelerator(requested: str, join: Callable[[], None] | None = None) -> str:
    """Make JAX run on `requested` (auto, cpu, gpu or tpu) and return which of cpu, gpu and tpu that is.

    `join` is called when all is set but no device has been looked for: to join other processes. Must be called
    before the first array is made. Raises `UserError` that says what is missing: its support, the device, or the right
    name in the environment's JAX_PLATFORMS.
    """
    if otherwise := _set_switches_back():
        print(
            f"set aside, so that a seed and a number mean the same everywhere: {' '.join(otherwise)}", file=sys.stderr
        )
    if requested == "cpu":  # else JAX takes the fastest kind it finds, or what the environment names
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_platform_name", "cpu")
    # On the CPU a program that runs ahead of Python takes one thread of the pool for itself and leaves its matrix
    # products the rest: with two cores, half the speed for nothing, as the host has next to nothing else to do.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    _keep_freed_memory()
    _remember_compiled_programs()
    if join is not None:
        join()
    found = _found()
    if requested not in ("auto", found):
        raise UserError(f"accelerator={requested} is not there{_why_not(requested, found)}, or use --accelerator=cpu")
    return found


def _set_switches_back() -> list[str]:
    """Set every switch back for the process; those that stood otherwise, as the environment would have them."""
    wanted = {name: value for name, (value, _) in switches.HELD.items()} | _SWITCHES
    known = [name for name in wanted if name in jax.config.values]  # another version of JAX may lack one
    found = {name: jax.config.values[name] for name in known if jax.config.values[name] != wanted[name]}
    for name in found:
        jax.config.update(name, wanted[name])
    return [f"{name.upper()}={value}" for name, value in found.items()]


def _found() -> str:
    """The kind of device that JAX runs on. Raises `UserError` where the environment names one that is not there."""
    try:
        return jax.default_backend()
    except Exception as error:  # RuntimeError, and a bare AssertionError where CUDA's support is not installed
        named = _named_in_environment()
        if not named:
            raise UserError(f"JAX finds no device to run on ({in_short(error)}); use --accelerator=cpu") from error
        raise UserError(
            f"{named} in the environment names a device that JAX does not find here; correct it (cpu, cuda, tpu), "
            "unset it, or use --accelerator=cpu"
        ) from error


def _why_not(requested: str, found: str) -> str:
    named = _named_in_environment()
    if named:
        return f": {named} in the environment leaves JAX {found} only; unset it"
    if any(importlib.util.find_spec(package) for package in _SUPPORT[requested]):
        return f": its support is installed, but JAX finds {found} only; {_LOOK[requested]}"
    return f" (JAX finds {found} only); install its support with {to_install(_EXTRAS[requested])}"


def _named_in_environment() -> str:
    """The variables that tell JAX where to run, as they are set: ``JAX_PLATFORMS=cuda``; none: an empty text."""
    return " and ".join(f"{name}={shlex.quote(os.environ[name])}" for name in _VARIABLES if os.environ.get(name))


def _remember_compiled_programs() -> None:
    """Keep what XLA compiles in the user's cache folder, unless the user has named another place for it."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]  # JAX adds it while it is imported
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _keep_freed_memory() -> None:
    """Let one step's memory serve the next: glibc would return it, and the kernel clear it again page by page.

    XLA:CPU asks for its scratch memory anew at every step, and without this a third of a small step is page faults.
    `mallopt` and its numbers are those of glibc's <malloc.h>; other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def published_flops(kind: str) -> float | None:
    """Published bfloat16 FLOP/s of one device of a `device_kind`, or None where there is no such figure."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in kind), None)


def peak_flops() -> float | None:
    """Published bfloat16 FLOP/s of all devices together, or None where there is no such figure."""
    peak = published_flops(jax.devices()[0].device_kind)
    return None if peak is None else peak * jax.device_count()


def compute_capability(platform: str) -> float | None:
    """The least of the NVIDIA GPUs at hand; None for other platforms, AMD's GPUs, and GPUs that are not there.

    A program for GPUs that are not there is compiled where JAX itself runs on the CPU.
    """
    if platform != "gpu" or jax.default_backend() != "gpu":
        return None
    told = [str(getattr(device, "compute_capability", "")) for device in jax.devices()]
    known = [float(version) for version in told if re.fullmatch(r"\d+\.\d+", version)]
    return min(known, default=None)


def describe() -> str:
    """Device kind and count, and of how many hosts, in words."""
    devices = jax.devices()
    hosts = jax.process_count()
    return f"{len(devices)} x {devices[0].device_kind}, {hosts} host{'s' if hosts > 1 else ''}"
