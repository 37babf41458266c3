"""The module that settings and hardware call for: which model, in which type, with which attention kernel."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from nanogpt_jax.core.attention import AMPERE, choose_kernel
from nanogpt_jax.core.bigram import Bigram
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.model import GPT
from nanogpt_jax.run.accelerator import compute_capability


def build_model(settings: Settings, vocab_size: int, platform: str) -> nn.Module:
    """The module of the settings' shape, with the type and the kernel that they and the hardware call for."""
    config = settings.gpt_config(vocab_size)
    if settings.model == "bigram":
        return Bigram(config)
    dtype, capability = resolve_dtype(settings.dtype, platform), compute_capability(platform)
    kernel = choose_kernel(settings.attention, platform, config.head_width, dtype, config.dropout, capability)
    return GPT(config, dtype, kernel, settings.remat)


def resolve_dtype(requested: str, platform: str) -> jnp.dtype:
    """The type of matrix products: `requested`, or for ``auto`` bfloat16 where the hardware is made for it.

    GPUs before Ampere only emulate it. What they are made for, float16, would need its losses scaled.
    """
    if requested == "auto":
        capability = compute_capability(platform)
        made_for_it = platform != "cpu" and (capability is None or capability >= AMPERE)
        requested = "bfloat16" if made_for_it else "float32"
    return jnp.dtype(requested)
