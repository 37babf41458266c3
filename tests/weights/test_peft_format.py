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
import transformers
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from nanogpt_jax.core.config import GPTConfig, Settings
from nanogpt_jax.core.lora import init_delta, make_base, merge
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.train_step import IGNORED, Batch, init_state, loss_fn, make_train_step
from nanogpt_jax.weights import hf_format
from nanogpt_jax.weights.peft_format import (
    Adapter,
    is_peft_folder,
    modules_of,
    peft_tensors_of,
    read_peft,
    read_peft_settings,
    targets_of,
    write_peft,
)
from tests.helpers.foreign import GPT2, TOKENS, VOCABULARY, apply, logits_of, nothing_written, random_params
from tests.helpers.refusals import refusal
from tests.helpers.states import assert_same_bits

LLAMA = GPTConfig(
    block_size=8, vocab_size=VOCABULARY, n_layer=2, n_head=4, n_embd=16, bias=False, activation="swiglu",
    tie_word_embeddings=False, position="rope", rope_theta=500.0, norm="rms", n_kv_head=2, mlp_size=24,
)  # fmt: skip
MODELS = {"gpt2": GPT2, "llama": LLAMA, "qwen3": dataclasses.replace(LLAMA, qk_norm=True, head_size=6)}
RANK, ALPHA = 3, 4.5


def lora_config(**changes: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM", **changes})


def their_base(config: GPTConfig, params: Any, folder: Path) -> Any:
    """The model of `params` in transformers, without dropout."""
    folder.mkdir(exist_ok=True)
    hf_format.write_hf(folder, config, params)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def with_random_matrices(model: Any) -> Any:
    """A PEFT model none of whose A and B is zero."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=draw))
    return model


def random_adapter(config: GPTConfig, targets: str = "attn,mlp", base: str | None = None) -> Adapter:
    shapes = jax.eval_shape(lambda: init_delta(GPT(config), jax.random.key(0), RANK, targets))
    draw = np.random.default_rng(2)
    delta = jax.tree.map(lambda p: draw.normal(0, 0.2, p.shape).astype(np.float32), shapes)
    return Adapter(delta, RANK, ALPHA, targets, base)


def on_device(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def merged(params: Any, adapter: Adapter) -> Any:
    return merge(on_device(params), on_device(adapter.delta), adapter.alpha / adapter.rank)


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
    np.testing.assert_allclose(logits_of(model, TOKENS), ours, atol=1e-5 * np.abs(ours).max())
    assert np.abs(before - ours).max() > 0.1


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
    within = 1e-5 * np.abs(theirs).max()
    np.testing.assert_allclose(apply(GPT(config), merged(params, adapter)), theirs, atol=within)
    base = make_base(on_device(params), "float32", adapter.alpha / adapter.rank)
    beside = GPT(config).apply(base.with_delta(on_device(adapter.delta)), TOKENS)
    np.testing.assert_allclose(beside, theirs, atol=within)


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
