"""Weights in the shapes and names that nanoGPT and Hugging Face's GPT-2 give them, and the files they keep them in.

The mapping is pure and exact to the bit; the functions at the end read and write `.pt`, `.bin` and safetensors files.
Nothing here runs code out of a file: pickles are opened by torch with `weights_only=True`, or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

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
                "keep the model in the form it has"
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
    end_of_text = GPT2_END_OF_TEXT if config.vocab_size > GPT2_END_OF_TEXT else None
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


class Moments(NamedTuple):
    """AdamW's memory: the number of updates, and the running means of the gradients and of their squares."""

    count: int
    mu: Params
    nu: Params


def moments_of(opt_state: optax.OptState) -> Moments:
    """The moments inside an optax state. Raises `UserError` if its optimizer is not AdamW."""
    here = _in_adam(opt_state)
    count, mu, nu = (optax.tree.get(opt_state, name, filtering=here) for name in Moments._fields)
    return Moments(int(count), mu, nu)


def with_moments(opt_state: optax.OptState, moments: Moments, step: int) -> optax.OptState:
    """`opt_state` with AdamW's moments, and a learning-rate schedule that stands before update `step`."""
    opt_state = optax.tree.set(opt_state, count=np.asarray(step, np.int32))  # every counter; AdamW's own comes next
    count = np.asarray(moments.count, np.int32)
    return optax.tree.set(opt_state, _in_adam(opt_state), count=count, mu=moments.mu, nu=moments.nu)


def _in_adam(opt_state: optax.OptState) -> Callable[[tuple[Any, ...], Any], bool]:
    """What tells optax which fields are AdamW's: those that lie beside ``mu``, wherever the chain has it."""
    found = optax.tree.get_all_with_path(opt_state, "mu")
    if len(found) != 1:
        raise UserError(
            "the run's optimizer is not AdamW, the only one whose moments nanoGPT has; convert to hf instead"
        )
    where = found[0][0][:-1]
    return lambda path, _: path[:-1] == where


class NanoGPTCheckpoint:
    """A nanoGPT `ckpt.pt`, opened; its tensors are read when asked for.

    Attributes:
        config: the model's shape.
        step: updates made.
        best_val_loss: the loss it was saved with; None where it has none.
    """

    def __init__(self, path: Path) -> None:
        """Raises `UserError` for what is not a checkpoint of nanoGPT's, and for a file that could run code."""
        self._path = path
        self._document = _unpickled(path)
        for name in ("model", "model_args"):
            if not isinstance(self._document, dict) or not isinstance(self._document.get(name), dict):
                raise UserError(f"{path} is not a nanoGPT checkpoint (it has no {name!r}); name a ckpt.pt of nanoGPT's")
        with _reading(path):
            self.config = gpt_config_of_nanogpt(self._document["model_args"])
            self.step = coerced("iter_num", self._document.get("iter_num", 0), int, ())
            loss = float(self._document.get("best_val_loss", _NO_LOSS_YET))
            self.best_val_loss = loss if loss < _NO_LOSS_YET else None

    def data_set(self, data_dir: Path) -> Path | None:
        """The folder of the data set it was trained on; None where it does not say."""
        with _reading(self._path):
            name = self._document.get("config", {}).get("dataset")
            return None if name is None else data_dir / name

    def settings(self) -> Settings:
        """Its shape, and those of nanoGPT's settings that ours has too. Raises `UserError` for one out of range."""
        with _reading(self._path):
            config = self._document.get("config", {})
            settings = {name: config[name] for name in _NANOGPT_SETTINGS if name in config}
            if config.get("dtype") == "float32":
                settings["dtype"] = "float32"
            # A resumed run of nanoGPT's goes by what its optimizer remembers, whatever `config` says.
            for group in self._document.get("optimizer", {}).get("param_groups", [])[:1]:
                beta1, beta2 = group["betas"]
                settings |= {"beta1": beta1, "beta2": beta2, "weight_decay": group["weight_decay"]}
            return Settings(**settings, **vars(self.config))

    def params(self) -> Params:
        """The parameters. Raises `UserError` if they do not fit `config`."""
        with _reading(self._path):
            return params_of(_arrays(self._document["model"]), self.config, "nanogpt")

    def moments(self) -> Moments | None:
        """AdamW's moments; None where it has made no update. Raises `UserError` if they do not fit `config`."""
        optimizer = self._document.get("optimizer")
        if not optimizer:
            return None
        with _reading(f"{self._path}: optimizer"):
            if not optimizer["state"]:
                return None
            indices = [i for group in optimizer["param_groups"] for i in group["params"]]
            names = _optimizer_order(self.config)
            if len(indices) != len(names):
                raise UserError(f"it has moments of {len(indices)} tensors where the model has {len(names)} tensors")
            entries = {name: optimizer["state"][i] for name, i in zip(names, indices, strict=True)}
            count, *others = {int(entry["step"]) for entry in entries.values()}
            if others:
                raise UserError(f"its tensors have made {count} and {others[0]} updates; all must have made as many")
            mu, nu = (
                params_of(_arrays({name: entry[mean] for name, entry in entries.items()}), self.config, "nanogpt")
                for mean in ("exp_avg", "exp_avg_sq")
            )
            return Moments(count, mu, nu)


@dataclass(frozen=True)
class Snapshot:
    """A model and where its training stands, on the way from one format to another.

    Attributes:
        config: the model's shape.
        params: its parameters.
        settings: those of its run.
        tokenizer: the JSON of the one it was trained with; None where that is not known.
        step: updates made.
        best_val_loss: the lowest estimate of the validation loss so far.
        moments: AdamW's; None before the first update.
    """

    config: GPTConfig
    params: Params
    settings: Settings
    tokenizer: dict[str, Any] | None = None
    step: int = 0
    best_val_loss: float | None = None
    moments: Moments | None = None


def write_nanogpt(path: Path, snapshot: Snapshot) -> None:
    """Write a `ckpt.pt` that nanoGPT's `sample.py` and `train.py --init_from=resume` load as one of their own.

    Raises `UserError`, with nothing written, for a model that nanoGPT cannot express.
    """
    config, settings = snapshot.config, snapshot.settings
    model_args = nanogpt_model_args_of(config)
    torch = _torch(path)
    tensors = {name: torch.tensor(value) for name, value in state_dict_of(snapshot.params, config, "nanogpt").items()}
    tensors[HEAD] = tensors[TABLE]
    names = _optimizer_order(config)
    groups = [
        {"params": [tensors[name] for name in names if tensors[name].ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [tensors[name] for name in names if tensors[name].ndim < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas).state_dict()
    if snapshot.moments is not None:
        count = float(snapshot.moments.count)
        mu, nu = (state_dict_of(each, config, "nanogpt") for each in snapshot.moments[1:])
        optimizer["state"] = {
            i: {"step": torch.tensor(count), "exp_avg": torch.tensor(mu[name]), "exp_avg_sq": torch.tensor(nu[name])}
            for i, name in enumerate(names)
        }
    document = {
        "model": tensors,
        "optimizer": optimizer,
        "model_args": model_args,
        "iter_num": snapshot.step,
        "best_val_loss": _NO_LOSS_YET if snapshot.best_val_loss is None else snapshot.best_val_loss,
        "config": model_args | {name: getattr(settings, name) for name in _NANOGPT_SETTINGS},
    }
    with replace_when_whole(path) as file:
        torch.save(document, file)


def read_hf_config(folder: Path) -> GPTConfig:
    """The shape of the model in a Hugging Face folder. Raises `UserError` if it is not a GPT-2 of that kind."""
    path = folder / "config.json"
    with _reading(path):
        return gpt_config_of_hf(_json(path))


def read_hf_params(folder: Path, config: GPTConfig) -> Params:
    """The parameters in a Hugging Face folder: from safetensors where it has them, else from `.bin`, whole or sharded.

    Raises `UserError` where they are missing, damaged, do not fit `config`, or lie in a file that could run code.
    """
    for name, read in (("model.safetensors", _safetensors), ("pytorch_model.bin", _bin)):
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.exists():
            state_dict = read(whole)
        elif index.exists():
            with _reading(index):
                shards = sorted(set(_json(index)["weight_map"].values()))
                for shard in shards:
                    if Path(shard).name != shard or Path(shard).suffix != whole.suffix:
                        raise UserError(f"it names {shard!r}, which is no {whole.suffix} file beside it; get it anew")
            state_dict = {name: value for shard in shards for name, value in read(folder / shard).items()}
        else:
            continue
        with _reading(folder):
            return params_of(state_dict, config, "hf")
    raise UserError(f"{folder} has no weights (model.safetensors or pytorch_model.bin, whole or with its index)")


def write_hf(folder: Path, config: GPTConfig, params: Params) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, as `from_pretrained` reads them.

    Raises `UserError`, with nothing written, for a model that Hugging Face's GPT-2 cannot express.
    """
    document = hf_config_of(config)
    state_dict = state_dict_of(params, config, "hf")
    if config.tie_word_embeddings:
        del state_dict[HEAD]
    settings, weights = folder / "config.json", folder / "model.safetensors"
    with replace_when_whole(settings, "w") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
    save_file(state_dict, weights, metadata={"format": "pt"})  # which from_pretrained insists on
    weights.chmod(settings.stat().st_mode)  # safetensors makes files private


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


def _optimizer_order(config: GPTConfig) -> list[str]:
    """The tensors as nanoGPT's optimizer numbers them: first those that decay, the matrices, then the vectors."""
    shapes = _shapes(config)
    return [_name(path) for path in sorted(shapes, key=lambda path: len(shapes[path]) < 2)]


def _safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; get all the files of the model") from error
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({_in_short(error)}); it is cut short or damaged, get it anew"
        ) from error


def _bin(path: Path) -> StateDict:
    document = _unpickled(path)
    with _reading(path):
        return _arrays(document)


def _unpickled(path: Path) -> Any:
    """What `torch.save` put into a file, on the CPU, if it is made of tensors and plain values alone.

    Raises `UserError` where PyTorch is not installed, the file is missing or damaged, or it could run code.
    """
    torch = _torch(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # what is wrong reaches the user as an error
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; check the name, or get all the files of the model") from error
    except pickle.UnpicklingError as error:
        foreign = _foreign_object(path, str(error))
        if foreign is not None:
            raise UserError(
                f"{path} holds {foreign}, which is code and not a tensor; nothing of it was run, get a file of tensors"
            ) from None
        raise UserError(
            f"{path} is not a file of tensors by torch.save; it is damaged, or of another program"
        ) from error
    except Exception as error:  # torch raises many kinds; to a user they all mean this
        raise UserError(
            f"{path} cannot be read ({_in_short(error)}); it is cut short or damaged, get it anew"
        ) from error


def _foreign_object(path: Path, message: str) -> str | None:
    """The first object that a refused pickle calls for: as torch names it, or else as it stands in the file."""
    named = re.search(r"GLOBAL ([\w.]+)", message)
    if named:
        return named[1]
    strings: list[str] = []
    with contextlib.suppress(ValueError), path.open("rb") as file:
        for opcode, argument, _ in pickletools.genops(file):  # reads, and runs nothing
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    return None


def _torch(path: Path) -> Any:
    """The torch module, which only `.pt` and `.bin` files need."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is PyTorch's kind of file, and PyTorch is not installed; run {_TORCH_INSTALL}"
        ) from None
    return torch


def _arrays(tensors: Mapping[str, Any]) -> StateDict:
    """torch's tensors as numpy's; the 16-bit types, of which numpy lacks one, are widened."""
    return {
        name: (tensor.float() if tensor.itemsize == 2 and tensor.is_floating_point() else tensor).detach().numpy()
        for name, tensor in tensors.items()
    }


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is not JSON ({error}); it is damaged, get it anew") from error


@contextlib.contextmanager
def _reading(what: str | Path) -> Iterator[None]:
    """Say of a complaint what it is about, and make one of what goes wrong in a document of another form than ours."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{what} is damaged, or of another program ({_in_short(error)})") from error


def _in_short(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0][:200]}" if said else type(error).__name__
