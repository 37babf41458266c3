"""Weights in the shapes and names that nanoGPT and Hugging Face's GPT-2 give them, and the files they keep them in.

The mapping is pure and exact to the bit; the functions at the end read and write `.pt`, `.bin` and safetensors files.
Nothing here runs code out of a file: pickles are opened by torch with `weights_only=True`, or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from nanogpt_jax.config import GPTConfig, Settings, coerced
from nanogpt_jax.errors import UserError
from nanogpt_jax.files import replace_when_whole
from nanogpt_jax.model import GPT, LAYER_NORM_EPSILON
from nanogpt_jax.training import Params, init_params

Layout = Literal["nanogpt", "hf"]
StateDict = dict[str, np.ndarray]
"""PyTorch's name of each tensor -> the tensor."""

HEAD, TABLE = "lm_head.weight", "transformer.wte.weight"
GPT2_END_OF_TEXT = 50_256
_TORCH_INSTALL = "pip install -e '.[torch]'"

_NANOGPT_SHAPE = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
# Besides its shape, what a nanoGPT run and one of ours both have, under one name.
_NANOGPT_SETTINGS = (
    "eval_interval", "log_interval", "eval_iters", "always_save_checkpoint", "dataset", "gradient_accumulation_steps",
    "batch_size", "learning_rate", "max_iters", "weight_decay", "beta1", "beta2", "grad_clip", "decay_lr",
    "warmup_iters", "lr_decay_iters", "min_lr",
)  # fmt: skip
_NO_LOSS_YET = 1e9  # what nanoGPT starts from

_HF_SHAPE = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}  # and its defaults
_HF_ACTIVATIONS = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}
# What GPT-2 may be told to do that this model does not; a file that leaves them out means these values.
_HF_FIXED: dict[str, tuple[Any, ...]] = {
    "layer_norm_epsilon": (LAYER_NORM_EPSILON,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}


def state_dict_of(params: Params, config: GPTConfig, layout: Layout) -> StateDict:
    """The parameters under the names, in the order and with the axes of the other program's `state_dict()`.

    nanoGPT's linear layers hold (out, in) and ours (in, out); Hugging Face's are `Conv1D`, (in, out), but for the head.
    A tied head appears twice, as there. Hugging Face's model always has biases: those that this one lacks are zero.
    What has the shape of parameters, gradients and moments, is mapped as well. Raises `UserError` for a model that
    `layout` cannot express.
    """
    require_expressible(config, layout)
    flat = flatten_dict(params)
    state_dict = {}
    for path in _shapes(config):
        value = np.asarray(flat[path])
        state_dict[_name(path)] = np.ascontiguousarray(value.T if _is_transposed(path, layout) else value)
    if layout == "hf":
        state_dict |= {name: np.zeros(shape, np.float32) for name, shape in _lacking_biases(config).items()}
    if config.tie_word_embeddings:
        state_dict[HEAD] = state_dict[TABLE]
    return state_dict


def params_of(state_dict: Mapping[str, np.ndarray], config: GPTConfig, layout: Layout) -> Params:
    """The linen parameters (nested dictionaries of float32 numpy arrays) that `state_dict` holds in `layout`.

    The inverse of `state_dict_of`; float16 and bfloat16 are widened, which is exact. torch.compile's `_orig_mod.`,
    names without `transformer.`, causal masks kept as buffers and a tied head that is left out or repeated make no
    difference. Raises `UserError` naming the tensor and both shapes where one is missing, too many, of another shape or
    not of floating point.
    """
    require_expressible(config, layout)
    there = _normalized(state_dict)
    flat = {}
    for path, shape in _shapes(config).items():
        name, transposed = _name(path), _is_transposed(path, layout)
        value = _checked(name, there.pop(name, None), shape[::-1] if transposed else shape)
        flat[path] = np.ascontiguousarray(value.T if transposed else value)
    if config.tie_word_embeddings and HEAD in there:
        table = flat["wte", "embedding"]
        if not _same_bits(_checked(HEAD, there.pop(HEAD), table.shape), table):
            raise UserError(f"tensor {HEAD} differs from {TABLE}, and the settings say that the two are one")
    zero = _lacking_biases(config) if layout == "hf" else {}
    for name, value in there.items():
        if name not in zero or _checked(name, value, zero[name]).any():
            raise _misfit(name, value, None)
    return unflatten_dict(flat)


def require_expressible(config: GPTConfig, layout: Layout) -> None:
    """Raise a `UserError` that names the setting, if a model of this shape has no equal in the other program."""
    possible: dict[str, tuple[Any, ...]] = {"lm_head_bias": (False,)}
    program = "Hugging Face's GPT-2"
    if layout == "nanogpt":
        possible |= {"activation": ("gelu",), "tie_word_embeddings": (True,), "has_qkv_bias": (config.bias,)}
        program = "nanoGPT"
    for name, values in possible.items():
        value = getattr(config, name)
        if value not in values:
            raise UserError(
                f"{name.removeprefix('has_')}={value} has no equal in {program}, which has {values[0]} alone; "
                "such a model stays a run of this project"
            )


def gpt_config_of_nanogpt(model_args: Any) -> GPTConfig:
    """The shape that the `model_args` of a nanoGPT checkpoint describe; what they leave out has nanoGPT's default.

    Raises `UserError` for an argument that nanoGPT's model does not take.
    """
    if not isinstance(model_args, dict):
        raise UserError(f"model_args is a {type(model_args).__name__}; it is not of nanoGPT")
    hints = get_type_hints(GPTConfig)
    for name in model_args:
        if name not in _NANOGPT_SHAPE:
            raise UserError(f"model_args has {name!r}, which nanoGPT's model does not take; it is of another program")
    return GPTConfig(**{name: coerced(name, value, hints[name], ()) for name, value in model_args.items()})


def nanogpt_model_args_of(config: GPTConfig) -> dict[str, Any]:
    """The arguments with which nanoGPT makes the same model. Raises `UserError` if there is none."""
    require_expressible(config, "nanogpt")
    return {name: getattr(config, name) for name in _NANOGPT_SHAPE}


def gpt_config_of_hf(document: Any) -> GPTConfig:
    """The shape that a Hugging Face `config.json` describes; what it leaves out has GPT-2's default.

    Raises `UserError` for another architecture, and for options of GPT-2's that this model does not have.
    """
    if not isinstance(document, dict):
        raise UserError(f"config.json holds a {type(document).__name__} where an object belongs")
    if document.get("model_type") != "gpt2":
        raise UserError(f"model_type={document.get('model_type')!r} is another architecture; only gpt2 can be read")
    shape = {name: coerced(name, document.get(name, usual), int, ()) for name, usual in _HF_SHAPE.items()}
    fixed = _HF_FIXED | {"n_inner": (None, 4 * shape["n_embd"]), "n_ctx": (None, shape["n_positions"])}
    for name, values in fixed.items():
        if name in document and document[name] not in values:
            raise UserError(f"{name}={document[name]!r} is not offered by this model, which has {values[-1]!r} alone")
    activation = document.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _HF_ACTIVATIONS:
        raise UserError(f"activation_function={activation!r} is not one of {', '.join(_HF_ACTIVATIONS)}")
    return GPTConfig(
        block_size=shape.pop("n_positions"),
        **shape,
        dropout=coerced("resid_pdrop", document.get("resid_pdrop", 0.1), float, ()),
        activation=_HF_ACTIVATIONS[activation],
        tie_word_embeddings=coerced("tie_word_embeddings", document.get("tie_word_embeddings", True), bool, ()),
    )


def hf_config_of(config: GPTConfig) -> dict[str, Any]:
    """The `config.json` of the same model in Hugging Face's terms. Raises `UserError` if there is none."""
    require_expressible(config, "hf")
    end_of_text = GPT2_END_OF_TEXT if GPT2_END_OF_TEXT < config.vocab_size else None
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "activation_function": config.activation,
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }


_ORDER = (
    "wte", "wpe", "h", "ln_1", "attn", "c_attn", "ln_2", "mlp", "c_fc", "c_proj", "ln_f", "lm_head",
    "embedding", "kernel", "scale", "bias",
)  # fmt: skip
_LEAVES = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}
_MASK = re.compile(r"transformer\.h\.\d+\.attn\.(masked_)?bias")  # the causal mask, which PyTorch may keep as a buffer


@functools.cache
def _shapes(config: GPTConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path in the linen tree -> shape, in the order in which nanoGPT and Hugging Face register their parameters."""

    def rank(path: tuple[str, ...]) -> list[tuple[int, int]]:
        parts = (re.fullmatch(r"(h)_(\d+)|(.*)", part) for part in path)
        return [(_ORDER.index(part[1] or part[3]), int(part[2] or 0)) for part in parts]

    tree = flatten_dict(jax.eval_shape(lambda: init_params(GPT(config), 0)))
    return {path: tree[path].shape for path in sorted(tree, key=rank)}


def _lacking_biases(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the biases that Hugging Face's model has and this one does not."""
    full = _shapes(dataclasses.replace(config, bias=True, qkv_bias=None))
    return {_name(path): shape for path, shape in full.items() if path not in _shapes(config)}


def _name(path: tuple[str, ...]) -> str:
    """PyTorch's name of the tensor at `path`: transformer.h.0.attn.c_attn.weight for h_0/attn/c_attn/kernel."""
    *modules, leaf = path
    name = ".".join([re.sub(r"^h_(\d+)$", r"h.\1", module) for module in modules] + [_LEAVES[leaf]])
    return name if name.startswith("lm_head.") else f"transformer.{name}"


def _is_transposed(path: tuple[str, ...], layout: Layout) -> bool:
    return path[-1] == "kernel" and (layout == "nanogpt" or path[0] == "lm_head")


def _normalized(state_dict: Mapping[str, np.ndarray]) -> StateDict:
    """A copy with the names that GPT2LMHeadModel and nanoGPT's GPT give, and without masks."""
    named = {name.removeprefix("_orig_mod."): value for name, value in state_dict.items()}
    if not any(name.startswith("transformer.") for name in named):
        named = {name if name == HEAD else f"transformer.{name}": value for name, value in named.items()}
    return {name: value for name, value in named.items() if not _MASK.fullmatch(name)}


def _checked(name: str, value: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as float32, once it has the shape it should and a type that float32 holds exactly."""
    if value is None or value.shape != shape:
        raise _misfit(name, value, shape)
    if value.dtype not in (np.float32, np.float16, jnp.bfloat16):
        raise UserError(f"tensor {name} is {value.dtype}{list(shape)} where the model has float32{list(shape)}")
    return value.astype(np.float32, copy=False)


def _misfit(name: str, value: np.ndarray | None, shape: tuple[int, ...] | None) -> UserError:
    found = "none at all" if value is None else value.shape
    wanted = "none at all" if shape is None else shape
    return UserError(
        f"tensor {name} has shape {found} where the model has {wanted}; the weights are of another architecture, "
        "or of other settings"
    )


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(np.ascontiguousarray(one).view(np.uint32), other.view(np.uint32))
