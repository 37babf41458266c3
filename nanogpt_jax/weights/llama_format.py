"""Llama and Qwen3 as Hugging Face keeps them: their `config.json`, and the names and axes of their tensors; pure.

`hf_format.py` reads and writes the files, and has GPT-2's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import coerced
from nanogpt_jax.core.shape import GPTConfig, rope_scaling
from nanogpt_jax.core.train_step import Params
from nanogpt_jax.weights.state_dicts import (
    HEAD,
    StateDict,
    checked,
    misfit,
    normalized,
    require_values,
    shapes_of,
    take_tied_head,
)

CLASSES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""By `model_type`: the architectures that are read and written here."""

TABLE = "model.embed_tokens.weight"

_SIZES = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "mlp_size": "intermediate_size",
}
# What the two classes take for what their files leave out.
_USUAL: dict[str, dict[str, int]] = {
    "llama": {
        "vocab_size": 32_000, "max_position_embeddings": 2048, "num_hidden_layers": 32, "num_attention_heads": 32,
        "hidden_size": 4096, "intermediate_size": 11_008,
    },
    "qwen3": {
        "vocab_size": 151_936, "max_position_embeddings": 32_768, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "hidden_size": 4096, "intermediate_size": 22_016, "head_dim": 128,
    },
}  # fmt: skip
# What such a model may be told to do that this one does not; a file that leaves them out means the first of these.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "pretraining_tp": (1, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
}
_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def config_of_llama(document: Mapping[str, Any]) -> GPTConfig:
    """The shape that the `config.json` of a Llama or Qwen3 describes, as transformers 4 writes it or as 5 does.

    What it leaves out has the default of its class. Raises `UserError` that names what such a model has and this one
    has not.
    """
    kind = document["model_type"]
    document = {**_USUAL[kind], **document}
    for name, values in _FIXED.items():
        if document.get(name, values[0]) not in values:
            raise UserError(
                f"{name}={document[name]!r} is not offered by this model, which has {values[0]!r} alone; name another"
            )
    windows = sorted({layer for layer in document.get("layer_types") or () if layer != "full_attention"})
    if windows:
        raise UserError(
            f"layer_types has {windows[0]!r}, and this model's attention is full in every layer; name another"
        )
    sizes = {ours: coerced(theirs, document.get(theirs), int, ()) for ours, theirs in _SIZES.items()}
    biases = [coerced(name, document.get(name, False), bool, ()) for name in ("attention_bias", "mlp_bias")]
    if biases[0] != biases[1]:
        raise UserError(
            f"attention_bias={biases[0]} with mlp_bias={biases[1]} is not offered by this model, which has biases in "
            "both or in neither; name another"
        )
    theta, scaling = _rotation(document)
    return GPTConfig(
        **sizes,
        bias=biases[0],
        activation="swiglu",
        tie_word_embeddings=coerced("tie_word_embeddings", document.get("tie_word_embeddings", False), bool, ()),
        position="rope",
        rope_theta=theta,
        rope_scaling=scaling,
        norm="rms",
        norm_epsilon=coerced("rms_norm_eps", document.get("rms_norm_eps", 1e-6), float, ()),
        qk_norm=kind == "qwen3",
        n_kv_head=coerced("num_key_value_heads", document.get("num_key_value_heads"), int | None, ()),
        head_size=coerced("head_dim", document.get("head_dim"), int | None, ()),
    )


def _rotation(document: Mapping[str, Any]) -> tuple[float, str | None]:
    """The base of the rotary frequencies, and their scaling as the setting `rope_scaling` has it."""
    where = "rope_scaling" if document.get("rope_scaling") else "rope_parameters"  # which is what transformers takes
    said = document.get(where) or {}
    if not isinstance(said, Mapping):
        raise UserError(f"{where}={said!r} is no object of settings; get the file anew")
    of_layers = [name for name, value in said.items() if isinstance(value, Mapping)]
    if of_layers:
        raise UserError(
            f"{where} has {of_layers[0]!r} of its own, and this model turns alike in every layer; name another"
        )
    theta = said.get("rope_theta", document.get("rope_theta", 10_000.0))
    theta = coerced("rope_theta", theta, float, ())
    kind = said.get("rope_type", said.get("type", "default"))
    if said.get("partial_rotary_factor", document.get("partial_rotary_factor", 1.0)) not in (1, None):
        raise UserError("partial_rotary_factor is not offered by this model, which turns whole heads; name another")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(
            f"rope_type={kind!r} is not offered by this model, which has default and llama3; name a model of those"
        )
    numbers = [coerced(name, said.get(name), float, ()) for name in _SCALING]
    return theta, "llama3:" + ",".join(repr(number).removesuffix(".0") for number in numbers)


def kind_of(config: GPTConfig) -> str:
    """The `model_type` of a model with rotary positions. Raises `UserError` that names the setting if it has none."""
    kind = "qwen3" if config.qk_norm else "llama"
    only: dict[str, tuple[Any, ...]] = {
        "norm": ("rms",),
        "activation": ("swiglu",),
        "token_shift": (False,),
        "logit_softcap": (None,),
        "lm_head_bias": (False,),
        "has_qkv_bias": (config.bias,),
    }
    if kind == "qwen3":
        only |= {"bias": (False,)}
    require_values(config, only, f"Hugging Face's {kind.capitalize()}")
    if kind == "llama" and config.n_embd % config.n_head:
        raise UserError(
            f"n_embd={config.n_embd} is not a multiple of n_head={config.n_head}, as Hugging Face's Llama must have it "
            "whatever its head_size; keep the model in the form it has"
        )
    return kind


def llama_config_of(config: GPTConfig, begin: int | None = None, end: int | None = None) -> dict[str, Any]:
    """The `config.json` of the same model, as transformers 4 has it and 5 reads it. Raises as `kind_of`.

    `begin` and `end` are the tokens that begin and end a text, if there are such.
    """
    kind = kind_of(config)
    scaling = None
    if config.rope_scaling is not None:
        numbers = rope_scaling(config.rope_scaling)
        scaling = {"rope_type": "llama3", **dict(zip(_SCALING, numbers, strict=True))}
        scaling[_SCALING[-1]] = int(numbers.original)
    sizes = {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    return {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        **sizes,
        "intermediate_size": config.mlp_width,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "attention_bias": config.bias,
        "attention_dropout": config.dropout,
        **({"mlp_bias": config.bias} if kind == "llama" else {"use_sliding_window": False}),
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": begin,
        "eos_token_id": end,
        "dtype": "float32",
    }


def llama_state_dict_of(params: Params, config: GPTConfig) -> StateDict:
    """The parameters under the names and with the axes, (out, in), of the class of `kind_of`; a tied head twice."""
    kind_of(config)
    flat, state_dict = flatten_dict(params), {}
    for path in shapes_of(config):
        names = names_of(path)
        parts = np.split(np.asarray(flat[path]), config.qkv_cuts if len(names) > 1 else (), axis=-1)
        for name, part in zip(names, parts, strict=True):
            state_dict[name] = np.ascontiguousarray(part.T if path[-1] == "kernel" else part)
    if config.tie_word_embeddings:
        state_dict[HEAD] = state_dict[TABLE]
    return state_dict


def params_of_llama(state_dict: Mapping[str, np.ndarray], config: GPTConfig) -> Params:
    """The linen parameters that the tensors of a Llama or Qwen3 hold: the inverse of `llama_state_dict_of`.

    As with `state_dicts.params_of` other types of numbers are made float32, wrappers' prefixes and names without
    `model.` make no difference, and a tensor that is missing, too many or of another shape is a `UserError`.
    """
    there, flat = normalized(state_dict, "model."), {}
    for path, shape in shapes_of(config).items():
        names, is_kernel = names_of(path), path[-1] == "kernel"
        cuts = config.qkv_cuts if len(names) > 1 else ()
        widths = np.diff([0, *cuts, shape[-1]])
        parts = []
        for name, width in zip(names, widths, strict=True):
            wanted = (int(width), shape[0]) if is_kernel else (*shape[:-1], int(width))
            value = checked(name, there.pop(name, None), wanted)
            parts.append(value.T if is_kernel else value)
        flat[path] = np.ascontiguousarray(np.concatenate(parts, axis=-1))
    if config.tie_word_embeddings:
        take_tied_head(there, flat["wte", "embedding"], TABLE)
    for name, value in there.items():
        raise misfit(name, value, None)
    return unflatten_dict(flat)


_OF_BLOCK = {
    ("ln_1",): ("input_layernorm",),
    ("attn", "c_attn"): ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("attn", "q_norm"): ("self_attn.q_norm",),
    ("attn", "k_norm"): ("self_attn.k_norm",),
    ("attn", "c_proj"): ("self_attn.o_proj",),
    ("ln_2",): ("post_attention_layernorm",),
    ("mlp", "c_gate"): ("mlp.gate_proj",),
    ("mlp", "c_fc"): ("mlp.up_proj",),
    ("mlp", "c_proj"): ("mlp.down_proj",),
}


def names_of(path: tuple[str, ...]) -> list[str]:
    """What the tensors of one parameter are called: one, but for queries, keys and values, which are three there."""
    top, *inside, leaf = path
    end = "bias" if leaf == "bias" else "weight"
    if not top.startswith("h_"):
        return [{"wte": TABLE, "ln_f": "model.norm.weight", "lm_head": HEAD}[top]]
    return [f"model.layers.{top[2:]}.{name}.{end}" for name in _OF_BLOCK[tuple(inside)]]
