"""What every PyTorch side of ours trains with: nanoGPT's parameter groups, its schedule, and the models.

This module imports PyTorch and not JAX, so that a process of the benchmark can hold the one without the other.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError


def learning_rate(settings: Settings, iteration: int) -> float:
    """nanoGPT's rate at an update, in Python's own float64: linear warm-up, cosine, floor; or a constant."""
    warmup, decay = settings.warmup_iters, settings.lr_decay_iters
    if not settings.decay_lr:
        return settings.learning_rate
    if iteration < warmup:
        return settings.learning_rate * (iteration + 1) / (warmup + 1)
    if iteration >= decay:
        return settings.min_lr
    share = (1 + math.cos(math.pi * (iteration - warmup) / (decay - warmup))) / 2
    return settings.min_lr + share * (settings.learning_rate - settings.min_lr)


def adamw(module: nn.Module, settings: Settings, *, fused: bool = False) -> torch.optim.AdamW:
    """PyTorch's AdamW in nanoGPT's two groups: matrices decay, vectors do not."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=fused)


def hf_model(document: Mapping[str, Any]) -> Any:
    """The module of `transformers` that the document of a `config.json` describes, with random weights."""
    import transformers

    [kind] = document["architectures"]
    model = getattr(transformers, kind)
    return model(model.config_class.from_dict(dict(document)))


def nanogpt_model(
    checkout: Path, model_args: Mapping[str, Any], settings: Settings, device: str
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The `GPT` and the optimizer of the `model.py` in a nanoGPT checkout, as they stand, on `device` (cpu or cuda).

    That file is run. Raises `UserError` if it cannot be, or has something else in it.
    """
    path = checkout / "model.py"
    betas = (settings.beta1, settings.beta2)
    try:
        theirs = _imported(path)
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its size and its groups
            module = theirs.GPT(theirs.GPTConfig(**model_args)).to(device)
            optimizer = module.configure_optimizers(settings.weight_decay, settings.learning_rate, betas, device)
    except UserError:
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} does not give nanoGPT's model ({why}); name a folder that holds a checkout") from error
    return module, optimizer


def _imported(path: Path) -> ModuleType:
    """The Python file as a module of a name of our own, which it keeps: dataclasses look their module up by it."""
    name = "_nanogpt_model"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no file of Python's")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
