"""Llama and Qwen3: transformers' files give its logits here, ours give ours there, and what is not offered is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch as safetensors_torch
import torch
import transformers

from nanogpt_jax import convert
from nanogpt_jax.cli.text_settings import SampleSettings
from nanogpt_jax.cli.texts import sample_text
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.run import loop
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.start import begun
from nanogpt_jax.weights import hf_format, loading
from tests.helpers.foreign import (
    GPT2,
    TOKENS,
    VOCABULARY,
    Lab,
    apply,
    logits_of,
    nothing_written,
    random_params,
    state_dict_in,
)
from tests.helpers.refusals import refusal
from tests.helpers.states import assert_same_bits

LLAMA = GPTConfig(
    block_size=8, vocab_size=VOCABULARY, n_layer=2, n_head=4, n_embd=16, bias=False, activation="swiglu",
    tie_word_embeddings=False, position="rope", rope_theta=500.0, norm="rms", n_kv_head=2, mlp_size=24,
)  # fmt: skip
MODELS = {
    "llama": LLAMA,
    "smollm2": dataclasses.replace(LLAMA, n_head=3, n_kv_head=1, n_embd=18, mlp_size=48, tie_word_embeddings=True),
    "llama 3": dataclasses.replace(LLAMA, rope_scaling="llama3:8,1,4,4", bias=True),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, head_size=6, norm_epsilon=1e-6, rope_theta=1e6),
}


@pytest.fixture(scope="module", params=MODELS)
def theirs(request: Any, tmp_path_factory: Any) -> tuple[Any, Path, GPTConfig]:
    """A random model of transformers, and the folder that it was saved to by itself."""
    config = MODELS[request.param]
    document = hf_format.hf_config_of(config)
    shape = transformers.AutoConfig.for_model(**document)
    model = transformers.AutoModelForCausalLM.from_config(shape).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.3 + (p.ndim == 1))
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    return model, folder, config


def test_their_files_give_their_logits_here(theirs: Any) -> None:
    model, folder, config = theirs
    assert hf_format.read_hf_config(folder) == dataclasses.replace(config, head_size=config.head_width)
    weights = loading.open_weights(str(folder))
    ours = build_model(Settings(**weights.settings), weights.vocab_size, "cpu")
    np.testing.assert_allclose(apply(ours, weights.load(ours)), logits_of(model, TOKENS), atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_our_files_give_our_logits_there(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    params = random_params(config)
    hf_format.write_hf(tmp_path, config, params)
    model, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model).__name__ == ("Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM")
    assert not any(told.values())
    np.testing.assert_allclose(logits_of(model.eval(), TOKENS), apply(GPT(config), params), atol=1e-4)
    assert_same_bits(hf_format.read_hf_params(tmp_path, config), params)


@pytest.mark.parametrize("kind", ["shards", "bfloat16", "float16", "bin", "head twice", "frequencies"])
def test_every_kind_of_file_is_read(kind: str, tmp_path: Path, capsys: Any) -> None:
    config = MODELS["smollm2"]
    params = random_params(config)
    (tmp_path / "whole").mkdir()
    hf_format.write_hf(tmp_path / "whole", config, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    folder = tmp_path / "kind"
    if kind in ("bfloat16", "float16"):
        model.to(getattr(torch, kind)).save_pretrained(folder)
        params = jax.tree.map(lambda p: p.astype(getattr(jnp, kind)).astype(np.float32), params)
    elif kind == "shards":
        model.save_pretrained(folder, max_shard_size="2KB")
        assert (folder / "model.safetensors.index.json").exists()
    else:
        folder.mkdir()
        (folder / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
        state_dict = {name: value.clone() for name, value in model.state_dict().items()}
        if kind == "bin":
            del state_dict["lm_head.weight"]
        if kind == "frequencies":
            state_dict["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
        torch.save(state_dict, folder / "pytorch_model.bin")
    assert_same_bits(hf_format.read_hf_params(folder, config), params)
    assert ("leaving out rotary frequencies" in capsys.readouterr().err) == (kind == "frequencies")


def test_config_json_of_transformers_4_and_5_mean_the_same() -> None:
    scaled = MODELS["llama 3"]
    four = hf_format.hf_config_of(scaled)
    five = {name: value for name, value in four.items() if name not in ("rope_theta", "rope_scaling")}
    five["rope_parameters"] = {**four["rope_scaling"], "rope_theta": four["rope_theta"]}
    assert hf_format.gpt_config_of_hf(four) == hf_format.gpt_config_of_hf(five)
    assert (
        hf_format.gpt_config_of_hf(five | {"rope_scaling": {"rope_type": "default"}}).rope_scaling is None
    )  # as there
    older = four | {"rope_scaling": {**four["rope_scaling"], "type": "llama3"}, "head_dim": None}
    del older["rope_scaling"]["rope_type"]
    assert hf_format.gpt_config_of_hf(older) == dataclasses.replace(scaled, head_size=None)


def test_what_a_file_leaves_out_is_what_transformers_takes_it_for() -> None:
    for kind, least in (("llama", {}), ("qwen3", {"num_key_value_heads": None})):
        theirs = transformers.AutoConfig.for_model(kind, **least)
        ours = hf_format.gpt_config_of_hf({"model_type": kind, "vocab_size": 61, **least})
        assert (ours.block_size, ours.n_layer) == (theirs.max_position_embeddings, theirs.num_hidden_layers)
        assert (ours.n_embd, ours.mlp_width, ours.n_head) == (theirs.hidden_size, theirs.intermediate_size, 32)
        assert (ours.kv_heads, ours.head_width) == (theirs.num_key_value_heads, theirs.head_dim)
        assert (ours.norm_epsilon, ours.rope_theta) == (theirs.rms_norm_eps, theirs.rope_parameters["rope_theta"])
        assert (ours.bias, ours.tie_word_embeddings) == (theirs.attention_bias, theirs.tie_word_embeddings)
    assert hf_format.gpt_config_of_hf({"model_type": "qwen3", "vocab_size": 61}).head_width == 128


@pytest.mark.parametrize("factor", [32.0, 7.123456789, 1e6 + 1])
def test_every_digit_of_a_scaling_is_kept(factor: float) -> None:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 0.1, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 1_048_577
    document = hf_format.hf_config_of(LLAMA) | {"rope_scaling": scaling}
    assert hf_format.hf_config_of(hf_format.gpt_config_of_hf(document))["rope_scaling"] == scaling


def test_what_programs_add_to_names_and_leave_out_makes_no_difference() -> None:
    for config in (LLAMA, MODELS["smollm2"]):
        params = random_params(config)
        plain = hf_format.hf_state_dict_of(params, config)
        for variant in (
            {f"module._orig_mod.{name}": value for name, value in plain.items()},
            {name.removeprefix("model."): value for name, value in plain.items()},  # of a LlamaModel without a head
        ):
            assert_same_bits(hf_format.hf_params_of(variant, config), params)
        twice = {**plain, **{f"module.{name}": -value for name, value in plain.items()}}
        assert "one tensor under two names" in refusal(hf_format.hf_params_of, twice, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters has 'full_attention' of its own"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn' is not offered by this model"),
        ({"rope_parameters": {"type": "linear", "factor": 4.0}}, "rope_type='linear' is not offered"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor=None is a NoneType; give a float"),
        ({"rope_scaling": "none"}, "rope_scaling='none' is no object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not offered"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not offered by this model, which has False alone"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not offered by this model, which has 'silu' alone"),
        ({"pretraining_tp": 2}, "pretraining_tp=2 is not offered"),
        ({"attention_bias": True}, "attention_bias=True with mlp_bias=False is not offered"),
        ({"num_key_value_heads": 3}, "n_head=4 is not a multiple of n_kv_head=3"),
        ({"head_dim": 5}, "position=rope turns pairs, and heads of 5 are odd"),
        ({"num_hidden_layers": None}, "num_hidden_layers=None is a NoneType; give a int"),
        ({"model_type": "mistral"}, "model_type='mistral' is another architecture; name one of gpt2, llama, qwen3"),
        ({"model_type": "qwen3_moe"}, "model_type='qwen3_moe' is another architecture"),
        ({"model_type": ["llama"]}, "is another architecture"),
    ],
)  # fmt: skip
def test_what_this_model_has_not_is_named(changes: Any, message: str) -> None:
    assert message in refusal(hf_format.gpt_config_of_hf, hf_format.hf_config_of(LLAMA) | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "layer"}, "norm=layer has no equal in Hugging Face's Llama, which has rms alone"),
        ({"activation": "relu2"}, "activation=relu2 has no equal in Hugging Face's Llama, which has swiglu alone"),
        ({"logit_softcap": 5.0}, "logit_softcap=5.0 has no equal in"),
        ({"token_shift": True}, "token_shift=True has no equal in"),
        ({"qkv_bias": True}, "qkv_bias=True has no equal in Hugging Face's Llama"),
        (
            {"n_embd": 18, "head_size": 4},
            "n_embd=18 is not a multiple of n_head=4, as Hugging Face's Llama must have it",
        ),
        ({"qk_norm": True, "bias": True}, "bias=True has no equal in Hugging Face's Qwen3, which has False alone"),
    ],
)
def test_what_no_class_of_theirs_has_is_named(changes: Any, message: str) -> None:
    assert message in refusal(hf_format.hf_config_of, dataclasses.replace(LLAMA, **changes))


def test_numbers_of_eight_bits_are_refused(tmp_path: Path) -> None:
    hf_format.write_hf(tmp_path, LLAMA, random_params(LLAMA))
    tensors = safetensors_torch.load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    safetensors_torch.save_file(tensors, tmp_path / "model.safetensors")
    said = refusal(hf_format.read_hf_params, tmp_path, LLAMA)
    assert "model.safetensors has tensors of a type that is not read here" in said and "float8_e4m3" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 25}, "mlp.gate_proj.weight has shape (24, 16) where the model has (25, 16"),
        ({"num_hidden_layers": 1}, "model.layers.1."),
        ({"num_hidden_layers": 3}, "has shape none at all where the model has"),
        ({"num_key_value_heads": 4}, "self_attn.k_proj.weight has shape (8, 16)"),
        ({"tie_word_embeddings": True}, "tensor lm_head.weight differs from model.embed_tokens.weight"),
    ],
)  # fmt: skip
def test_a_folder_that_disagrees_with_itself_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    hf_format.write_hf(folder, LLAMA, random_params(LLAMA))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with nothing_written(tmp_path):
        said = refusal(convert.main, [str(folder), str(tmp_path / "out")])
    assert message in said and str(folder) in said


def test_a_preset_with_rotary_positions_may_read_less_than_the_weights_can(lab: Lab, tmp_path: Path) -> None:
    hf_format.write_hf(tmp_path, LLAMA, random_params(LLAMA))
    asked = dataclasses.replace(lab.settings, init_from=str(tmp_path))
    for changes, taken in (({"position": "rope", "block_size": 5}, 5), ({"position": "rope", "block_size": 9}, 8)):
        assert begun(dataclasses.replace(asked, **changes), {}).settings.block_size == taken
    assert begun(dataclasses.replace(asked, block_size=5), {}).settings.block_size == 8  # of another kind of preset
    too_long = dataclasses.replace(asked, position="rope", block_size=9)
    assert "block_size=9 does not fit" in refusal(begun, too_long, {"block_size": 9})


@pytest.mark.parametrize("name", ["gpt2", "llama", "smollm2", "qwen3"])
def test_from_their_folder_through_training_and_sampling_and_back(
    name: str, lab: Lab, tmp_path: Path, capsys: Any
) -> None:
    config = (MODELS | {"gpt2": GPT2})[name]
    hf, run = tmp_path / "hf", tmp_path / "run"
    hf.mkdir()
    hf_format.write_hf(hf, config, random_params(config))
    settings = dataclasses.replace(lab.settings, init_from=str(hf), out_dir=str(run), max_iters=2)
    loop.train(settings)
    loop.train(dataclasses.replace(settings, init_from="resume", max_iters=3), {"max_iters": 3})
    past = "reread" if name == "gpt2" else "rolling"
    sample_text(SampleSettings(init_from=str(run), num_samples=1, start="To", max_new_tokens=12, past_block=past))
    assert "To" in capsys.readouterr().out
    assert convert.main([str(run), str(tmp_path / "back"), "--to=hf"]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    weights = loading.open_weights(str(run))
    ours = build_model(Settings(**weights.settings), weights.vocab_size, "cpu")
    np.testing.assert_allclose(apply(ours, weights.load(ours)), logits_of(model, TOKENS), atol=1e-4)
    trained = hf_format.hf_params_of(state_dict_in(model), ours.config)
    assert not np.array_equal(trained["h_0"]["ln_1"]["scale"], random_params(config)["h_0"]["ln_1"]["scale"])
