"""The same numbers as PyTorch: `python -m nanogpt_jax.compare` trains one model twice, there and here, and compares.

Both sides start from the same weights and read the same batches; both answer to one protocol, `Side`, so that whatever
answers to it can be compared. For each quantity the table has the largest difference, the tolerance and a verdict.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from nanogpt_jax import cli
from nanogpt_jax.config import GPTConfig, PRESETS, Settings
from nanogpt_jax.dataset import TokenFile, open_tokens, random_batch
from nanogpt_jax.errors import UserError
from nanogpt_jax.files import replace_when_whole
from nanogpt_jax.optimizer import learning_rate_schedule, make_optimizer
from nanogpt_jax.sampling import SamplingConfig, generate
from nanogpt_jax.training import Batch, Params, init_params, init_state, loss_fn, make_train_step


class Side(Protocol):
    """A model and its optimizer, in PyTorch or here: numpy in, numpy out, parameters as the trees of `model.py`."""

    name: str

    def load(self, params: Params) -> None:
        """Take these parameters; the optimizer is left as it is."""

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """(B, T) -> (B, T, V), float32."""

    def gradients(self, batch: Batch) -> tuple[float, Params]:
        """Loss and gradients of one micro-batch, before clipping; nothing is updated."""

    def step(self, batch: Batch) -> float:
        """Make the next update of the schedule; the loss before it."""

    def parameters(self) -> Params:
        """A copy of the parameters."""

    def greedy(self, prompt: np.ndarray, n: int) -> np.ndarray:
        """The `n` tokens that follow the prompt (P,) when each is the likeliest."""

    def learning_rates(self, n: int) -> np.ndarray:
        """Those of updates 0 to n - 1."""


class Ours:
    """This project's side."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.name = "here"
        tx = make_optimizer(settings)
        params = jax.jit(lambda: init_params(model, settings.seed))()
        self._model, self._settings = model, settings
        self._state = jax.jit(lambda params: init_state(params, tx, settings.seed))(params)
        self._train_step = make_train_step(model, tx)
        self._logits = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens))
        self._value_and_grad = jax.jit(jax.value_and_grad(lambda params, batch: loss_fn(model, params, batch)))

    def load(self, params: Params) -> None:
        self._state = self._state.replace(params=jax.device_put(params))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return np.asarray(self._logits(self._state.params, tokens))

    def gradients(self, batch: Batch) -> tuple[float, Params]:
        loss, gradients = self._value_and_grad(self._state.params, batch)
        return float(loss), jax.device_get(gradients)

    def step(self, batch: Batch) -> float:
        self._state, metrics = self._train_step(self._state, batch)
        return float(metrics["loss"])

    def parameters(self) -> Params:
        return jax.tree.map(np.array, self._state.params)  # a copy: the next step takes over the memory

    def greedy(self, prompt: np.ndarray, n: int) -> np.ndarray:
        config = SamplingConfig(temperature=0, top_k=None)
        key = jax.random.key(0)  # needed, but not used at temperature 0
        return np.asarray(generate(self._model, self._state.params, prompt, key, max_new_tokens=n, config=config)[0])

    def learning_rates(self, n: int) -> np.ndarray:
        schedule = learning_rate_schedule(self._settings)
        return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(n, dtype=np.int32)))
