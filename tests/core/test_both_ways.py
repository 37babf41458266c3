"""The model can be differentiated forward, in reverse, and twice in either order, whatever rules its parts carry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanogpt_jax.core.bigram import Bigram
from nanogpt_jax.core.both_ways import both_ways
from nanogpt_jax.core.model import FUSED_LOSS_FROM, GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.softmax_attention import LONG
from nanogpt_jax.core.train_step import Batch, loss_fn
from tests.helpers.twins import fresh, normal

SHAPE = {"block_size": 6, "vocab_size": 11, "n_layer": 1, "n_head": 2, "n_embd": 8}
KEY = jax.random.key(3)
MODELS = {
    "gpt": GPT(GPTConfig(**SHAPE)),
    "two layers, remat": GPT(GPTConfig(**SHAPE | {"n_layer": 2}), remat=True),
    "dropout": GPT(GPTConfig(**SHAPE, dropout=0.3)),
    "untied, no biases": GPT(GPTConfig(**SHAPE, bias=False, tie_word_embeddings=False, activation="relu")),
    "fused loss": GPT(GPTConfig(**SHAPE | {"vocab_size": FUSED_LOSS_FROM})),
    "long": GPT(GPTConfig(**SHAPE | {"block_size": LONG + 3})),
    "llama": GPT(
        GPTConfig(
            **SHAPE, position="rope", norm="rms", activation="swiglu", n_kv_head=1, qk_norm=True, token_shift=True
        )
    ),
    "softcap, fused loss": GPT(GPTConfig(**SHAPE | {"vocab_size": FUSED_LOSS_FROM}, logit_softcap=3.0)),
    "bigram": Bigram(GPTConfig(**SHAPE)),
}


@pytest.fixture(scope="module", params=MODELS)
def problem(request):
    """A loss as a function of parameters, the parameters, and a direction to move them in."""
    model = MODELS[request.param]
    params = fresh(model)
    windows = np.random.default_rng(0).integers(0, 11, (2, model.config.block_size + 1)).astype(np.int32)
    batch = Batch(windows[:, :-1], windows[:, 1:])
    leaves, tree = jax.tree.flatten(params)
    direction = tree.unflatten([normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])
    key = KEY if model.config.dropout else None
    return lambda params: loss_fn(model, params, batch, key), params, direction


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def forward_over_reverse(loss, params, direction):
    return jax.jvp(jax.grad(loss), (params,), (direction,))[1]


def reverse_over_forward(loss, params, direction):
    return jax.grad(lambda params: jax.jvp(loss, (params,), (direction,))[1])(params)


def assert_close(a, b, within):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=within * max(1.0, float(jnp.abs(y).max())))


def test_forward_mode_is_the_slope_that_the_gradient_says(problem):
    loss, params, direction = problem
    slope = jax.jit(lambda p, v: jax.jvp(loss, (p,), (v,))[1])(params, direction)
    assert float(slope) == pytest.approx(float(dot(jax.jit(jax.grad(loss))(params), direction)), rel=1e-4)


def test_hessian_vector_products_agree_in_both_orders_and_with_differences_of_the_gradient(problem):
    loss, params, direction = problem
    one, other = (
        jax.jit(functools.partial(product, loss))(params, direction)
        for product in (forward_over_reverse, reverse_over_forward)
    )
    assert_close(one, other, within=1e-4)
    gradient, step = jax.jit(jax.grad(loss)), 3e-4
    ahead, behind = (gradient(jax.tree.map(lambda p, v, s=s: p + s * v, params, direction)) for s in (step, -step))
    assert_close(one, jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind), within=3e-2)


def test_gradients_of_each_example_by_vmap():
    model = MODELS["gpt"]
    params = fresh(model)
    windows = np.random.default_rng(0).integers(0, 11, (3, 1, 7)).astype(np.int32)
    batch = Batch(windows[..., :-1], windows[..., 1:])
    gradient = jax.grad(lambda params, batch: loss_fn(model, params, batch))
    together = jax.jit(jax.vmap(gradient, (None, 0)))(params, batch)
    for i in range(3):
        alone = jax.jit(gradient)(params, jax.tree.map(lambda x, i=i: x[i], batch))
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone, within=1e-5)


def test_reverse_mode_takes_the_rule_and_forward_mode_the_function():
    @both_ways
    def twice(x, unmoved):
        return 2 * x

    twice.defvjp(lambda x, unmoved: (2 * x, None), lambda _, dy: (100 * dy, None))
    x, n = jnp.float32(3), jnp.int32(1)
    assert jax.jvp(lambda x: twice(x, n), (x,), (jnp.float32(1),))[1] == 2
    assert jax.grad(twice)(x, n) == 100
    assert jax.grad(twice)(x, None) == 100
    np.testing.assert_array_equal(jax.vmap(jax.grad(twice), (0, None))(jnp.ones(3), n), [100] * 3)
    np.testing.assert_array_equal(jax.grad(lambda x: jax.vmap(twice, (0, None))(x, n).sum())(jnp.ones(3)), [100] * 3)
