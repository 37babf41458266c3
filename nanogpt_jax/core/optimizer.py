"""The optax chain a run is trained with: clipping, then AdamW, or Muon and AdamW, under a learning-rate schedule."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.muon import scale_by_muon
from nanogpt_jax.core.ops import AnyArray


class Hyperparameters(NamedTuple):
    """What of a run's settings is a number to its updates: float32 arrays, so that runs of many are one program.

    Each has a leading axis of R runs where there are several. What a number is zero of, dropout and clipping, is not
    in the program at all, so that a group of runs has it everywhere or nowhere.

    Attributes:
        learning_rate: of each update.
        muon_learning_rate: likewise.
        beta1: with what it lacks of one beside it, for `_Decay`.
        beta2: likewise.
    """

    learning_rate: Float[AnyArray, "*R U"]
    muon_learning_rate: Float[AnyArray, "*R U"]
    weight_decay: Float[AnyArray, "*R"]
    beta1: Float[AnyArray, "*R 2"]
    beta2: Float[AnyArray, "*R 2"]
    muon_momentum: Float[AnyArray, "*R"]
    grad_clip: Float[AnyArray, "*R"]
    dropout: Float[AnyArray, "*R"]


def hyperparameters(settings: Settings) -> Hyperparameters:
    """Those of a run by `settings`: its schedules as they are read off for every update, its numbers as they are."""
    updates = np.arange(max(1, settings.max_iters))

    def table(peak: float) -> AnyArray:
        rates = jax.vmap(learning_rate_schedule(settings, peak))(updates)
        return np.broadcast_to(np.asarray(rates, np.float32), updates.shape)

    numbers = {name: getattr(settings, name) for name in Hyperparameters._fields[2:]}
    numbers |= {name: (numbers[name], 1 - numbers[name]) for name in ("beta1", "beta2")}
    arrays = {name: np.asarray(value, np.float32) for name, value in numbers.items()}
    return Hyperparameters(table(settings.learning_rate), table(settings.muon_learning_rate), **arrays)


@jax.tree_util.register_pytree_node_class
class _Decay:
    """A decay that may be traced, to optax as the Python number that it stands for.

    optax computes 1 - decay, which is exact for a Python number. The float32 nearest to 0.999 is off by 1e-8, and one
    minus that by 1e-5 of itself; so the difference is brought along.
    """

    def __init__(self, decay: Any, rest: Any) -> None:
        self._decay, self._rest = decay, rest

    def __mul__(self, other: Any) -> Any:
        return self._decay * other

    def __pow__(self, count: Any) -> Any:
        return self._decay**count

    def __rsub__(self, one: int) -> Any:
        return self._rest

    def tree_flatten(self) -> tuple[tuple[Any, Any], None]:
        """Its arrays, for JAX."""
        return (self._decay, self._rest), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, Any]) -> _Decay:
        """One of such arrays."""
        return cls(*children)


def learning_rate_schedule(settings: Settings, peak: float | None = None) -> optax.Schedule:
    """Iteration (from 0) -> learning rate: a linear warm-up, then what `schedule` names, or a constant.

    The warm-up starts at learning_rate / (warmup_iters + 1), so that the first update is not lost, and reaches
    learning_rate at iteration `warmup_iters`. From there ``cosine``, nanoGPT's, falls to min_lr at `lr_decay_iters` and
    stays; ``wsd`` (warm up, hold, cool down: Hu et al., 2024) holds, and falls to it in a line over the last
    `cooldown_fraction` of those iterations. Where they end no later than the warm-up, min_lr follows at once, as in
    nanoGPT. With a `peak`, all of it is scaled to that in the place of learning_rate.
    """
    highest = settings.learning_rate if peak is None else peak
    if not settings.decay_lr:
        return optax.constant_schedule(highest)
    lowest = settings.min_lr * highest / settings.learning_rate if settings.learning_rate else settings.min_lr
    warmup, end = settings.warmup_iters, settings.lr_decay_iters
    first = highest / (warmup + 1)
    rising = optax.linear_schedule(first, highest, warmup)
    if end <= warmup:
        return optax.join_schedules([rising, optax.constant_schedule(lowest)], [warmup])
    if settings.schedule == "wsd":
        cooling = min(round(settings.cooldown_fraction * end), end - warmup)
        falling = optax.linear_schedule(highest, lowest, cooling, transition_begin=end - warmup - cooling)
        return optax.join_schedules([rising, falling], [warmup])
    return optax.warmup_cosine_decay_schedule(
        init_value=first, peak_value=highest, warmup_steps=warmup, decay_steps=end, end_value=lowest
    )


def decay_mask(params: optax.Params) -> optax.Params:
    """True for matrices (linear layers, embeddings), False for vectors (biases, norms), which do not decay."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def make_optimizer(settings: Settings, numbers: Hyperparameters | None = None) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW (Loshchilov & Hutter, 2019) with the decay on matrices only, as in nanoGPT.

    With ``optimizer=muon`` the matrices of the blocks are Muon's (Jordan et al., 2024), at `muon_learning_rate` under
    the same schedule, and embeddings, head and vectors AdamW's. Of the settings it reads those of the group
    ``optimizer``, and how wide the heads are; it counts its own updates. With `numbers`, which may be traced, those
    stand in the place of the settings'.
    """
    of: Any = settings if numbers is None else numbers
    beta1: Any
    beta2: Any
    if numbers is None:
        rate, muon_rate = (learning_rate_schedule(settings, peak) for peak in (None, settings.muon_learning_rate))
        beta1, beta2 = settings.beta1, settings.beta2
    else:
        rate, muon_rate = numbers.learning_rate.__getitem__, numbers.muon_learning_rate.__getitem__
        beta1, beta2 = _Decay(*numbers.beta1), _Decay(*numbers.beta2)
    clip = optax.clip_by_global_norm(of.grad_clip) if settings.grad_clip > 0 else optax.identity()
    adamw = optax.adamw(rate, b1=beta1, b2=beta2, eps=1e-8, weight_decay=of.weight_decay, mask=decay_mask)
    if settings.optimizer == "adamw":
        return optax.chain(clip, adamw)
    cuts = settings.gpt_config(settings.vocab_size or 1).qkv_cuts
    muon = optax.chain(
        scale_by_muon(of.muon_momentum, lambda layer: [*cuts] if layer == "c_attn" else []),
        optax.add_decayed_weights(of.weight_decay),
        optax.scale_by_learning_rate(muon_rate),
    )
    return optax.chain(clip, optax.partition({"muon": muon, "adamw": adamw}, _whose))


def _whose(params: optax.Params) -> Any:
    """Which optimizer each parameter is left to: Muon for the matrices of blocks, AdamW for all else."""

    def of(path: Any, p: Any) -> str:
        return "muon" if path[0].key.startswith("h_") and p.ndim == 2 else "adamw"

    return jax.tree_util.tree_map_with_path(of, params)
