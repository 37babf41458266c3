"""Keys that draw one device's rows of what all devices draw together.

A random number is a function of its key and its place in the array. In a program of all devices, XLA lets each draw the
places it holds. Where each has a program of its own (`sharding.sum_along_data`), its arrays are parts of the whole, and
a key that knows which part keeps the draws what they are on one device.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry2x32_p, threefry_prng_impl
from jaxtyping import Array, Integer, PRNGKeyArray, UInt32

Words = UInt32[Array, "*N 3"]
"""A threefry key's two words, and the number of the part."""


def own_key(key: PRNGKeyArray, part: Integer[Array, ""]) -> PRNGKeyArray:
    """A key whose draws of shape (B, ...) are those that `key` gives the `part`-th B rows of a longer array.

    So it is for what is derived from it. Draws are of 32 bits each, as float32 takes them.
    """
    return jax.random.wrap_key_data(_with_part(jax.random.key_data(key), part), impl=_OWN)


def _with_part(words: UInt32[Array, "*N 2"], part: Integer[Array, ""]) -> Words:
    part = jnp.broadcast_to(part.astype(jnp.uint32), (*words.shape[:-1], 1))
    return jnp.concatenate([words, part], axis=-1)


def _bits(words: Words, width: int, shape: tuple[int, ...]) -> UInt32[Array, ...]:
    """What threefry in its partitionable form draws: a hash of each place, counted in 64 bits from the first row on."""
    if width != 32:
        raise NotImplementedError(f"draws of {width} bits")
    high, low, part = words
    with jax.enable_x64(True):
        place = part.astype(jnp.uint64) * math.prod(shape)
        for axis in range(len(shape)):
            place += jax.lax.broadcasted_iota(jnp.uint64, shape, axis) * math.prod(shape[axis + 1 :])
        counts = (place >> 32).astype(jnp.uint32), place.astype(jnp.uint32)
    first, second = threefry2x32_p.bind(high, low, *counts)
    return first ^ second


_OWN = define_prng_impl(
    key_shape=(3,),
    seed=lambda seed: _with_part(threefry_prng_impl.seed(seed), jnp.zeros((), jnp.uint32)),
    split=lambda words, shape: _with_part(threefry_prng_impl.split(words[:2], shape), words[2]),
    random_bits=_bits,
    fold_in=lambda words, data: _with_part(threefry_prng_impl.fold_in(words[:2], data), words[2]),
    name="own_rows",
    tag="own",
)
