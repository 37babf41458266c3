"""A run that trains a delta to weights which stay as they are (LoRA): its base on the devices, and its first state."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh

from nanogpt_jax.core import sharding
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.lora import Base, init_delta, layers_of, make_base
from nanogpt_jax.core.train_step import Params, TrainState, init_state, purpose_key


def require_targets(settings: Settings, vocab_size: int) -> None:
    """Raise `UserError` if `lora_targets` names what the model has not."""
    layers_of(settings.gpt_config(vocab_size), settings.lora_targets)


def fresh_delta(settings: Settings, model: nn.Module, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first update, without the base that belongs to it. Can be traced."""
    assert settings.lora_rank is not None
    delta = init_delta(model, purpose_key(settings.seed, "init"), settings.lora_rank, settings.lora_targets)
    return init_state(delta, tx, settings.seed)


def placed_base(settings: Settings, params: Params, mesh: Mesh | None) -> Base:
    """The parameters of a model as the base of a run: in the type it asks for, each device with its own share."""
    make: Any = partial(make_base, kind=settings.lora_base, scale=settings.lora_scale)
    places = None if mesh is None else sharding.state_shardings(mesh, jax.eval_shape(make, params))
    return jax.jit(make, out_shardings=places, donate_argnums=0)(params)
