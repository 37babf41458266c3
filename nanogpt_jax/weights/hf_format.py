"""A Hugging Face folder: `config.json` and the weights beside it, read and written; Llamas as `llama_format` says."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import coerced
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import Params
from nanogpt_jax.data.files import exists, is_file, names_in, replace_when_whole
from nanogpt_jax.weights.foreign_files import read_bin, read_json, read_safetensors, reading
from nanogpt_jax.weights.llama_format import (
    CLASSES,
    config_of_llama,
    llama_config_of,
    llama_state_dict_of,
    params_of_llama,
)
from nanogpt_jax.weights.state_dicts import (
    HEAD,
    StateDict,
    left_out,
    params_of,
    require_expressible,
    state_dict_of,
)

_HF_SHAPE = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}  # and its defaults
_HF_ACTIVATIONS: dict[str, Literal["gelu", "gelu_new", "relu"]] = {
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"), "gelu_new"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    "relu": "relu",
}  # transformers has many names for one function
# What GPT-2 may be told to do that this model does not; a file that leaves them out means these values.
_HF_FIXED: dict[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}


def gpt_config_of_hf(document: Any) -> GPTConfig:
    """The shape that a Hugging Face `config.json` describes; what it leaves out has GPT-2's default.

    Raises `UserError` for another architecture, and for options of GPT-2's that this model does not have.
    """
    if not isinstance(document, dict):
        raise UserError(f"config.json holds a {type(document).__name__} where an object belongs; get it anew")
    if document.get("model_type") in tuple(CLASSES):
        return config_of_llama(document)
    if document.get("model_type") != "gpt2":
        known = ", ".join(("gpt2", *CLASSES))
        raise UserError(f"model_type={document.get('model_type')!r} is another architecture; name one of {known}")
    shape = {name: coerced(name, document.get(name, usual), int, ()) for name, usual in _HF_SHAPE.items()}
    for name, values in _HF_FIXED.items():
        if name in document and document[name] not in values:
            raise UserError(
                f"{name}={document[name]!r} is not offered by this model, which has {values[-1]!r} alone; name another"
            )
    activation = document.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _HF_ACTIVATIONS:
        raise UserError(
            f"activation_function={activation!r} is not one of {', '.join(_HF_ACTIVATIONS)}; name a model that has one"
        )
    return GPTConfig(
        block_size=shape.pop("n_positions"),
        **shape,
        dropout=coerced("resid_pdrop", document.get("resid_pdrop", 0.1), float, ()),
        activation=_HF_ACTIVATIONS[activation],
        mlp_size=coerced("n_inner", document.get("n_inner"), int | None, ()),
        norm_epsilon=coerced("layer_norm_epsilon", document.get("layer_norm_epsilon", 1e-5), float, ()),
        tie_word_embeddings=coerced("tie_word_embeddings", document.get("tie_word_embeddings", True), bool, ()),
    )


def hf_config_of(config: GPTConfig, begin: int | None = None, end: int | None = None) -> dict[str, Any]:
    """The `config.json` of the same model in Hugging Face's terms. Raises `UserError` if there is none.

    `begin` and `end` are the tokens that begin and end a text, if there are such.
    """
    if config.position == "rope":
        return llama_config_of(config, begin, end)
    require_expressible(config, "hf")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.mlp_size,
        "activation_function": config.activation,
        "layer_norm_epsilon": config.norm_epsilon,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": begin,
        "eos_token_id": end,
        "dtype": "float32",
    }


def hf_state_dict_of(params: Params, config: GPTConfig) -> StateDict:
    """The parameters as the `state_dict()` of the class that `hf_config_of` names has them; a tied head twice."""
    return llama_state_dict_of(params, config) if config.position == "rope" else state_dict_of(params, config, "hf")


def hf_params_of(state_dict: Mapping[str, np.ndarray], config: GPTConfig) -> Params:
    """The parameters in such a `state_dict`. Raises `UserError` for one that does not fit `config`."""
    return params_of_llama(state_dict, config) if config.position == "rope" else params_of(state_dict, config, "hf")


def is_hf_folder(folder: Path) -> bool:
    """Whether weights lie in `folder` under the names that `save_pretrained` gives them."""
    kinds = ("model*.safetensors*", "pytorch_model*.bin*")
    return any(fnmatch.fnmatch(name, kind) and is_file(folder / name) for name in names_in(folder) for kind in kinds)


def require_readable(path: Path) -> None:
    """Raise a `UserError` that says what lies at `path`, if it is a model whose weights are in a form not read here."""
    if path.suffix == ".safetensors" or path.name.startswith("pytorch_model"):
        raise UserError(f"{path} is a file of a Hugging Face folder; name the folder: {path.parent}")
    for pattern, what in _UNREAD.items():
        found = sorted(path.glob(pattern))
        if found:
            raise UserError(f"{path} holds {what.format(found[0].name)}")
    if _is_of_a_model(path / "config.json"):
        raise UserError(f"{path} holds the config.json of a model and no weights ({_WHOLE}); get all of its files")


def _is_of_a_model(config: Path) -> bool:
    """Whether that is the `config.json` of a model, and not of a run of ours, or of nothing."""
    with contextlib.suppress(UserError):
        document = read_json(config)
        return isinstance(document, dict) and "model_type" in document
    return False


_WHOLE = "model.safetensors or pytorch_model.bin, whole or with its index"
_SAVE_ANEW = (
    "get its model.safetensors, or make one with transformers 4: "
    "AutoModelForCausalLM.from_pretrained(..., from_{}=True)"
)
# What else a folder of weights may hold, and what to do then.
_UNREAD = {
    "adapter_model.*": "the matrices of a LoRA adapter ({}) without its adapter_config.json; get all of its files",
    "flax_model*.msgpack*": "Flax weights ({}) alone, which are not read here; " + _SAVE_ANEW.format("flax"),
    "tf_model*.h5*": "TensorFlow weights ({}) alone, which are not read here; " + _SAVE_ANEW.format("tf"),
    "model.ckpt*": "a TensorFlow 1 checkpoint ({}) alone, which is not read here; get its model.safetensors",
    "*.gguf": "GGUF weights ({}) alone, which are not read here; get its model.safetensors",
    "*.onnx": "an ONNX program ({}) alone, which is not read here; get its model.safetensors",
}


def read_hf_config(folder: Path) -> GPTConfig:
    """The shape of the model in a Hugging Face folder. Raises `UserError` if it is of none of the kinds read here."""
    path = folder / "config.json"
    with reading(path):
        return gpt_config_of_hf(read_json(path))


def read_hf_params(folder: Path, config: GPTConfig) -> Params:
    """The parameters in a Hugging Face folder: from safetensors where it has them, else from `.bin`, whole or sharded.

    Raises `UserError` where they are missing, damaged, do not fit `config`, or lie in a file that could run code.
    """
    for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_bin)):
        whole, index = folder / name, folder / f"{name}.index.json"
        if exists(whole):
            state_dict = read(whole)
        elif exists(index):
            with reading(index):
                shards = sorted(set(read_json(index)["weight_map"].values()))
                for shard in shards:
                    if Path(shard).name != shard or Path(shard).suffix != whole.suffix:
                        raise UserError(f"it names {shard!r}, which is no {whole.suffix} file beside it; get it anew")
            state_dict = {name: value for shard in shards for name, value in read(folder / shard).items()}
        else:
            continue
        with reading(folder):
            params = hf_params_of(state_dict, config)
        for what, names in left_out(state_dict).items():
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                print(f"{folder}: leaving out {what} ({names[0]}{more})", file=sys.stderr, flush=True)
        return params
    raise UserError(f"{folder} has no weights ({_WHOLE}); get all of its files")


def write_hf(folder: Path, config: GPTConfig, params: Params, begin: int | None = None, end: int | None = None) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, as `from_pretrained` reads them; see `hf_config_of`.

    Raises `UserError`, with nothing written, for a model that none of Hugging Face's classes can express.
    """
    document = hf_config_of(config, begin, end)
    state_dict = hf_state_dict_of(params, config)
    if config.tie_word_embeddings:
        del state_dict[HEAD]
    write_pair(folder / "config.json", document, folder / "model.safetensors", state_dict)


def write_pair(settings: Path, document: Mapping[str, Any], weights: Path, tensors: StateDict) -> None:
    """Write two files of one folder: the settings as JSON, and the tensors, which PyTorch's libraries then read."""
    with replace_when_whole(settings, "w") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
    save_file(tensors, weights, metadata={"format": "pt"})  # which from_pretrained insists on
    weights.chmod(settings.stat().st_mode)  # safetensors makes files private
