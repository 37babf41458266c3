"""PEFT's adapter folder: `adapter_config.json` and the two thin matrices of each module it trains, read and written.

It holds no weight of the base, which it names. The names and axes of the modules are `state_dicts.py`'s for GPT-2 and
`llama_format.py`'s for Llama and Qwen3; PEFT keeps A as (r, in) and B as (out, r) for both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import coerced, require_at_least
from nanogpt_jax.core.lora import Delta, abstract_delta, layers_of
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.data.files import exists, is_file
from nanogpt_jax.weights.foreign_files import read_json, read_safetensors, reading
from nanogpt_jax.weights.hf_format import hf_config_of, write_pair
from nanogpt_jax.weights.llama_format import names_of
from nanogpt_jax.weights.state_dicts import StateDict, checked, misfit, name_of

SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # what PEFT's two wrappers put before every name

# What an adapter may be told that the delta does not have; a file that leaves them out means the first of these.
_FIXED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # the others change the base
    "revision": (None, "main"),
}
# What makes no difference to a trained delta's numbers, or is read; what else there is must be unset.
_FREE = {
    "r", "lora_alpha", "use_rslora", "target_modules", "base_model_name_or_path", "lora_dropout", "fan_in_fan_out",
    "task_type", "auto_mapping", "peft_version", "inference_mode", "layers_pattern", "megatron_core",
    "qalora_group_size", "ensure_weight_tying", "eva_config", "corda_config", "loftq_config", "lora_ga_config",
}  # fmt: skip
_UNSET: tuple[Any, ...] = (None, False, {}, [])


class PeftSettings(NamedTuple):
    """What `adapter_config.json` says.

    Attributes:
        rank: of A and B.
        alpha: the delta is scaled by alpha / rank.
        modules: the modules that are trained, by the ends of their names.
        base: the name or the path of the model that the delta is to, if that is known.
    """

    rank: int
    alpha: float
    modules: tuple[str, ...]
    base: str | None


class Adapter(NamedTuple):
    """A delta, the settings it was trained with as `lora_rank`, `lora_alpha` and `lora_targets` have them, its base."""

    delta: Delta
    rank: int
    alpha: float
    targets: str
    base: str | None


def is_peft_folder(folder: Path) -> bool:
    """Whether an adapter lies in `folder`, under the name that PEFT gives its settings."""
    return is_file(folder / SETTINGS)


def read_peft_settings(folder: Path) -> PeftSettings:
    """What the adapter in `folder` is, without its tensors. Raises `UserError` if it is no plain LoRA."""
    path = folder / SETTINGS
    with reading(path):
        return settings_of_peft(read_json(path))


def settings_of_peft(document: Any) -> PeftSettings:
    """What an `adapter_config.json` says. Raises `UserError` for what a delta of A and B alone would not compute."""
    if not isinstance(document, dict):
        raise UserError(f"it holds a {type(document).__name__} where an object belongs; get it anew")
    for name, value in document.items():
        wanted = _FIXED.get(name, _UNSET)
        if name not in _FREE and not any(type(value) is type(one) and value == one for one in wanted):
            only = " or ".join(repr(one) for one in wanted) if name in _FIXED else "it unset"
            raise UserError(
                f"{name}={value!r} is not offered here, where LoRA has {only}; merge it by merge_and_unload() of peft"
            )
    rank = coerced("r", document.get("r", 8), int, ())
    require_at_least("r", rank, 1)
    alpha = coerced("lora_alpha", document.get("lora_alpha", 8), float, ())
    if not math.isfinite(alpha):
        raise UserError(f"lora_alpha={alpha} is no finite number; give the one that the adapter was trained with")
    if coerced("use_rslora", document.get("use_rslora", False), bool, ()):
        alpha *= math.sqrt(rank)  # which is divided by sqrt(r) there, and by r here
    modules = document.get("target_modules")
    if not isinstance(modules, list) or not modules or not all(isinstance(name, str) for name in modules):
        raise UserError(f"target_modules={modules!r} is no list of names; give the modules' names, as ['c_attn']")
    base = coerced("base_model_name_or_path", document.get("base_model_name_or_path"), str | None, ())
    return PeftSettings(rank, alpha, tuple(modules), base)


def targets_of(modules: Sequence[str], config: GPTConfig) -> str:
    """The modules that an adapter trains as `lora_targets` names them.

    As in PEFT a name means every module whose own it ends, by whole parts. Raises `UserError` for one that means none,
    and for modules that are trained in some of the layers alone.
    """
    paths = layers_of(config, "attn,mlp")
    ends: dict[str, set[tuple[int, tuple[str, ...]]]] = {}
    for layer, path in itertools.product(range(config.n_layer), paths):
        parts = _module(config, layer, path).split(".")
        for start in range(len(parts)):
            ends.setdefault(".".join(parts[start:]), set()).add((layer, path))
    for module in modules:
        if module not in ends:
            known = ", ".join(modules_of("attn,mlp", config))
            raise UserError(
                f"target_modules names {module!r}, and what may be trained here is {known}; merge it by "
                "merge_and_unload() of peft"
            )
    asked = set().union(*(ends[module] for module in modules))
    trained = [path for path in paths if any((layer, path) in asked for layer in range(config.n_layer))]
    for layer, path in itertools.product(range(config.n_layer), trained):
        if (layer, path) not in asked:
            lacking = _module(config, layer, path)
            raise UserError(
                f"target_modules leaves out {lacking!r}, and a delta is here to all layers alike; merge it by "
                "merge_and_unload() of peft"
            )
    return ",".join(f"{path[0]}.{path[-1]}" for path in trained)


def modules_of(targets: str, config: GPTConfig) -> list[str]:
    """The inverse of `targets_of`: the last part of each module's name, or its last two where others have that too."""
    of_all = [_module(config, 0, path) for path in layers_of(config, "attn,mlp")]
    asked = [_module(config, 0, path) for path in layers_of(config, targets)]
    short: dict[str, None] = {}
    for name in asked:
        *_, part, last = name.split(".")
        alike = {other for other in of_all if other.endswith(f".{last}")}
        short[last if alike <= set(asked) else f"{part}.{last}"] = None
    return list(short)


def _module(config: GPTConfig, layer: int, path: tuple[str, ...]) -> str:
    """The name in transformers' model of the matrix at `path` of a block, as `lora.layers_of` gives paths."""
    kernel = (f"h_{layer}", *path[:2], "kernel")
    names = names_of(kernel) if config.position == "rope" else [name_of(kernel)]
    return names["qkv".index(path[2]) if len(path) > 2 else 0].removesuffix(".weight")


def _tensor(config: GPTConfig, path: tuple[str, ...]) -> str:
    """The name in the file of the matrix at `path` of a delta."""
    block, *inside, leaf = path
    return f"{_PREFIX}{_module(config, int(block.removeprefix('h_')), tuple(inside))}.{leaf}.weight"


def peft_tensors_of(delta: Delta, config: GPTConfig) -> StateDict:
    """The matrices of a delta under PEFT's names and with its axes, and nothing else."""
    return {
        _tensor(config, path): np.ascontiguousarray(np.asarray(value).T) for path, value in flatten_dict(delta).items()
    }


def delta_of_peft(tensors: Mapping[str, np.ndarray], config: GPTConfig, rank: int, targets: str) -> Delta:
    """The inverse of `peft_tensors_of`, in float32; float16 and bfloat16 are widened, which is exact.

    Raises `UserError` naming the tensor where one is missing, too many, of another shape or not of floating point.
    """
    like = abstract_delta(GPT(config), rank, targets)
    there, flat = dict(tensors), {}
    for path, matrix in flatten_dict(like).items():
        name = _tensor(config, path)
        flat[path] = np.ascontiguousarray(checked(name, there.pop(name, None), matrix.shape[::-1]).T)
    for name, value in there.items():
        raise misfit(name, value, None)
    return unflatten_dict(flat)


def read_peft(folder: Path, config: GPTConfig) -> Adapter:
    """The adapter in `folder` to a model of the shape `config`.

    Raises `UserError` where it is damaged, no plain LoRA, of another model, or lies in a file that could run code.
    """
    rank, alpha, modules, base = read_peft_settings(folder)
    with reading(folder / SETTINGS):
        targets = targets_of(modules, config)
    pickled = folder / "adapter_model.bin"
    if exists(pickled) and not exists(folder / TENSORS):
        raise UserError(f"{pickled} is a pickle, and {TENSORS} alone is read; load it with peft and save it anew")
    tensors = read_safetensors(folder / TENSORS)
    with reading(folder / TENSORS):
        return Adapter(delta_of_peft(tensors, config, rank, targets), rank, alpha, targets, base)


def write_peft(folder: Path, config: GPTConfig, adapter: Adapter) -> None:
    """Write `adapter`, to a model of the shape `config`, into `folder`, as `PeftModel.from_pretrained` loads it.

    Raises `UserError`, with nothing written, for a model that none of Hugging Face's classes can express.
    """
    hf_config_of(config)
    document = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha,
        "target_modules": modules_of(adapter.targets, config),
        "fan_in_fan_out": config.position != "rope",  # GPT-2's linear layers are Conv1D
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    write_pair(folder / SETTINGS, document, folder / TENSORS, peft_tensors_of(adapter.delta, config))
