"""nanoGPT as pure functions: GPT in JAX and Flax linen.

The names a program needs are here; the modules behind them are listed in docs/DESIGN.md. They are imported when first
asked for, so that a command that only parses flags does not wait for JAX.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "GPT": "model",
    "Bigram": "model",
    "GPTConfig": "config",
    "Settings": "config",
    "preset": "config",
    "Batch": "training",
    "TrainState": "training",
    "init_params": "training",
    "init_state": "training",
    "loss_fn": "training",
    "make_eval_step": "training",
    "make_train_step": "training",
    "make_optimizer": "optimizer",
    "SamplingConfig": "sampling",
    "generate": "sampling",
    "UserError": "errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
