"""A Hugging Face GPT-2 folder: `config.json` and the weights beside it, read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from nanogpt_jax.config import GPTConfig, coerced
from nanogpt_jax.errors import UserError
from nanogpt_jax.files import replace_when_whole
from nanogpt_jax.foreign_files import read_bin, read_json, read_safetensors, reading
from nanogpt_jax.model import LAYER_NORM_EPSILON
from nanogpt_jax.state_dicts import HEAD, params_of, require_expressible, state_dict_of
from nanogpt_jax.training import Params

GPT2_END_OF_TEXT = 50_256
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


def read_hf_config(folder: Path) -> GPTConfig:
    """The shape of the model in a Hugging Face folder. Raises `UserError` if it is not a GPT-2 of that kind."""
    path = folder / "config.json"
    with reading(path):
        return gpt_config_of_hf(read_json(path))


def read_hf_params(folder: Path, config: GPTConfig) -> Params:
    """The parameters in a Hugging Face folder: from safetensors where it has them, else from `.bin`, whole or sharded.

    Raises `UserError` where they are missing, damaged, do not fit `config`, or lie in a file that could run code.
    """
    for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_bin)):
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.exists():
            state_dict = read(whole)
        elif index.exists():
            with reading(index):
                shards = sorted(set(read_json(index)["weight_map"].values()))
                for shard in shards:
                    if Path(shard).name != shard or Path(shard).suffix != whole.suffix:
                        raise UserError(f"it names {shard!r}, which is no {whole.suffix} file beside it; get it anew")
            state_dict = {name: value for shard in shards for name, value in read(folder / shard).items()}
        else:
            continue
        with reading(folder):
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
