"""What tests of numbers share: random arrays and parameters, and the comparison of a function with its plain twin."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nanogpt_jax.core.train_step import Params, init_params


def normal(seed: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def fresh(model: nn.Module) -> Params:
    """Parameters whose predictions are far from uniform, so that a mistake shows and rounding does not."""

    def larger(path: tuple, p: Array) -> Array:
        if path[-1].key == "share":  # which starts at zero
            return p + 1
        return p if path[-2].key in ("q_norm", "k_norm") else 4 * p  # both would make scores 16 times as large

    return jax.jit(lambda: jax.tree.map_with_path(larger, init_params(model, 0)))()


def assert_same(fast: Callable, plain: Callable, *args: Array, within: float = 1e-5) -> None:
    """Equal values, gradients under a random cotangent and tangents under random ones, to `within` of the largest."""

    tangents = tuple(normal(9 + i, *x.shape).astype(x.dtype) for i, x in enumerate(args))

    def all_of(function: Callable) -> tuple:
        # The way back is run step by step: in one program with the way there, XLA:CPU aborts over some small products.
        y, vjp = jax.jit(lambda *args: jax.vjp(function, *args))(*args)
        leaves, tree = jax.tree.flatten(y)
        cotangent = tree.unflatten([normal(i, *leaf.shape).astype(leaf.dtype) for i, leaf in enumerate(leaves)])
        return y, vjp(cotangent), jax.jit(lambda *args: jax.jvp(function, args, tangents)[1])(*args)

    got, want = all_of(fast), all_of(plain)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=within, atol=within * max(1.0, float(jnp.abs(b).max(initial=0.0))))


def assert_close_in_bfloat16(fast: Callable, *args: Array) -> None:
    """In bfloat16 the values and gradients keep that type, and lie near those in float32."""
    low, vjp = jax.vjp(fast, *(x.astype(jnp.bfloat16) for x in args))
    high, exact_vjp = jax.vjp(fast, *args)
    for a, b in zip((low, *vjp(low)), (high, *exact_vjp(high)), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.04 * max(1.0, float(jnp.abs(b).max())))
