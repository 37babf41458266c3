"""nanoGPT's and Hugging Face's names, order and axes of the tensors of a GPT: pure, and exact to the bit."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import Params, init_params

Layout = Literal["nanogpt", "hf"]
StateDict = dict[str, np.ndarray]
"""PyTorch's name of each tensor -> the tensor."""

HEAD, TABLE = "lm_head.weight", "transformer.wte.weight"


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
    for path in shapes_of(config):
        value = np.asarray(flat[path])
        state_dict[name_of(path)] = np.ascontiguousarray(value.T if _is_transposed(path, layout) else value)
    if layout == "hf":
        state_dict |= {name: np.zeros(shape, np.float32) for name, shape in _lacking_biases(config).items()}
    if config.tie_word_embeddings:
        state_dict[HEAD] = state_dict[TABLE]
    return state_dict


def params_of(state_dict: Mapping[str, np.ndarray], config: GPTConfig, layout: Layout) -> Params:
    """The linen parameters (nested dictionaries of float32 numpy arrays) that `state_dict` holds in `layout`.

    The inverse of `state_dict_of`; float16 and bfloat16 are widened, which is exact, and float64 is rounded. `module.`
    and `_orig_mod.`, which PyTorch's wrappers put before names, names without `transformer.`, what `left_out` names and
    a tied head that is left out or repeated make no difference. Raises `UserError` naming the tensor and both shapes
    where one is missing, too many, of another shape or not of floating point.
    """
    require_expressible(config, layout)
    there = normalized(state_dict, "transformer.")
    flat = {}
    for path, shape in shapes_of(config).items():
        name, transposed = name_of(path), _is_transposed(path, layout)
        value = checked(name, there.pop(name, None), shape[::-1] if transposed else shape)
        flat[path] = np.ascontiguousarray(value.T if transposed else value)
    if config.tie_word_embeddings:
        take_tied_head(there, flat["wte", "embedding"], TABLE)
    zero = _lacking_biases(config) if layout == "hf" else {}
    for name, value in there.items():
        if name not in zero or checked(name, value, zero[name]).any():
            raise misfit(name, value, None)
    return unflatten_dict(flat)


def require_expressible(config: GPTConfig, layout: Layout) -> None:
    """Raise a `UserError` that names the setting, if a model of this shape has no equal in the other program."""
    newer = ("position", "norm", "qk_norm", "token_shift", "logit_softcap")
    possible: dict[str, tuple[Any, ...]] = {name: (getattr(GPTConfig, name),) for name in newer}
    possible |= {"kv_heads": (config.n_head,), "head_width": (config.n_embd // config.n_head,)}
    possible |= {"activation": _ACTIVATIONS, "lm_head_bias": (False,)}
    program = "Hugging Face's GPT-2"
    if layout == "nanogpt":
        possible |= {"activation": ("gelu",), "tie_word_embeddings": (True,), "has_qkv_bias": (config.bias,)}
        possible |= {"norm_epsilon": (GPTConfig.norm_epsilon,), "mlp_width": (4 * config.n_embd,)}
        program = "nanoGPT"
    require_values(config, possible, program)


def require_values(config: GPTConfig, possible: Mapping[str, tuple[Any, ...]], program: str) -> None:
    """Raise a `UserError` that names the first setting whose value `program` has not, and the one that it has."""
    for name, values in possible.items():
        value = getattr(config, name)
        if value not in values:
            raise UserError(
                f"{_SETTINGS.get(name, name)}={value} has no equal in {program}, which has {values[0]} alone; "
                "keep the model in the form it has"
            )


_ACTIVATIONS = ("gelu", "gelu_new", "relu")
_SETTINGS = {"has_qkv_bias": "qkv_bias", "kv_heads": "n_kv_head", "head_width": "head_size", "mlp_width": "mlp_size"}
_ORDER = (
    "wte", "wpe", "shift", "h", "ln_1", "attn", "c_attn", "q_norm", "k_norm", "ln_2", "mlp", "c_gate", "c_fc", "c_proj",
    "ln_f", "lm_head",
    "embedding", "kernel", "scale", "bias", "share",
)  # fmt: skip
_LEAVES = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}
# The causal mask, which PyTorch may keep as a buffer, and the heads of models that do something else with GPT-2.
_MASK = re.compile(r"(?:^|\.)h\.\d+\.attn\.(?:masked_bias|bias|mask|tril)$")
_TURNS = re.compile(r"(?:^|\.)rotary_emb\.inv_freq$")
_OTHER_HEAD = re.compile(r"(?:score|v_head|value_head|classifier|qa_outputs|multiple_choice_head)\.")


@functools.cache
def shapes_of(config: GPTConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path in the linen tree -> shape, in the order in which nanoGPT and Hugging Face register their parameters."""

    def rank(path: tuple[str, ...]) -> list[tuple[int, int]]:
        blocks = (re.fullmatch(r"h_(\d+)", part) for part in path)
        named = ((part, "0") if block is None else ("h", block[1]) for part, block in zip(path, blocks, strict=True))
        return [(_ORDER.index(name), int(number)) for name, number in named]

    tree = flatten_dict(jax.eval_shape(lambda: init_params(GPT(config), 0)))
    return {path: tree[path].shape for path in sorted(tree, key=rank)}


def _lacking_biases(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the biases that Hugging Face's model has and this one does not."""
    full = shapes_of(dataclasses.replace(config, bias=True, qkv_bias=None))
    return {name_of(path): shape for path, shape in full.items() if path not in shapes_of(config)}


def name_of(path: tuple[str, ...]) -> str:
    """PyTorch's name of the tensor at `path`: transformer.h.0.attn.c_attn.weight for h_0/attn/c_attn/kernel."""
    *modules, leaf = path
    name = ".".join([re.sub(r"^h_(\d+)$", r"h.\1", module) for module in modules] + [_LEAVES[leaf]])
    return name if name.startswith("lm_head.") else f"transformer.{name}"


def _is_transposed(path: tuple[str, ...], layout: Layout) -> bool:
    return path[-1] == "kernel" and (layout == "nanogpt" or path[0] == "lm_head")


def left_out(state_dict: Mapping[str, Any]) -> dict[str, list[str]]:
    """The tensors that `params_of` has no use for, in words -> their names."""
    of = {name: _bare(name) for name in state_dict}
    return {
        "what is of a head for another use": [name for name, plain in of.items() if _OTHER_HEAD.match(plain)],
        "causal masks, which the model makes itself": [name for name, plain in of.items() if _MASK.search(plain)],
        "rotary frequencies, which its settings say": [name for name, plain in of.items() if _TURNS.search(plain)],
    }


def normalized(state_dict: Mapping[str, np.ndarray], body: str) -> StateDict:
    """A copy with the names that models with a head give, and without what is `left_out`.

    `body` is what they put before the names of all but the head, and models without one leave out.
    """
    unused = {name for names in left_out(state_dict).values() for name in names}
    named = {_bare(name): value for name, value in state_dict.items() if name not in unused}
    if len(named) + len(unused) < len(state_dict):
        raise UserError(
            "the weights have one tensor under two names, with a wrapper's prefix and without; get them anew"
        )
    if not any(name.startswith(body) for name in named):
        named = {name if name == HEAD else body + name: value for name, value in named.items()}
    return named


def _bare(name: str) -> str:
    """A tensor's name without what torch.compile and DistributedDataParallel put into it."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def checked(name: str, value: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as float32, once it has the shape it should and numbers that float32 can hold."""
    if value is None or value.shape != shape:
        raise misfit(name, value, shape)
    if value.dtype not in (np.float64, np.float32, np.float16, jnp.bfloat16):
        raise UserError(
            f"tensor {name} is {value.dtype}{list(shape)} where the model has float32{list(shape)}; convert it"
        )
    if value.dtype == np.float64 and np.abs(value).max(initial=0) > np.finfo(np.float32).max:
        raise UserError(f"tensor {name} is float64 with numbers beyond float32's; get them in float32")
    return value.astype(np.float32, copy=False)


def misfit(name: str, value: np.ndarray | None, shape: tuple[int, ...] | None) -> UserError:
    """The error that a tensor is of another shape than the model's, or that one of the two lacks it."""
    found = "none at all" if value is None else value.shape
    wanted = "none at all" if shape is None else shape
    return UserError(
        f"tensor {name} has shape {found} where the model has {wanted}; the weights are of another architecture, "
        "or of other settings: name the model they are of"
    )


def take_tied_head(there: StateDict, table: np.ndarray, name: str) -> None:
    """Take a head that repeats the token table, called `name`, out of `there`; `UserError` if it is another matrix."""
    if HEAD in there and not _same_bits(checked(HEAD, there.pop(HEAD), table.shape), table):
        raise UserError(f"tensor {HEAD} differs from {name}, and the settings say that the two are one")


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(np.ascontiguousarray(one).view(np.uint32), other.view(np.uint32))


def optimizer_order(config: GPTConfig, decayed: int | None = None) -> list[str]:
    """The tensors as nanoGPT's optimizer numbers them: first those that decay, the matrices, then the vectors.

    Where `decayed` says that two matrices do not decay, it is the order of older versions: both groups by the alphabet,
    and the two tables in the second.
    """
    shapes = {name_of(path): shape for path, shape in shapes_of(config).items()}
    matrices = [name for name in shapes if len(shapes[name]) >= 2]
    vectors = [name for name in shapes if len(shapes[name]) < 2]
    tables = {TABLE, "transformer.wpe.weight"}
    if decayed is not None and decayed == len(matrices) - len(tables):
        return [*sorted(set(matrices) - tables), *sorted(tables | set(vectors))]
    return [*matrices, *vectors]
