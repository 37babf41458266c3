"""Where weights come from: a run's folder now, other programs' files through `interop.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from nanogpt_jax.accelerator import resolve_dtype
from nanogpt_jax.attention import choose_kernel
from nanogpt_jax.checkpoint import FOLDER, Checkpoints, RunDocument
from nanogpt_jax.config import GPTConfig, Settings
from nanogpt_jax.errors import UserError
from nanogpt_jax.model import GPT, Bigram
from nanogpt_jax.training import Params, init_params

SHAPE = ("model", *(f.name for f in dataclasses.fields(GPTConfig) if f.name not in ("vocab_size", "dropout")))
"""Settings that decide which tensors a model has; weights bring their own."""


class Weights(NamedTuple):
    """Weights that can be loaded: the shape they have, the tokenizer they were trained with, and how to get them."""

    settings: dict[str, Any]  # the `SHAPE` settings
    vocab_size: int
    tokenizer: dict[str, Any] | None
    load: Callable[[nn.Module], Params]


def open_run(out_dir: Path) -> tuple[Checkpoints, int, RunDocument]:
    """The newest checkpoint of a run: its folder, its step and its document. `UserError` if there is none."""
    checkpoints = _open_checkpoints(out_dir)
    step = checkpoints.latest()
    return checkpoints, step, checkpoints.run_document(step)


def open_weights(source: str) -> Weights:
    """The weights that `source` names: the best checkpoint of a run's folder.

    Raises `UserError` if there is nothing at `source` that can be read.
    """
    checkpoints = _open_checkpoints(Path(source))
    step = checkpoints.best()
    run = checkpoints.run_document(step)
    settings = stored_settings(run)

    def load(model: nn.Module) -> Params:
        return checkpoints.params(step, jax.eval_shape(lambda: init_params(model, 0)))

    return Weights({name: getattr(settings, name) for name in SHAPE}, run.vocab_size, run.tokenizer, load)


def stored_settings(run: RunDocument, changes: Mapping[str, Any] | None = None) -> Settings:
    """The settings inside a checkpoint, with `changes` applied; `UserError` if they are not settings."""
    if not isinstance(run.settings, dict):
        raise UserError("the checkpoint's settings are not a table of names and values; it is damaged")
    names = {f.name for f in dataclasses.fields(Settings)}
    unknown = sorted(set(run.settings) - names)
    if unknown:
        raise UserError(f"the checkpoint has a setting {unknown[0]!r} this version does not know; use the one it is of")
    return Settings(**{**run.settings, **(changes or {})})


def build_model(settings: Settings, vocab_size: int, platform: str) -> nn.Module:
    """The module of the settings' shape, with the type and the kernel that they and the hardware call for."""
    config = settings.gpt_config(vocab_size)
    if settings.model == "bigram":
        return Bigram(config)
    dtype = resolve_dtype(settings.dtype, platform)
    return GPT(config, dtype, choose_kernel(settings.attention, platform, config.head_size, dtype, config.dropout))


def _open_checkpoints(out_dir: Path) -> Checkpoints:
    if not (out_dir / FOLDER).is_dir():
        raise UserError(f"{out_dir} holds no run (there is no {out_dir / FOLDER}); train one there, or name another")
    checkpoints = Checkpoints(out_dir, read_only=True)
    if checkpoints.latest() is None:
        raise UserError(f"{out_dir / FOLDER} holds no finished checkpoint; train again, or name another folder")
    return checkpoints
