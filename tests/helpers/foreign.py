"""Small random models, and the run that is converted to files of PyTorch's programs."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import init_params

TEXT = "To be, or not to be, that is the question:\n" * 40
VOCABULARY = len(set(TEXT))
NANOGPT = GPTConfig(block_size=8, vocab_size=VOCABULARY, n_layer=2, n_head=2, n_embd=16, bias=False)
GPT2 = dataclasses.replace(NANOGPT, bias=True, activation="gelu_new")


def random_params(config: GPTConfig, seed: int = 0) -> Any:
    """Parameters, or what has their shape, without compiling anything."""
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(GPT(config), 0))
    return jax.tree.map(lambda p: draw.normal(0, 0.3, p.shape).astype(np.float32), shapes)


@contextlib.contextmanager
def nothing_written(folder: Path) -> Any:
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


def state_dict_in(model: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


TOKENS = np.random.default_rng(0).integers(VOCABULARY, size=(2, 8))
apply = jax.jit(lambda model, params: model.apply({"params": params}, TOKENS), static_argnums=0)


class Lab(NamedTuple):
    """A data set, and a run that stands at iteration 3 of its training on it."""

    data_dir: Path
    run: Path
    settings: Settings
