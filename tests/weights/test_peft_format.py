"""Adapters: PEFT's files give its logits here and ours there, both train alike, and what is not offered is named."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

from nanogpt_jax.core.lora import make_base
from nanogpt_jax.core.model import GPT
from nanogpt_jax.weights.peft_format import (
    is_peft_folder,
    modules_of,
    read_peft,
    read_peft_settings,
    targets_of,
    write_peft,
)
from tests.helpers.adapters import (
    ALPHA,
    LLAMA,
    MODELS,
    RANK,
    lora_config,
    merged,
    on_device,
    random_adapter,
    their_base,
    with_random_matrices,
)  # fmt: skip
from tests.helpers.foreign import GPT2, TOKENS, apply, logits_of, nothing_written, random_params
from tests.helpers.refusals import refusal
from tests.helpers.states import assert_same_bits


@pytest.mark.parametrize("targets", ["attn,mlp", "attn.c_attn", "attn.c_proj"])
@pytest.mark.parametrize("name", MODELS)
def test_our_adapters_give_our_logits_there(name: str, targets: str, tmp_path: Path) -> None:
    config = MODELS[name]
    params, adapter = random_params(config), random_adapter(config, targets)
    base = their_base(config, params, tmp_path / "base")
    write_peft(tmp_path, config, adapter)
    before = logits_of(base, TOKENS)
    model = peft.PeftModel.from_pretrained(base, tmp_path)
    ours = apply(GPT(config), merged(params, adapter))
    np.testing.assert_allclose(logits_of(model, TOKENS), ours, atol=1e-5)
    assert np.abs(before - ours).max() > 0.02


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # which PEFT then mends itself
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("name", "modules", "targets"),
    [
        ("gpt2", None, "attn.c_attn"),  # PEFT's own choice
        ("gpt2", ["c_proj"], "attn.c_proj,mlp.c_proj"),
        ("gpt2", ["mlp.c_proj", "c_fc"], "mlp.c_fc,mlp.c_proj"),
        ("llama", None, "attn.q,attn.v"),  # likewise
        ("llama", "all-linear", "attn.q,attn.k,attn.v,attn.c_proj,mlp.c_fc,mlp.c_gate,mlp.c_proj"),
        ("llama", ["k_proj", "mlp.gate_proj"], "attn.k,mlp.c_gate"),
        ("qwen3", ["q_proj", "o_proj"], "attn.q,attn.c_proj"),
    ],
)
def test_their_adapters_give_their_logits_here(
    name: str, modules: Any, targets: str, rslora: bool, tmp_path: Path
) -> None:
    config = MODELS[name]
    params = random_params(config)
    asked = lora_config(target_modules=modules, use_rslora=rslora, lora_dropout=0.1)
    model = with_random_matrices(peft.get_peft_model(their_base(config, params, tmp_path / "base"), asked)).eval()
    model.save_pretrained(tmp_path / "adapter")
    assert is_peft_folder(tmp_path / "adapter") and not is_peft_folder(tmp_path / "base")
    adapter = read_peft(tmp_path / "adapter", config)
    assert adapter.targets == targets and adapter.rank == RANK and adapter.base == str(tmp_path / "base")
    assert adapter.alpha == pytest.approx(ALPHA * (math.sqrt(RANK) if rslora else 1))
    theirs = logits_of(model, TOKENS)
    np.testing.assert_allclose(apply(GPT(config), merged(params, adapter)), theirs, atol=1e-5)
    base = make_base(on_device(params), "float32", adapter.alpha / adapter.rank)
    beside = GPT(config).apply(base.with_delta(on_device(adapter.delta)), TOKENS)
    np.testing.assert_allclose(beside, theirs, atol=1e-5)


@pytest.mark.parametrize("targets", ["attn,mlp", "attn.c_attn", "mlp.c_proj", "attn.c_proj,mlp.c_fc"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_back_to_the_bit(name: str, targets: str, tmp_path: Path) -> None:
    config = MODELS[name]
    written = random_adapter(config, targets, base="some/base")
    write_peft(tmp_path, config, written)
    read = read_peft(tmp_path, config)
    assert_same_bits(read.delta, written.delta)
    assert (read.rank, read.alpha, read.base) == (RANK, ALPHA, "some/base")
    assert targets_of(modules_of(targets, config), config) == read.targets
    write_peft(tmp_path, config, read._replace(targets=targets))
    assert read_peft_settings(tmp_path).modules == tuple(modules_of(targets, config))


def test_an_adapter_s_file_holds_nothing_but_the_delta(tmp_path: Path) -> None:
    write_peft(tmp_path, LLAMA, random_adapter(LLAMA, "attn.q,mlp.c_proj"))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    of_layer = {"self_attn.q_proj": (16, 16), "mlp.down_proj": (16, 24)}
    assert {name: (value.shape, value.dtype) for name, value in tensors.items()} == {
        f"base_model.model.model.layers.{layer}.{module}.{leaf}.weight": (shape, np.float32)
        for layer in range(2)
        for module, (outputs, inputs) in of_layer.items()
        for leaf, shape in (("lora_A", (RANK, inputs)), ("lora_B", (outputs, RANK)))
    }
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    header = 8 + int.from_bytes((tmp_path / "adapter_model.safetensors").read_bytes()[:8], "little")
    assert size == header + 4 * 2 * RANK * (16 + 16 + 24 + 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not offered here, where LoRA has 'LORA'; merge it"),
        ({"bias": "lora_only"}, "bias='lora_only' is not offered here, where LoRA has 'none'; merge"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head'] is not offered here, where LoRA has it unset"),
        ({"use_dora": True}, "use_dora=True is not offered"),
        ({"rank_pattern": {"c_fc": 4}}, "rank_pattern={'c_fc': 4} is not offered"),
        ({"alpha_pattern": {"c_fc": 4}}, "alpha_pattern={'c_fc': 4} is not offered"),
        ({"layers_to_transform": [0]}, "layers_to_transform=[0] is not offered"),
        ({"layers_to_transform": 0}, "layers_to_transform=0 is not offered"),
        ({"layer_replication": [[0, 1]]}, "layer_replication=[[0, 1]] is not offered"),
        ({"exclude_modules": ["c_fc"]}, "exclude_modules=['c_fc'] is not offered"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices=[1] is not offered"),
        ({"of_a_later_version": True}, "of_a_later_version=True is not offered"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not offered here, where LoRA has True or False"),
        ({"revision": "v2"}, "revision='v2' is not offered"),
        ({"r": 0}, "r=0 is smaller than 1; choose at least 1"),
        ({"r": True}, "r=True is a bool; give a int"),
        ({"lora_alpha": "8"}, "lora_alpha='8' is a str; give a float"),
        ({"lora_alpha": math.nan}, "lora_alpha=nan is no finite number; give the one"),
        ({"use_rslora": "yes"}, "use_rslora='yes' is a str; give a bool"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path=7 is a int; give a str"),
        ({"target_modules": None}, "target_modules=None is no list of names; give the modules' names"),
        ({"target_modules": []}, "target_modules=[] is no list of names"),
        ({"target_modules": r".*\.(c_attn|c_fc)"}, "is no list of names; give the modules' names, as ['c_attn']"),
        ({"target_modules": ["c_attn", "lm_head"]}, "names 'lm_head', and what may be trained here is c_attn"),
        ({"target_modules": ["wte"]}, "target_modules names 'wte'"),
        ({"target_modules": ["attn"]}, "target_modules names 'attn'"),
        ({"target_modules": ["q_proj"]}, "names 'q_proj', and what may be trained here is c_attn, c_proj, c_fc; merge"),
        ({"target_modules": ["h.1.attn.c_attn"]}, "leaves out 'transformer.h.0.attn.c_attn', and a delta is here"),
    ],
)  # fmt: skip
def test_what_a_delta_has_not_is_named(changes: Any, message: str, tmp_path: Path) -> None:
    write_peft(tmp_path, GPT2, random_adapter(GPT2))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    said = refusal(read_peft, tmp_path, GPT2)
    assert message in said and said.startswith(f"{path}: ")


@pytest.mark.parametrize("unset", [None, False, {}, []])
def test_what_is_unset_says_nothing(unset: Any, tmp_path: Path) -> None:
    write_peft(tmp_path, GPT2, random_adapter(GPT2))
    path = tmp_path / "adapter_config.json"
    document = json.loads(path.read_text()) | {"of_a_later_version": unset, "lora_dropout": 0.3, "revision": "main"}
    path.write_text(json.dumps(document))
    assert read_peft(tmp_path, GPT2).rank == RANK


C_FC = "base_model.model.transformer.h.1.mlp.c_fc.lora_A.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop(C_FC), f"tensor {C_FC} has shape none at all where the model has (3, 16)"),
        (lambda t: t.update({C_FC: t[C_FC].T.copy()}), f"tensor {C_FC} has shape (16, 3) where the model has (3, 16)"),
        (lambda t: t.update({C_FC: t[C_FC][:2]}), f"tensor {C_FC} has shape (2, 16) where the model has (3, 16)"),
        (lambda t: t.update({C_FC: t[C_FC].astype(np.int32)}), f"tensor {C_FC} is int32[3, 16]"),
        (lambda t: t.update({C_FC.replace("base_model.", ""): t.pop(C_FC)}), f"tensor {C_FC} has shape none at all"),
        (
            lambda t: t.update({"base_model.model.transformer.wte.weight": t[C_FC]}),
            "tensor base_model.model.transformer.wte.weight has shape (3, 16) where the model has none at all",
        ),
        (lambda t: t.update({C_FC.replace(".1.", ".2."): t[C_FC]}), "where the model has none at all"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(spoil: Any, message: str, tmp_path: Path) -> None:
    write_peft(tmp_path, GPT2, random_adapter(GPT2))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    spoil(tensors)
    save_file(tensors, path)
    said = refusal(read_peft, tmp_path, GPT2)
    assert message in said and said.startswith(f"{path}: ")


def test_numbers_of_sixteen_bits_are_widened(tmp_path: Path) -> None:
    written = random_adapter(GPT2)
    write_peft(tmp_path, GPT2, written)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: value.astype(jnp.bfloat16) for name, value in load_file(path).items()}, path)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(np.float32), written.delta)
    assert_same_bits(read_peft(tmp_path, GPT2).delta, rounded)


def test_files_that_are_damaged_missing_or_could_run_code_are_refused(tmp_path: Path) -> None:
    write_peft(tmp_path, GPT2, random_adapter(GPT2))
    settings, tensors = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4])
    assert "it is cut short or damaged, get it anew" in refusal(read_peft, tmp_path, GPT2)
    tensors.unlink()
    assert f"{tensors} is missing" in refusal(read_peft, tmp_path, GPT2)
    torch.save({}, tmp_path / "adapter_model.bin")
    said = refusal(read_peft, tmp_path, GPT2)
    assert "adapter_model.bin is a pickle, and adapter_model.safetensors alone is read; load it with peft" in said
    for text, message in (("{", "it is not JSON"), ("[1]", "it holds a list where an object belongs")):
        settings.write_text(text)
        assert message in refusal(read_peft_settings, tmp_path)


def test_a_model_that_transformers_has_not_has_no_adapter_there(tmp_path: Path) -> None:
    config = dataclasses.replace(LLAMA, activation="relu2")
    with nothing_written(tmp_path):
        assert "activation=relu2 has no equal" in refusal(write_peft, tmp_path, config, random_adapter(config))
