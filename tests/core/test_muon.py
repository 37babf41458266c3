"""Muon: its orthogonalisation against an SVD, its updates against formulas written out and against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.flatten_util import ravel_pytree

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.muon import orthogonalized, scale_by_muon
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.train_step import init_params
from tests.helpers.twins import normal

SETTINGS = Settings(
    n_layer=2, n_head=4, n_kv_head=2, n_embd=8, mlp_size=24, block_size=8, vocab_size=11, optimizer="muon", bias=True,
    learning_rate=3e-3, muon_learning_rate=0.05, muon_momentum=0.9, weight_decay=0.3, decay_lr=False, grad_clip=0.0,
)  # fmt: skip


@pytest.mark.parametrize("shape", [(6, 6), (4, 7), (4, 9), (9, 4), (3, 5, 16)])
def test_every_matrix_comes_near_the_orthogonal_one_of_its_svd(shape):
    x = normal(0, *shape)
    made = np.asarray(jax.jit(orthogonalized)(x), np.float64)
    u, _, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    found = np.swapaxes(u, -1, -2) @ made @ np.swapaxes(vt, -1, -2)  # diagonal, if the singular vectors are the same
    diagonal = np.diagonal(found, axis1=-2, axis2=-1)
    np.testing.assert_allclose(found - diagonal[..., None] * np.eye(found.shape[-1]), 0, atol=1e-4)
    assert diagonal.min() > 0.6 and diagonal.max() < 1.2  # of Jordan's coefficients: close to one, and none exactly


def gradients(params, count):
    flat, unravel = ravel_pytree(params)
    return [unravel(normal(i, flat.size)) for i in range(count)]


def updated(settings, params, grads):
    tx = make_optimizer(settings)
    state = tx.init(params)
    # As users compile loops: two programs of the older emitters (conftest.py) may round the same formula otherwise.
    update = jax.jit(tx.update, compiler_options={"xla_cpu_use_fusion_emitters": True})
    for each in grads:
        updates, state = update(each, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def plain_orthogonal(x):
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / np.linalg.norm(x)
    for _ in range(5):
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x


def test_matrices_of_blocks_are_muons_and_all_else_is_adamws():
    params = init_params(GPT(SETTINGS.gpt_config(11)), 1)
    grads = gradients(params, 4)
    got = updated(SETTINGS, params, grads)
    by_adamw = updated(Settings(**{**vars(SETTINGS), "optimizer": "adamw"}), params, grads)

    def by_muon(path, p):
        p, total = np.asarray(p, np.float64), 0.0
        cuts = [8, 12] if path[-2].key == "c_attn" else []  # four heads of queries, two of keys, two of values
        for each in grads:
            g = np.asarray(jax.tree.leaves(each)[places[path]], np.float64)
            total = 0.9 * total + g
            parts = np.split(0.9 * total + g, cuts, axis=1)
            step = [plain_orthogonal(x) * np.sqrt(max(1, x.shape[1] / x.shape[0])) for x in parts]
            p = p - 0.05 * (np.concatenate(step, axis=1) + 0.3 * p)
        return p

    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    places = {path: i for i, (path, _) in enumerate(leaves)}
    for (path, p), mine, other in zip(leaves, jax.tree.leaves(got), jax.tree.leaves(by_adamw), strict=True):
        if path[0].key.startswith("h_") and p.ndim == 2:
            np.testing.assert_allclose(mine, by_muon(path, p), atol=2e-5, err_msg=str(path))
        else:
            np.testing.assert_array_equal(mine, other, err_msg=str(path))


@pytest.mark.parametrize("shape", [(32, 32), (32, 128), (128, 32)])
def test_singular_values_over_six_decades_lose_nothing_to_float32(shape):
    """As gradients have them; the steps that are multiplied with each other are as exact as one by one."""
    u, _, vt = np.linalg.svd(np.asarray(normal(0, *shape), np.float64), full_matrices=False)
    x = u * 10.0 ** -np.linspace(0, 6, min(shape)) @ vt
    want = plain_orthogonal(x)
    got = np.asarray(jax.jit(orthogonalized)(x.astype(np.float32)))
    assert np.linalg.norm(got - want) < 2e-5 * np.linalg.norm(want)


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_an_update_is_pytorchs(shape):
    """torch.optim.Muon computes in bfloat16, and keeps a matrix as (outputs, inputs)."""
    weight = torch.nn.Parameter(torch.zeros(shape[::-1]))
    theirs = torch.optim.Muon([weight], lr=1.0, momentum=0.9, weight_decay=0.0)
    ours = scale_by_muon(0.9, lambda layer: [])
    params = {"c_fc": {"kernel": jnp.zeros(shape)}}
    state = ours.init(params)
    for i in range(3):
        g = normal(i, *shape)
        weight.grad = torch.tensor(np.asarray(g.T))
        before = weight.detach().clone()
        theirs.step()
        update, state = ours.update({"c_fc": {"kernel": g}}, state)
        want = (before - weight.detach()).numpy().T
        np.testing.assert_allclose(update["c_fc"]["kernel"], want, atol=0.03 * np.abs(want).max())


def test_a_bigram_has_no_matrices_for_it():
    with pytest.raises(UserError, match="optimizer=muon is for the matrices of blocks, and model=bigram has none"):
        Settings(model="bigram", optimizer="muon")
