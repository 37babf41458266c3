"""One update, as a pure function of the state and a batch.

`make_train_step` closes over the model and the optimizer and gives a function that is compiled once, takes the old
state's memory for the new one, and never waits for the host: its metrics are device arrays, to be fetched late.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, no_type_check

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Int32, Integer, PRNGKeyArray, UInt32

from nanogpt_jax.core import sharding
from nanogpt_jax.core.layers import require_tokens
from nanogpt_jax.core.lora import Base
from nanogpt_jax.core.ops import AnyArray
from nanogpt_jax.core.switches import as_promised

Params = Any
Metrics = dict[str, Float[Array, ""]]

Seed = int | np.integer | Integer[AnyArray, ""]

IGNORED = -1
"""A target that nothing is to be learnt from: nanoGPT's `ignore_index`."""


class Batch(NamedTuple):
    """Tokens and, for each, the token that follows it: `targets[..., t]` comes after `tokens[..., t]`.

    Attributes:
        tokens: integers below the vocabulary's size, of shape (B, T), or (A, B, T) for A micro-batches.
        targets: the same, one position on, or `IGNORED`.
    """

    tokens: Int[AnyArray, "*A B T"]
    targets: Int[AnyArray, "*A B T"]


class PackedBatch(NamedTuple):
    """A batch in whose rows several texts lie one after the other: each sees itself alone, its positions from 0.

    Attributes:
        tokens: as a `Batch` has them.
        targets: likewise.
        segments: the number of each token's text, rising along a row.
    """

    tokens: Int[AnyArray, "*A B T"]
    targets: Int[AnyArray, "*A B T"]
    segments: Int[AnyArray, "*A B T"]


AnyBatch = Batch | PackedBatch


@flax.struct.dataclass
class TrainState:
    """All that changes in training, and the seed of its randomness; a checkpoint holds exactly this, but for the base.

    Attributes:
        step: number of updates made, an int32 scalar.
        params: the parameters that are trained, a tree of float32 arrays: the model's, or a delta to them.
        opt_state: the optimizer's moments and counters, as optax has them.
        seed: what dropout's keys are derived from, with the step; a uint32 scalar.
        base: what `params` are a delta to (`lora.py`), which no update changes; None where they are the model's own.
    """

    step: Int32[Array, ""]
    params: Params
    opt_state: optax.OptState
    seed: UInt32[Array, ""]
    base: Base | None = None


no_type_check(TrainState.__init__)  # a tree of this shape may hold anything: shapes, places on a mesh


@as_promised
def init_params(model: nn.Module, seed: Seed) -> Params:
    """Fresh parameters of `model`, a pure function of `seed`, which is below 2**32.

    A tree of float32 arrays under GPT-2's names: ``params["h_0"]["attn"]["c_attn"]["kernel"]`` is of shape (C, 3C).
    """
    return _init_params(model, jnp.asarray(seed, jnp.uint32))  # a Python int goes into a jitted function as an int32


@functools.partial(jax.jit, static_argnums=0)
def _init_params(model: nn.Module, seed: UInt32[Array, ""]) -> Params:
    return model.init(purpose_key(seed, "init"), jnp.zeros((1, 1), jnp.int32))["params"]


@as_promised
def init_state(params: Params, tx: optax.GradientTransformation, seed: Seed, base: Base | None = None) -> TrainState:
    """The state before the first update: `params` as they are, and what `tx` starts with.

    With a `base`, `params` are a delta to it, and alone are trained.
    """
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jnp.asarray(seed, jnp.uint32), base)


@as_promised
def abstract_state(model: nn.Module, tx: optax.GradientTransformation) -> TrainState:
    """The shapes and types of a state of `model` and `tx`: nothing is computed."""
    return jax.eval_shape(lambda: init_state(init_params(model, 0), tx, 0))


def purpose_key(seed: Seed, purpose: str) -> PRNGKeyArray:
    """The root key of one use of randomness; different purposes under one seed draw independently."""
    purposes = ("init", "dropout", "sample")
    # What jax.random.key makes of a seed of 32 bits, but for the switches it reads.
    words = jnp.stack([jnp.zeros((), jnp.uint32), jnp.asarray(seed, jnp.uint32)])
    return jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), purposes.index(purpose))


@as_promised
def loss_fn(
    model: nn.Module,
    params: Params,
    batch: AnyBatch,
    dropout_key: PRNGKeyArray | None = None,
    base: Base | None = None,
) -> Float[Array, ""]:
    """Mean cross-entropy of the targets of a batch (B, T), in nats per token; with a key, under dropout.

    The mean is over the targets that are not `IGNORED`; of none it is NaN, as PyTorch's. An untrained model's is near
    ln V, which is 4.17 for 65 characters. Differentiate it by `params`, its argument 1, which are a delta to `base`
    where there is one. Raises `UserError` for a token or target outside the vocabulary; under `jit`, where none can be
    looked at, the loss is NaN.
    """
    weights = target_weights(model, batch)
    return _weighted_loss(model, params, batch, weights / weights.sum(), dropout_key, base)


def target_weights(model: nn.Module, batch: AnyBatch) -> Float[Array, "*A B T"]:
    """How much each target counts: one, nothing where it is `IGNORED`, and NaN outside the vocabulary."""
    tokens, targets, *_ = batch
    size = model.config.vocab_size
    require_tokens("tokens", tokens, size)
    require_tokens("targets", targets, size, least=IGNORED)
    are_tokens = (tokens >= 0) & (tokens < size) & (targets >= IGNORED) & (targets < size)
    return jnp.where(are_tokens, targets != IGNORED, jnp.nan).astype(jnp.float32)


def _weighted_loss(
    model: nn.Module,
    params: Params,
    batch: AnyBatch,
    weights: Float[Array, "B T"],
    dropout_key: PRNGKeyArray | None,
    base: Base | None,
) -> Float[Array, ""]:
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    train = dropout_key is not None
    variables = {"params": params} if base is None else base.with_delta(params)
    tokens, targets, *segments = batch
    loss: Any = model.apply(variables, tokens, targets, weights, *segments, train=train, rngs=rngs, method="loss")
    return loss


def make_train_step(
    model: nn.Module, tx: optax.GradientTransformation, *, skip_nonfinite: bool = False, shardings: Any = None
) -> Callable[[TrainState, AnyBatch], tuple[TrainState, Metrics]]:
    """The jitted ``train_step(state, batch) -> (state, metrics)``, which donates `state`.

    A batch of shape (B, T) is one micro-batch; one of shape (A, B, T) is A of them, whose gradients are added up before
    the single update (gradient accumulation: the memory of one, the gradient of all), along a mesh's ``data`` once.
    The loss is `loss_fn`'s mean over all targets of the update, however many each micro-batch and each device holds.

    Metrics are float32 scalars: ``loss`` (nats per token, before the update) and ``grad_norm`` (before clipping).
    With `skip_nonfinite` an update whose metrics are not finite changes ``step`` alone, not even the optimizer's count.
    `shardings` says where on a mesh the new state lies: where the old one does.
    """

    def train_step(state: TrainState, batch: AnyBatch) -> tuple[TrainState, Metrics]:
        return updated(model, tx, state, batch, skip_nonfinite)

    # Metrics, and all of the state where there is no mesh, lie where the compiler puts them.
    return as_promised(jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None)))


def updated(
    model: nn.Module, tx: optax.GradientTransformation, state: TrainState, batch: AnyBatch, skip_nonfinite: bool = False
) -> tuple[TrainState, Metrics]:
    """One update, as `make_train_step` compiles it: what is mapped over where many runs are one program."""
    key = jax.random.fold_in(purpose_key(state.seed, "dropout"), state.step)
    loss, grads = _accumulated(model, state.params, batch, key, state.base)
    with jax.named_scope("optimizer"):  # a trace's name for it
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    if skip_nonfinite:
        is_finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
        params, opt_state = optax.tree.where(is_finite, (params, opt_state), (state.params, state.opt_state))
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics


def _accumulated(
    model: nn.Module, params: Params, batch: AnyBatch, key: PRNGKeyArray, base: Base | None
) -> tuple[Array, Params]:
    """Loss and gradient of a batch, averaged over its micro-batches if it has several."""
    value_and_grad = jax.value_and_grad(_weighted_loss, argnums=1)
    weights = target_weights(model, batch)
    if batch.tokens.ndim == 2:
        return value_and_grad(model, params, batch, weights / weights.sum(), key, base)
    steps = batch.tokens.shape[0]

    def total(key: PRNGKeyArray, whole: Any, batches: tuple[AnyBatch, Array]) -> tuple[Array, Params]:
        params, base = whole

        def add(total: Any, micro: tuple[Array, tuple[AnyBatch, Array]]) -> tuple[Any, None]:
            index, (micro_batch, micro_weights) = micro
            part = value_and_grad(model, params, micro_batch, micro_weights, jax.random.fold_in(key, index), base)
            return jax.tree.map(jnp.add, total, part), None

        zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add, zero, (jnp.arange(steps, dtype=jnp.int32), batches))[0]

    of_mean = weights / (weights.sum() / steps)
    sums = sharding.sum_along_data(total)(key, (params, base), (batch, of_mean))
    return jax.tree.map(lambda x: x / steps, sums)


def make_eval_step(model: nn.Module) -> Callable[..., Float[Array, ""]]:
    """The jitted ``eval_step(params, batch, weights)``: the weighted sum of the targets' losses, in nats, no dropout.

    Batch and weights are of shape (B, T). Weights of one give a plain sum; a zero leaves a target out, which is how a
    last, shorter window is padded, and so does `IGNORED` as a target. With a base as fourth argument, the parameters
    are a delta to it.
    """

    return as_promised(jax.jit(functools.partial(weighted_sum, model)))


def weighted_sum(
    model: nn.Module, params: Params, batch: AnyBatch, weights: Float[Array, "B T"], base: Base | None = None
) -> Float[Array, ""]:
    """An evaluation, as `make_eval_step` compiles it."""
    return _weighted_loss(model, params, batch, weights * target_weights(model, batch), None, base)
