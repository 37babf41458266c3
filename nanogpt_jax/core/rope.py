"""Rotary positions (Su et al., 2021): queries and keys are turned by angles that grow with their position.

A product of two turned vectors depends on the distance between them alone. Component i of a head's first half is turned
against component i of its second half, which is the order of Hugging Face's Llama and of what followed it.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nanogpt_jax.core.shape import rope_scaling


def frequencies(head_width: int, theta: float, scaling: str | None = None) -> Float[np.ndarray, " P"]:
    """By how many radians each pair of a head's components is turned from one position to the next.

    theta^(-2i / head_width) for pair i, changed as `scaling` says.
    """
    turns = theta ** (-np.arange(0, head_width, 2) / head_width)
    if scaling is not None:
        by = rope_scaling(scaling)
        waves = by.original * turns / (2 * math.pi)  # in the original context
        kept = np.clip((waves - by.low) / (by.high - by.low), 0, 1)
        turns = turns * (kept + (1 - kept) / by.factor)
    return turns.astype(np.float32)


def rotated(
    x: Float[Array, "B H T D"], turns: Float[np.ndarray, " P"], position: Int[Array, ""] | int
) -> Float[Array, "B H T D"]:
    """(a cos - b sin, b cos + a sin) of the halves a, b of each head, in float32; angles are position * turns.

    `position` is that of the first of the T.
    """
    angles = (position + jnp.arange(x.shape[2]))[:, None].astype(jnp.float32) * turns
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    wide = x.astype(jnp.float32)
    other_half = jnp.roll(wide, x.shape[3] // 2, axis=3)
    both = wide * jnp.concatenate([cos, cos], axis=1) + other_half * jnp.concatenate([-sin, sin], axis=1)
    return both.astype(x.dtype)
