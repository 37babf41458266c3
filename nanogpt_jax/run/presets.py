"""Settings by name: nanoGPT's own configurations, the notebook's models, their twins of today, SmolLM2 and Qwen3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError, did_you_mean

_GPT2 = dict(
    dataset="openwebtext", vocab_size=50304, batch_size=12, block_size=1024, gradient_accumulation_steps=40,
    max_iters=600_000, lr_decay_iters=600_000, eval_interval=1000, eval_iters=200, log_interval=10, weight_decay=0.1,
)  # fmt: skip

_CHARACTERS = dict(
    dataset="shakespeare_char", gradient_accumulation_steps=1, eval_interval=250, log_interval=10,
    always_save_checkpoint=False, learning_rate=1e-3, min_lr=1e-4, beta2=0.99, warmup_iters=100,
)  # fmt: skip

# The notebook trains with PyTorch's AdamW as it comes: no clipping, no schedule, decay 0.01.
_NOTEBOOK = dict(
    dataset="shakespeare_char", gradient_accumulation_steps=1, log_interval=10, always_save_checkpoint=False,
    decay_lr=False, grad_clip=0.0, weight_decay=0.01, beta2=0.999, eval_iters=200,
)  # fmt: skip

# What the blocks of 2024 have and GPT-2's have not, as modded-nanogpt and nanochat put it together.
_MODERN = dict(
    position="rope", norm="rms", qk_norm=True, activation="relu2", proj_init_scale=0.0, tie_word_embeddings=False,
)  # fmt: skip

# Muon for the matrices under a schedule that ends at zero. What is best of it depends on how long one trains.
_MUON = dict(optimizer="muon", schedule="wsd", cooldown_fraction=0.9, min_lr=0.0, beta1=0.8, beta2=0.95, grad_clip=0.0)
_RECORD: Mapping[str, Any] = {**_CHARACTERS, **_MODERN, **_MUON}

# Llama's blocks; a text of one's own in the tokens of the model has the name of the data set.
_LLAMA = dict(_GPT2, position="rope", norm="rms", activation="swiglu", block_size=2048)

# fmt: off
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "bigram": dict(_NOTEBOOK, out_dir="out-bigram", model="bigram", batch_size=32, block_size=8, max_iters=3000, eval_interval=300, learning_rate=1e-2),
    "gpt_dev": dict(_NOTEBOOK, out_dir="out-gpt-dev", batch_size=16, block_size=32, n_layer=4, n_head=4, n_embd=64, max_iters=5000, eval_interval=500, learning_rate=1e-3,
                    bias=True, qkv_bias=False, activation="relu", tie_word_embeddings=False, lm_head_bias=True),
    "shakespeare_char_cpu": dict(_CHARACTERS, out_dir="out-shakespeare-char", n_layer=4, n_head=4, n_embd=128, block_size=64, batch_size=12, max_iters=2000, lr_decay_iters=2000, eval_iters=20),
    "shakespeare_char": dict(_CHARACTERS, out_dir="out-shakespeare-char", n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=64, max_iters=5000, lr_decay_iters=5000, eval_iters=200, dropout=0.2),
    "speedrun_cpu": dict(_RECORD, out_dir="out-speedrun", n_layer=1, n_head=4, n_embd=128, token_shift=True, block_size=128, batch_size=6, max_iters=220, lr_decay_iters=220, eval_iters=1, rope_theta=100.0,
                         learning_rate=2e-2, muon_learning_rate=0.03, muon_momentum=0.8, weight_decay=0.0, warmup_iters=10),
    "shakespeare_char_cpu_modern": dict(_RECORD, out_dir="out-shakespeare-char-modern", n_layer=4, n_head=4, n_embd=128, block_size=256, batch_size=3, max_iters=2000, lr_decay_iters=2000, eval_iters=20, rope_theta=1000.0,
                                        learning_rate=1e-2, muon_learning_rate=0.02, muon_momentum=0.9, warmup_iters=20, with_replacement=False),
    "shakespeare_char_modern": dict(_RECORD, out_dir="out-shakespeare-char-modern", n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=64, max_iters=5000, lr_decay_iters=5000, eval_iters=200, dropout=0.2, rope_theta=1000.0,
                                    learning_rate=5e-3, muon_learning_rate=0.02, muon_momentum=0.95, weight_decay=0.3, warmup_iters=20),
    "laptop": dict(_RECORD, out_dir="out-laptop", n_layer=6, n_head=4, n_embd=192, block_size=256, batch_size=8, max_iters=2200, lr_decay_iters=2200, eval_interval=550, eval_iters=20, rope_theta=1000.0,
                   learning_rate=7e-3, muon_learning_rate=0.02, muon_momentum=0.95, weight_decay=0.2, warmup_iters=20),
    "gpt2": dict(_GPT2, out_dir="out-gpt2", n_layer=12, n_head=12, n_embd=768),
    "gpt2_medium": dict(_GPT2, out_dir="out-gpt2-medium", n_layer=24, n_head=16, n_embd=1024),
    "gpt2_large": dict(_GPT2, out_dir="out-gpt2-large", n_layer=36, n_head=20, n_embd=1280),
    "gpt2_xl": dict(_GPT2, out_dir="out-gpt2-xl", n_layer=48, n_head=25, n_embd=1600),
    "smollm2_135m": dict(_LLAMA, out_dir="out-smollm2-135m", dataset="smollm2", vocab_size=49152, n_layer=30, n_head=9, n_kv_head=3, n_embd=576, mlp_size=1536, rope_theta=1e5, batch_size=6),
    "qwen3_0_6b": dict(_LLAMA, out_dir="out-qwen3-0.6b", dataset="qwen3", vocab_size=151936, n_layer=28, n_head=16, n_kv_head=8, head_size=128, n_embd=1024, mlp_size=3072, rope_theta=1e6, norm_epsilon=1e-6, qk_norm=True,
                       batch_size=2, gradient_accumulation_steps=120, learning_rate=3e-4, min_lr=3e-5),
    "finetune_shakespeare": dict(out_dir="out-shakespeare", dataset="shakespeare", init_from="gpt2-xl", eval_interval=5, eval_iters=40, always_save_checkpoint=False,
                                 batch_size=1, gradient_accumulation_steps=32, max_iters=20, learning_rate=3e-5, decay_lr=False),
}
# fmt: on


def usual(platform: str) -> str:
    """The name of the preset that suits a platform: cpu, gpu or tpu."""
    return "shakespeare_char_cpu" if platform == "cpu" else "shakespeare_char"


def name_of(settings: Mapping[str, Any] | None) -> str | None:
    """The name of a preset's own settings, one of `PRESETS`; None if they are nobody's."""
    return next((name for name, own in PRESETS.items() if own is settings), None)


def preset(name: object, **changes: Any) -> Settings:
    """The settings of preset `name` with `changes` applied; `UserError` if there is no such preset."""
    if not isinstance(name, str) or name not in PRESETS:
        near = did_you_mean(str(name), PRESETS)
        raise UserError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}{near}")
    return Settings(**{**PRESETS[name], **changes})
