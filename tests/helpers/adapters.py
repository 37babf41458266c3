"""LoRA on small models in PEFT and here: bases of random weights, and deltas to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch
import transformers

from nanogpt_jax.core.lora import abstract_delta, merge
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.weights import hf_format
from nanogpt_jax.weights.peft_format import Adapter
from tests.helpers.foreign import GPT2, VOCABULARY

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
    shapes = abstract_delta(GPT(config), RANK, targets)
    draw = np.random.default_rng(2)
    delta = jax.tree.map(lambda p: draw.normal(0, 0.2, p.shape).astype(np.float32), shapes)
    return Adapter(delta, RANK, ALPHA, targets, base)


def on_device(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def merged(params: Any, adapter: Adapter) -> Any:
    return merge(on_device(params), on_device(adapter.delta), adapter.alpha / adapter.rank)
