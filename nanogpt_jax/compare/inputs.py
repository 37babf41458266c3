"""What both programs are given: settings that both have, weights to begin with, and batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.bucket import data_set_at
from nanogpt_jax.data.dataset import TokenFile, open_tokens
from nanogpt_jax.data.files import is_file
from nanogpt_jax.data.prepared import load_meta
from nanogpt_jax.data.tokenizer import token_type
from nanogpt_jax.run.start import with_shape_of
from nanogpt_jax.weights.hf_format import hf_config_of
from nanogpt_jax.weights.loading import SHAPE, Weights, open_weights
from nanogpt_jax.weights.nanogpt_format import nanogpt_model_args_of


class Data(NamedTuple):
    """Where batches come from, and how to say so."""

    tokens: TokenFile
    source: str


class Counterpart(NamedTuple):
    """A model that ours is held against: its name, and settings that it has where nothing else is asked for."""

    name: str
    its_own: dict[str, Any]


def hf_counterpart(settings: Settings) -> Counterpart:
    """The model of Hugging Face's with the positions and the norm of queries and keys that the settings ask for."""
    llama = {"position": "rope", "norm": "rms", "bias": False, "activation": "swiglu"}
    if settings.qk_norm:
        return Counterpart("Hugging Face's Qwen3", llama)
    if settings.position == "rope":
        return Counterpart("Hugging Face's Llama", llama)
    return Counterpart("Hugging Face's GPT-2", {"bias": True, "activation": "gelu_new"})


def named_weights(base: Mapping[str, Any], explicit: dict[str, Any]) -> tuple[Weights | None, dict[str, Any]]:
    """The weights that both sides begin with where ``init_from`` names some, and what is asked for with their shape.

    Of a run that LoRA tuned they are merged. Raises `UserError` for another shape than they have.
    """
    if explicit.get("init_from", "scratch") == "scratch":
        return None, explicit
    asked = Settings(**{**base, **explicit})
    weights = open_weights(asked.init_from, asked.data_dir, asked.which)
    shaped = with_shape_of(asked, weights, explicit)
    shape = {name: getattr(shaped, name) for name in (*SHAPE, "vocab_size")}
    return weights, {**explicit, **shape, "init_from": "scratch"}


def fitting_settings(base: Mapping[str, Any], explicit: Mapping[str, Any], reference: str) -> tuple[Settings, str]:
    """The settings to compare with, and in words how they differ from `base` of our own accord.

    What the reference cannot express is set right where the user said nothing. Raises `UserError` where they did, or
    where another model would come of it.
    """
    plain = Settings(**{**base, "dtype": "float32", **explicit})
    program, its_own = hf_counterpart(plain) if reference == "hf" else Counterpart("nanoGPT", {})
    # Dropout draws other numbers there than here.
    alike: dict[str, Any] = {"dropout": 0.0, "init_from": "scratch", "optimizer": "adamw", "schedule": "cosine"}
    adapted = {**alike, **its_own}
    settings = Settings(**{**vars(plain), **adapted, **explicit})
    if settings.dtype == "auto":
        settings = dataclasses.replace(settings, dtype="float32")
    config = settings.gpt_config(settings.vocab_size or 1)
    needed = {"model": "gpt", **alike}
    if its_own.get("bias"):
        needed["bias"] = True  # a file lets zeros stand for biases that are not there, but they would learn
    if "position" in its_own:
        needed["position"] = its_own["position"]
    if config.has_qkv_bias != config.bias:
        needed["qkv_bias"] = None
    for name, value in needed.items():
        if (found := getattr(settings, name)) != value:
            raise UserError(f"{name}={found} cannot be compared with {program}; add --{name}={value}")
    (hf_config_of if reference == "hf" else nanogpt_model_args_of)(config)  # refuses what the other has not
    changes = [f"{name}={value}" for name, value in adapted.items() if getattr(plain, name) != getattr(settings, name)]
    return settings, f"{', '.join(changes)} to agree with {program}" if changes else ""


def open_data(settings: Settings) -> Data:
    """The training split of the data set the settings name, or random tokens where it is not prepared."""
    folder = data_set_at(settings.data_dir, settings.dataset)
    if is_file(folder / "meta.json"):
        meta = load_meta(folder)
        path, sizes = folder / "train.bin", (meta.vocab_size, settings.block_size, meta.train_tokens)
        file = open_tokens(path, *sizes, meta.shards("train"), meta.dtype)
        return Data(file._replace(once=not settings.with_replacement), str(folder))
    vocab_size = settings.vocab_size or 65
    tokens = random_tokens(vocab_size, max(1 << 18, 2 * settings.block_size), settings.seed)
    file = TokenFile(tokens.astype(token_type(vocab_size)), Path("random tokens"), vocab_size)
    return Data(file, f"random tokens ({folder} is not prepared)")


def random_tokens(vocab_size: int, n: int, seed: int) -> np.ndarray:
    """`n` tokens with something to learn for more than a few updates: half are drawn by Zipf's law, half count on.

    Where frequencies are all there is, they are soon known; what is left of the gradient is noise, which Adam makes
    updates of, and within 200 of them two runs that rounding alone tells apart have parted.
    """
    chances = 1 / np.arange(1, vocab_size + 1)
    draw = np.random.Generator(np.random.Philox(seed))
    drawn, at = draw.choice(vocab_size, size=n, p=chances / chances.sum()), np.arange(n)
    start = np.maximum.accumulate(np.where(draw.random(n) < 0.5, at, 0))  # of the run that each belongs to
    return (drawn[start] + at - start) % vocab_size
