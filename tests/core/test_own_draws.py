"""A key of one part of the rows draws that part of what its whole key draws, through all that is derived from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanogpt_jax.core.own_draws import own_key

KEY = jax.random.key(3, impl="threefry2x32")


def derived(key):
    return jax.random.split(jax.random.fold_in(key, 7), 3)[1]


@pytest.mark.parametrize("shape", [(8,), (8, 5), (16, 3, 4, 4)])
def test_the_parts_together_are_the_whole(shape):
    rows = shape[0] // 4
    draw = jax.jit(lambda key, rows: jax.random.bernoulli(derived(key), 0.9, (rows, *shape[1:])), static_argnums=1)
    parts = [draw(own_key(KEY, jnp.int32(part)), rows) for part in range(4)]
    assert np.array_equal(np.concatenate(parts), draw(KEY, shape[0]))


def test_places_are_counted_in_64_bits():
    first, beyond = (jax.random.bits(own_key(KEY, jnp.int32(part)), (4096,)) for part in (0, 2**20))
    assert not np.any(first == beyond)
