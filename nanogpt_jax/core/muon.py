"""Muon (Jordan et al., 2024): momentum, each matrix of it brought near the closest orthogonal one before it is added.

optax has Muon for one matrix after the other. Here queries, keys and values are the three matrices they mean, and all
matrices of one shape are a batch, whose products fill the machine.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's iteration: steepest at zero, and within (0.68, 1.13) in the end
# Its five steps, and how many of them are one product. All five of a long matrix would be less work still, but what
# float32 rounds off x x^T grows with every one: to 3e-4 of an update, where these leave 1e-5, as much as one by one.
_SQUARE, _LONG = (1, 1, 1, 1, 1), (3, 2)


class MuonState(NamedTuple):
    """The running sum of gradients, a tree like the parameters'."""

    momentum: Any


def orthogonalized(x: Float[Array, "*N R C"]) -> Float[Array, "*N R C"]:
    """Near U V^T for each matrix U S V^T: Newton and Schulz's iteration on its singular values, in float32.

    x <- (a + b x x^T + c (x x^T)^2) x, five times from x / |x|, brings every singular value that is not tiny close to
    one, and none exactly. Several factors of a long matrix are multiplied with each other before they meet it, because
    they are small.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonalized(x.mT).mT
    x = x.astype(jnp.float32)
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for steps in _LONG if x.shape[-1] >= 2 * x.shape[-2] else _SQUARE:
        x = _factor(x @ x.mT, steps) @ x
    return x


def _factor(gram: Float[Array, "*N R R"], steps: int) -> Float[Array, "*N R R"]:
    """The product of the factors of so many steps from x x^T on, which are polynomials of it, and so commute."""
    a, b, c = _COEFFICIENTS
    step = a * jnp.eye(gram.shape[-1]) + b * gram + c * gram @ gram
    return step if steps == 1 else _factor(step @ gram @ step, steps - 1) @ step


def scale_by_muon(
    momentum: float | Float[Array, ""], columns: Callable[[str], list[int]]
) -> optax.GradientTransformation:
    """Gradients of matrices to Muon's updates, before the learning rate: Nesterov momentum, then `orthogonalized`.

    An update is scaled by sqrt(max(1, outputs / inputs)), so that it moves outputs by about as much whatever the shape.
    `columns` says, by the name of a layer, where its kernel (inputs, outputs) is cut into the matrices it consists of.
    """

    def init(params: optax.Params) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(
        grads: optax.Updates, state: MuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        sums = jax.tree.map(lambda m, g: momentum * m + g, state.momentum, grads)
        ahead = jax.tree.map(lambda m, g: momentum * m + g, sums, grads)
        leaves, tree = jax.tree_util.tree_flatten_with_path(ahead)
        parts = [jnp.split(x, columns(path[-2].key), axis=1) for path, x in leaves]
        done = iter(_by_shape([part for of_leaf in parts for part in of_leaf]))
        updates = [jnp.concatenate([next(done) for _ in of_leaf], axis=1) for of_leaf in parts]
        return jax.tree.unflatten(tree, updates), MuonState(sums)

    return optax.GradientTransformation(init, update)


def _by_shape(matrices: list[Array]) -> list[Array]:
    """Each matrix orthogonalised and scaled, those of one shape, lying or standing, in one batch."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, x in enumerate(matrices):
        alike[tuple(sorted(x.shape))].append(i)
    done: list[Any] = [None] * len(matrices)
    for indices in alike.values():
        lying = [matrices[i] if matrices[i].shape[0] <= matrices[i].shape[1] else matrices[i].T for i in indices]
        for i, x in zip(indices, orthogonalized(jnp.stack(lying)), strict=True):
            inputs, outputs = matrices[i].shape
            done[i] = (x if inputs <= outputs else x.T) * math.sqrt(max(1.0, outputs / inputs))
    return done
