"""A text continued and read: what the model computes over all of it, as a page.

The text is the first one that `sample.py` draws with the same settings, as far as it fits in `block_size`: the page
shows one pass of the model over all of it.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Int

from nanogpt_jax.cli.texts import open_model, prompt_text
from nanogpt_jax.core import sampling
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.train_step import Params, purpose_key
from nanogpt_jax.data.tokenizer import Tokenizer
from nanogpt_jax.lens import activations
from nanogpt_jax.lens.page import Findings, page
from nanogpt_jax.lens.settings import LensSettings
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.reports import model_in_words

CANDIDATES, LAYER_CANDIDATES = 8, 4
_USUAL_LENGTH = 200  # as the help says


def rendered(settings: LensSettings) -> str:
    """The page. Raises `UserError` if there are no weights, or the text cannot be encoded or does not fit."""
    weights, tokenizer = open_model(settings)
    prompt = tokenizer.encode(prompt_text(settings, tokenizer))
    shape = Settings(**weights.settings, dtype="float32")
    model = build_model(shape, weights.vocab_size, jax.default_backend())
    is_bigram = shape.model == "bigram"  # which looks at one token, however many there are
    new = fitting(len(prompt), settings.max_new_tokens, math.inf if is_bigram else shape.block_size)
    params = weights.load(model, None)
    tokens = prompt.astype(np.int32)
    if new:
        key, config = purpose_key(settings.seed, "sample"), settings.sampling_config(tokenizer.vocab_size)
        drawn = sampling.generate(model, params, tokens, key, max_new_tokens=new, config=config)
        tokens = np.concatenate([tokens, np.asarray(drawn[0])])
    size = f"{sum(p.size for p in jax.tree.leaves(params)):,} parameters"
    facts = ["bigram" if is_bigram else model_in_words(shape), size]
    name = settings.out_dir if settings.init_from == "resume" else settings.init_from
    return page(findings(model, params, tokens, len(prompt), tokenizer), tokenizer, name or "the newest run", facts)


def fitting(given: int, new: int | None, block_size: float) -> int:
    """How many tokens to draw after `given` ones: `new`, or what is usual and fits; `UserError` if they do not fit."""
    if given == 0:
        raise UserError("the prompt is empty and there is nothing to read; give at least one token")
    if given > block_size:
        raise UserError(
            f"start has {given:,} tokens and the model reads block_size={block_size:,} at once; shorten it by "
            f"{given - block_size:,}"
        )
    if new is None:
        return max(0, int(min(_USUAL_LENGTH, block_size)) - given)
    if given + new > block_size:
        raise UserError(
            f"max_new_tokens={new:,} after the {given:,} of start are more than the block_size={block_size:,} that the "
            f"model reads at once; choose at most {block_size - given:,}"
        )
    return new


def findings(
    model: nn.Module, params: Params, tokens: Int[np.ndarray, " T"], given: int, tokenizer: Tokenizer
) -> Findings:
    """What the page shows of a model reading `tokens`."""
    read = activations.read(model, params, tokens)
    if not np.isfinite(read.logits).all():
        raise UserError("the model's predictions are not finite numbers; name another checkpoint")
    predicted = activations.predictions(read.logits, tokens, CANDIDATES, tokenizer.vocab_size)
    layers = None
    if len(read.attention):
        layers = activations.layer_predictions(
            model, params, read.streams, tokens, LAYER_CANDIDATES, tokenizer.vocab_size
        )
    return Findings(tokens, given, *jax.device_get((predicted, layers, read.attention)))
