"""This project's side of the benchmark, set up by the very calls that `train.py` and `sample.py` make."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from nanogpt_jax.bench.limits import (
    CASES,
    Limits,
    cache_bytes_per_position,
    reading_flops,
    weight_bytes,
)
from nanogpt_jax.bench.trace import BREAKDOWN, UPDATES, broken_down, events_of_planes, work_of_instructions
from nanogpt_jax.compare.inputs import open_data
from nanogpt_jax.core.attention import choose_kernel
from nanogpt_jax.core.config import KERNELS, Settings
from nanogpt_jax.core.decoding_weights import decoding_weights
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.sampling import continuations
from nanogpt_jax.core.sampling_config import SamplingConfig
from nanogpt_jax.core.train_step import AnyBatch, TrainState, init_params, init_state, make_train_step, purpose_key
from nanogpt_jax.data.dataset import random_batch
from nanogpt_jax.data.files import temporary_folder
from nanogpt_jax.run import loop  # noqa: F401 (what train.py holds in memory is held here too)
from nanogpt_jax.run.accelerator import compute_capability, peak_flops, use_accelerator
from nanogpt_jax.run.build import build_model, resolve_dtype
from nanogpt_jax.run.telemetry import flops_per_token


class Training:
    """Updates of a fresh model, as `loop.train` makes them.

    With ``spec["timed_compilation"]`` the step is compiled ahead, under the clock; else as a user's is, when first
    called.
    """

    first = "step"

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._settings = settings = Settings(**spec["settings"])
        platform = use_accelerator(settings.accelerator)
        self._data = open_data(settings).tokens
        model = build_model(settings, self._data.vocab_size, platform)
        self._state, self._step = training_of(model, settings)
        self._iteration = 0
        self._limits = Limits(np.dtype(model.dtype).name)
        flops = flops_per_token(settings, self._state.params)
        self._facts = device_facts(np.dtype(model.dtype).name) | {"flops_per_token": flops}
        if spec["timed_compilation"]:
            self._step, self._facts["compile_seconds"] = compiled(self._step, self._state, self._batch())

    def run(self, case: str, times: int) -> None:
        """As `Side.run`: updates, traced where ``breakdown`` asks for it, or what is a limit to them."""
        if case in CASES:
            return self._limits.run(case, times)
        if case == BREAKDOWN:
            self._facts |= self._broken_down(times)
            return
        for _ in range(times):
            self._state, _ = self._step(self._state, self._batch())
            self._iteration += 1
        jax.block_until_ready(self._state)

    def facts(self) -> dict[str, Any]:
        """As `Side.facts`."""
        return self._facts

    def peak_memory(self) -> int | None:
        """As `Side.peak_memory`."""
        return _peak_memory()

    def _broken_down(self, times: int) -> dict[str, Any]:
        """What the updates spend their time on, as `trace.spent` has it; the step must be compiled ahead."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with temporary_folder() as folder:
            with jax.profiler.trace(folder, profiler_options=options), jax.profiler.TraceAnnotation(UPDATES):
                self.run("step", times)
            [path] = folder.rglob("*.xplane.pb")
            planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        return broken_down(events_of_planes(planes, work_of_instructions(self._step.as_text())), times)

    def _batch(self) -> AnyBatch:
        settings = self._settings
        sizes = settings.batch_shape, settings.block_size
        return random_batch(self._data, "train", settings.seed, self._iteration, *sizes)


class Sampling:
    """Texts from a fresh model; a case is the length of the prompt, of the text, and how many at once."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        settings = Settings(**spec["settings"])
        platform = use_accelerator(settings.accelerator)
        vocab_size = spec["vocab_size"]
        self._cases = spec["cases"]
        self.first = next(iter(self._cases))
        self._model = build_model(settings, vocab_size, platform)
        params = init_params(self._model, settings.seed)
        self._weights = decoding_weights(self._model, params, spec["quantize"])
        self._config = SamplingConfig(spec["temperature"], spec["top_k"])
        self._config_of = {spec["rolling"]: dataclasses.replace(self._config, past_block="rolling")}
        self._key = purpose_key(settings.seed, "sample")
        self._prompts = np.random.default_rng(settings.seed).integers(vocab_size, size=settings.block_size)
        self._limits = Limits(np.dtype(self._model.dtype).name)
        self._facts = device_facts(np.dtype(self._model.dtype).name) | {
            "weight_bytes": weight_bytes(self._weights),
            "cache_bytes_per_position": cache_bytes_per_position(self._model),
            "reading_flops": reading_flops(settings, params),
        }

    def run(self, case: str, times: int) -> None:
        """As `Side.run`: texts, or what is a limit to them."""
        if case in CASES:
            return self._limits.run(case, times)
        prompt, tokens, batch = self._cases[case]
        config = self._config_of.get(case, self._config)
        for _ in range(times):
            texts = continuations(self._model, config, self._weights, self._prompts[:prompt], self._key, tokens, batch)
            np.asarray(texts)

    def facts(self) -> dict[str, Any]:
        """As `Side.facts`."""
        return self._facts

    def peak_memory(self) -> int | None:
        """As `Side.peak_memory`."""
        return _peak_memory()


class Device:
    """The device alone: what it is, and which attention kernels take a model's shapes there."""

    first = "look"

    def __init__(self, spec: Mapping[str, Any]) -> None:
        settings = Settings(**spec["settings"])
        platform = use_accelerator(settings.accelerator)
        dtype, capability = resolve_dtype(settings.dtype, platform), compute_capability(platform)
        config = settings.gpt_config(spec["vocab_size"])

        def chosen(kernel: str) -> str | None:
            with contextlib.suppress(UserError):
                return choose_kernel(kernel, platform, config.head_width, dtype, config.dropout, capability)
            return None

        able = [kernel for kernel in KERNELS if kernel != "auto" and chosen(kernel)]
        stats = jax.local_devices()[0].memory_stats() or {}
        self._facts = device_facts(dtype.name) | {
            "attention": chosen(settings.attention), "kernels": able, "memory_bytes": stats.get("bytes_limit"),
        }  # fmt: skip

    def run(self, case: str, times: int) -> None:
        """As `Side.run`: there is nothing to do."""

    def facts(self) -> dict[str, Any]:
        """As `Side.facts`."""
        return self._facts

    def peak_memory(self) -> int | None:
        """As `Side.peak_memory`."""
        return _peak_memory()


def training_of(model: nn.Module, settings: Settings) -> tuple[TrainState, Any]:
    """The state before the first update, and the jitted step."""
    tx = make_optimizer(settings)
    params = init_params(model, settings.seed)
    state = jax.jit(lambda params: init_state(params, tx, settings.seed))(params)
    return state, make_train_step(model, tx)


def compiled(step: Any, *arguments: Any) -> tuple[Any, float]:
    """The jitted `step` compiled for these arguments, and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    program = step.lower(*arguments).compile()
    return program, time.perf_counter() - start


def device_facts(dtype: str) -> dict[str, Any]:
    """What the benchmark ran on, and in which type it multiplied."""
    return {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "dtype": dtype,
        "peak_flops": peak_flops(),
    }


def _peak_memory() -> int | None:
    """What the device's allocator reports; the CPU has none."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
