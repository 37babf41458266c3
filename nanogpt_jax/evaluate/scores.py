"""What a model says of the tokens it is asked for: log-probabilities, and whether each is the likeliest.

One jitted function reads a batch. Passages are read in order of length, padded at their right to a few lengths, so that
few programs are compiled; no position looks at the padding behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.train_step import Params
from nanogpt_jax.evaluate.passages import Passage

_LOGITS = 1 << 26  # that are held at once, a quarter of a GB
_STEP = 32  # lengths are multiples of it


class Scores(NamedTuple):
    """Of each of the T tokens that a passage asks for: its log-probability in nats, and whether it is the likeliest."""

    log_probs: Float[np.ndarray, " T"]
    likeliest: Bool[np.ndarray, " T"]


@functools.partial(jax.jit, static_argnums=0)
def next_tokens(
    model: nn.Module, params: Params, tokens: Int[Array, "B T"], targets: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """The log-probability of each target as the token after those up to its place, and whether it is the argmax.

    Of all rows of the table, as transformers has them, also of those that a table is padded with. Logits are made of
    some rows at a time, however large the batch.
    """
    B, T = tokens.shape

    def judged(logits: Float[Array, "T V"], targets: Int[Array, " T"]) -> tuple[Array, Array]:
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        return jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0], jnp.argmax(logits, axis=-1) == targets

    def of_stream(row: tuple[Float[Array, "T C"], Int[Array, " T"]]) -> tuple[Array, Array]:
        logits: Any = model.apply({"params": params}, row[0], method="head")
        return judged(logits, row[1])

    def of_tokens(row: tuple[Int[Array, " T"], Int[Array, " T"]]) -> tuple[Array, Array]:
        logits: Any = model.apply({"params": params}, row[0][None])
        return judged(logits[0], row[1])

    rows = min(B, max(1, _LOGITS // (T * model.config.vocab_size)))
    if isinstance(model, GPT):  # a bigram has logits alone
        streams = model.apply({"params": params}, tokens, method="hidden")
        return jax.lax.map(of_stream, (streams, targets), batch_size=rows)
    return jax.lax.map(of_tokens, (tokens, targets), batch_size=rows)


def score(
    model: nn.Module,
    params: Params,
    passages: Sequence[Passage],
    batch_size: int,
    advance: Callable[[int], None] = lambda passages: None,
) -> list[Scores]:
    """The scores of each passage, in their order; `advance` is told how many passages each batch had.

    Raises `UserError` where the model's predictions are not finite.
    """
    order = sorted(range(len(passages)), key=lambda i: len(passages[i].tokens), reverse=True)  # what fails, fails first
    found: list[Scores | None] = [None] * len(passages)
    for first in range(0, len(order), batch_size):
        group = order[first : first + batch_size]
        longest = len(passages[group[0]].tokens) - 1
        shape = min(batch_size, len(passages)), padded(longest, model.config.block_size)
        tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for row, i in enumerate(group):
            read = len(passages[i].tokens) - 1
            tokens[row, :read], targets[row, :read] = passages[i].tokens[:-1], passages[i].tokens[1:]
        log_probs, likeliest = jax.device_get(next_tokens(model, params, tokens, targets))
        for row, i in enumerate(group):
            end = len(passages[i].tokens) - 1
            asked = slice(end - passages[i].asked, end)
            found[i] = Scores(log_probs[row, asked].copy(), likeliest[row, asked].copy())
            if not np.isfinite(log_probs[row, asked]).all():
                raise UserError("the model's predictions are not finite numbers; name another checkpoint")
        advance(len(group))
    return [scores for scores in found if scores is not None]


def padded(length: int, block_size: int) -> int:
    """The length to which a batch of up to `length` tokens is padded: a multiple of 32, or of more for longer ones.

    Beyond 64 tokens that is half more at most, and a block of 1,024 has ten lengths.
    """
    step = max(_STEP, 1 << max(0, (length - 1).bit_length() - 2))
    return min(block_size, -(-length // step) * step)
