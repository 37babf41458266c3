"""The optax chain a run is trained with: clipping, then AdamW under nanoGPT's learning-rate schedule."""

from __future__ import annotations

import jax
import optax

from nanogpt_jax.core.config import Settings


def learning_rate_schedule(settings: Settings) -> optax.Schedule:
    """Iteration (from 0) -> learning rate: nanoGPT's linear warm-up, cosine decay and floor, or a constant.

    The warm-up starts at learning_rate / (warmup_iters + 1), so that the first update is not lost, and reaches
    learning_rate at iteration `warmup_iters`; the cosine reaches min_lr at `lr_decay_iters` and stays there. Where
    that is no later than the warm-up's end, min_lr follows at once, as in nanoGPT.
    """
    if not settings.decay_lr:
        return optax.constant_schedule(settings.learning_rate)
    first, warmup = settings.learning_rate / (settings.warmup_iters + 1), settings.warmup_iters
    if settings.lr_decay_iters <= warmup:
        rising = optax.linear_schedule(first, settings.learning_rate, warmup)
        return optax.join_schedules([rising, optax.constant_schedule(settings.min_lr)], [warmup])
    return optax.warmup_cosine_decay_schedule(
        init_value=first,
        peak_value=settings.learning_rate,
        warmup_steps=warmup,
        decay_steps=settings.lr_decay_iters,
        end_value=settings.min_lr,
    )


def decay_mask(params: optax.Params) -> optax.Params:
    """True for matrices (linear layers, embeddings), False for vectors (biases, layer norms), which do not decay."""
    return jax.tree.map(lambda p: p.ndim >= 2, params)


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW (Loshchilov & Hutter, 2019) with the decay on matrices only, as in nanoGPT.

    Of the settings it reads `grad_clip` (0: no clipping), `beta1`, `beta2`, `weight_decay`, and those of
    `learning_rate_schedule`; it counts its own updates.
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
    return optax.chain(clip, adamw)
