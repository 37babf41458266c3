"""nanoGPT as pure functions: GPT in JAX and Flax linen.

The names a program needs are here; the modules behind them are listed in docs/DESIGN.md. They are imported when first
asked for, so that a command that only parses flags does not wait for JAX.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.argv[:1] == ["-m"]:  # python -m nanogpt_jax.NAME: this is the first line of ours that runs
    from nanogpt_jax.data import process

    process.begin()

if TYPE_CHECKING:  # for type checkers and editors, which do not see through `__getattr__`
    from nanogpt_jax.core.bigram import Bigram as Bigram
    from nanogpt_jax.core.config import Settings as Settings
    from nanogpt_jax.core.errors import UserError as UserError
    from nanogpt_jax.core.many import make_many_eval_step as make_many_eval_step
    from nanogpt_jax.core.many import make_many_step as make_many_step
    from nanogpt_jax.core.many import run_of as run_of
    from nanogpt_jax.core.many import side_by_side as side_by_side
    from nanogpt_jax.core.many import stacked as stacked
    from nanogpt_jax.core.model import GPT as GPT
    from nanogpt_jax.core.optimizer import Hyperparameters as Hyperparameters
    from nanogpt_jax.core.optimizer import hyperparameters as hyperparameters
    from nanogpt_jax.core.optimizer import make_optimizer as make_optimizer
    from nanogpt_jax.core.sampling import generate as generate
    from nanogpt_jax.core.sampling_config import SamplingConfig as SamplingConfig
    from nanogpt_jax.core.shape import GPTConfig as GPTConfig
    from nanogpt_jax.core.train_step import Batch as Batch
    from nanogpt_jax.core.train_step import TrainState as TrainState
    from nanogpt_jax.core.train_step import init_params as init_params
    from nanogpt_jax.core.train_step import init_state as init_state
    from nanogpt_jax.core.train_step import loss_fn as loss_fn
    from nanogpt_jax.core.train_step import make_eval_step as make_eval_step
    from nanogpt_jax.core.train_step import make_train_step as make_train_step
    from nanogpt_jax.run.presets import preset as preset

_HOMES = {
    "GPT": "core.model",
    "Bigram": "core.bigram",
    "GPTConfig": "core.shape",
    "Settings": "core.config",
    "preset": "run.presets",
    "Batch": "core.train_step",
    "TrainState": "core.train_step",
    "init_params": "core.train_step",
    "init_state": "core.train_step",
    "loss_fn": "core.train_step",
    "make_eval_step": "core.train_step",
    "make_train_step": "core.train_step",
    "make_optimizer": "core.optimizer",
    "Hyperparameters": "core.optimizer",
    "hyperparameters": "core.optimizer",
    "make_many_step": "core.many",
    "make_many_eval_step": "core.many",
    "stacked": "core.many",
    "side_by_side": "core.many",
    "run_of": "core.many",
    "SamplingConfig": "core.sampling_config",
    "generate": "core.sampling",
    "UserError": "core.errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
