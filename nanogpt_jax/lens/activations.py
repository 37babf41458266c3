"""What a model computes while it reads a text, as pure functions of (model, params, tokens).

Flax linen notes the outputs of the modules it is asked for, so `model.py` knows nothing of this and training pays
nothing. To read a layer's residual stream with the last norm and the head is the "logit lens" (nostalgebraist, 2020).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from nanogpt_jax.core.model import GPT, Block
from nanogpt_jax.core.softmax_attention import MASKED
from nanogpt_jax.core.train_step import Params


class Reading(NamedTuple):
    """What a model of L layers and H heads makes of T tokens; a bigram has no layers, so L and H are 0.

    `logits` are those of the token after each. `streams` holds the residual stream as the embedding and each layer
    leave it, and `attention` how much each position (third axis) takes from every other: rows add up to one.
    """

    logits: Float[Array, "T V"]
    streams: Float[Array, "L+1 T C"]
    attention: Float[Array, "L H T T"]


class Predictions(NamedTuple):
    """What logits say of the token after each of T: the likeliest first, and what became of the one that came.

    `candidates` and `probabilities` are the K likeliest; `losses` are in nats, and `ranks` count from 0. The last two
    stop one short, since nothing is known to follow the last token.
    """

    candidates: Int[Array, "*L T K"]
    probabilities: Float[Array, "*L T K"]
    losses: Float[Array, "*L T-1"]
    ranks: Int[Array, "*L T-1"]


@functools.partial(jax.jit, static_argnums=0)
def read(model: nn.Module, params: Params, tokens: Int[Array, " T"] | Shaped[Array, ...]) -> Reading:
    """Read T tokens, at most `block_size`, in one forward pass without dropout; `UserError` for other arrays."""
    T = len(tokens)
    logits, noted = model.apply(
        {"params": params}, tokens[None], capture_intermediates=_is_worth_noting, mutable=["intermediates"]
    )
    if not isinstance(model, GPT):
        return Reading(logits[0], jnp.zeros((0, T, 0)), jnp.zeros((0, 0, T, T)))
    inside = noted["intermediates"]
    blocks = [inside[f"h_{layer}"] for layer in range(model.config.n_layer)]
    streams = [inside["drop"]["__call__"][0], *(block["__call__"][0][0] for block in blocks)]
    attention = [_attention(*block["attn"]["queries_and_keys"][0]) for block in blocks]
    return Reading(logits[0], jnp.stack(streams), jnp.stack(attention))


def _is_worth_noting(module: nn.Module, method: str) -> bool:
    """Whether an output is part of a `Reading`: the sum of the embeddings, and each block's."""
    return method == "__call__" and (isinstance(module, Block) or module.name == "drop")


def _attention(q: Float[Array, "1 H T D"], k: Float[Array, "1 K T D"]) -> Float[Array, "H T T"]:
    """softmax(q k^T / sqrt(D)) with the future masked out: what the fused kernels never write down."""
    q, k = (x[0].astype(jnp.float32) for x in (q, k))
    k = jnp.repeat(k, len(q) // len(k), axis=0)  # to each head of queries its key head
    scores = jnp.einsum("htd,hsd->hts", q, k) / math.sqrt(q.shape[-1])
    return jax.nn.softmax(jnp.where(jnp.tri(q.shape[1], dtype=bool), scores, MASKED), axis=-1)


@functools.partial(jax.jit, static_argnums=(2, 3))
def predictions(logits: Float[Array, "T V"], tokens: Int[Array, " T"], k: int, vocab_size: int) -> Predictions:
    """The `k` likeliest tokens after each of `tokens`, among the first `vocab_size` of the table."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    of_likeliest, candidates = jax.lax.top_k(log_probs[:, :vocab_size], min(k, vocab_size))
    of_next = jnp.take_along_axis(log_probs[:-1], tokens[1:, None], axis=-1)
    ranks = jnp.sum(log_probs[:-1] > of_next, axis=-1)
    return Predictions(candidates, jnp.exp(of_likeliest), -of_next[:, 0], ranks)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def layer_predictions(
    model: nn.Module, params: Params, streams: Float[Array, "L T C"], tokens: Int[Array, " T"], k: int, vocab_size: int
) -> Predictions:
    """What the model would predict if each of `streams` were its last: `Predictions` with an axis for them in front."""

    def seen_through_the_head(stream: Float[Array, "T C"]) -> Predictions:
        logits = model.apply({"params": params}, stream, method=_head_of_stream)
        return predictions(logits, tokens, k, vocab_size)

    return jax.lax.map(seen_through_the_head, streams)  # one after the other: logits of all at once may be gigabytes


def _head_of_stream(model: Any, stream: Float[Array, "T C"]) -> Float[Array, "T V"]:
    return model.head(model.ln_f(stream))
