"""The optax chain a run is trained with: clipping, then AdamW, or Muon and AdamW, under a learning-rate schedule."""

from __future__ import annotations

from typing import Any

import jax
import optax

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.muon import scale_by_muon


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


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW (Loshchilov & Hutter, 2019) with the decay on matrices only, as in nanoGPT.

    With ``optimizer=muon`` the matrices of the blocks are Muon's (Jordan et al., 2024), at `muon_learning_rate` under
    the same schedule, and embeddings, head and vectors AdamW's. Of the settings it reads those of the group
    ``optimizer``, and how wide the heads are; it counts its own updates.
    """
    clip = optax.clip_by_global_norm(settings.grad_clip) if settings.grad_clip > 0 else optax.identity()
    adamw = optax.adamw(
        learning_rate_schedule(settings),
        b1=settings.beta1,
        b2=settings.beta2,
        eps=1e-8,
        weight_decay=settings.weight_decay,
        mask=decay_mask,
    )
    if settings.optimizer == "adamw":
        return optax.chain(clip, adamw)
    cuts = settings.gpt_config(settings.vocab_size or 1).qkv_cuts
    muon = optax.chain(
        scale_by_muon(settings.muon_momentum, lambda layer: [*cuts] if layer == "c_attn" else []),
        optax.add_decayed_weights(settings.weight_decay),
        optax.scale_by_learning_rate(learning_rate_schedule(settings, settings.muon_learning_rate)),
    )
    return optax.chain(clip, optax.partition({"muon": muon, "adamw": adamw}, _whose))


def _whose(params: optax.Params) -> Any:
    """Which optimizer each parameter is left to: Muon for the matrices of blocks, AdamW for all else."""

    def of(path: Any, p: Any) -> str:
        return "muon" if path[0].key.startswith("h_") and p.ndim == 2 else "adamw"

    return jax.tree_util.tree_map_with_path(of, params)
