"""LoRA: a delta beside a base means what merging the two means, it alone is trained, and the base lies as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from nanogpt_jax.core.config import BASE_TYPES
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.lora import INT8, A, B, init_delta, layers_of, make_base, merge
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import Batch, init_params, init_state, loss_fn, make_eval_step, make_train_step

GPT2 = GPTConfig(block_size=16, vocab_size=32, n_layer=2, n_head=4, n_embd=32)
LLAMA = GPTConfig(
    block_size=16, vocab_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, position="rope", norm="rms", bias=False,
    activation="swiglu", tie_word_embeddings=False,
)  # fmt: skip
TEXT = np.random.default_rng(0).integers(0, 32, (3, 17)).astype(np.int32)
BATCH = Batch(TEXT[:, :-1], TEXT[:, 1:])
SCALE = 0.5


def model_and_delta(config, targets="attn,mlp", rank=3):
    """A model, its parameters, and a delta none of whose matrices is zero."""
    model = GPT(config)
    delta = init_delta(model, jax.random.key(1), rank, targets)
    noise = jax.tree.map(lambda x: 0.1 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32), delta)
    return model, init_params(model, 0), jax.tree.map(jnp.add, delta, noise)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("targets", ["attn,mlp", "attn.c_attn", "attn.c_proj, mlp.c_fc"])
def test_base_and_delta_are_what_they_are_merged(config, targets):
    model, params, delta = model_and_delta(config, targets)
    base = make_base(params, "float32", SCALE)
    beside = model.apply(base.with_delta(delta), BATCH.tokens)
    merged = model.apply({"params": merge(params, delta, SCALE)}, BATCH.tokens)
    jax.tree.map(np.testing.assert_array_equal, base.merged(delta), merge(params, delta, SCALE))
    np.testing.assert_allclose(beside, merged, atol=1e-6)
    assert np.abs(beside - model.apply({"params": params}, BATCH.tokens)).max() > 1e-3


@pytest.mark.parametrize("targets", ["attn.q", "attn.k", "attn.v", "attn.q,attn.v"])
def test_some_of_queries_keys_and_values_may_have_none(targets):
    model, params, delta = model_and_delta(LLAMA, targets)
    kernels = [tree["h_1"]["attn"]["c_attn"]["kernel"] for tree in (params, merge(params, delta, SCALE))]
    parts = np.split(np.asarray(kernels[1] - kernels[0]), LLAMA.qkv_cuts, axis=1)
    changed = {f"attn.{part}" for part, change in zip("qkv", parts, strict=True) if change.any()}
    assert changed == set(targets.split(","))
    beside = model.apply(make_base(params, "float32", SCALE).with_delta(delta), BATCH.tokens)
    np.testing.assert_allclose(beside, model.apply({"params": merge(params, delta, SCALE)}, BATCH.tokens), atol=1e-6)


def test_a_new_delta_changes_nothing_and_is_the_same_for_one_seed():
    model = GPT(LLAMA)
    one, same, other = (flatten_dict(init_delta(model, jax.random.key(seed), 4, "attn,mlp")) for seed in (1, 1, 2))
    for path, x in one.items():
        np.testing.assert_array_equal(x, same[path])
        if path[-1] == B:
            assert not x.any()
        else:
            assert np.abs(x).max() <= 1 / np.sqrt(x.shape[0]) and not np.array_equal(x, other[path])


@pytest.mark.parametrize("kind", BASE_TYPES)
def test_updates_are_those_of_a_loss_of_the_merged_model(kind):
    model, params, delta = model_and_delta(LLAMA)
    base = make_base(params, kind, SCALE)
    tx = optax.sgd(0.1)  # Adam makes steps of one size of gradients that are rounding alone
    held = dequantized(base)
    loss, grads = jax.jit(jax.value_and_grad(lambda d: loss_fn(model, merge(held, d, SCALE), BATCH)))(delta)
    updates, _ = tx.update(grads, tx.init(delta))
    before = jax.tree.map(np.asarray, base)
    plain = optax.apply_updates(delta, updates)
    state, metrics = make_train_step(model, tx)(init_state(delta, tx, 0, base), BATCH)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    for path, x in flatten_dict(state.params).items():
        np.testing.assert_allclose(x, flatten_dict(plain)[path], atol=1e-6, err_msg=str(path))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state.base), before)
    ones = np.ones(BATCH.tokens.shape, np.float32)
    of_eval = make_eval_step(model)(state.params, BATCH, ones, state.base) / ones.size
    np.testing.assert_allclose(of_eval, loss_fn(model, merge(held, state.params, SCALE), BATCH), rtol=1e-5)


def dequantized(base):
    """The parameters that a base stands for, in float32."""
    flat = {path: jnp.asarray(x, jnp.float32) for path, x in flatten_dict(base.variables["params"]).items()}
    for path, rows in flatten_dict(base.variables.get(INT8, {})).items():
        flat[path] = (rows.weight * rows.scale[:, None]).T
    tree = {}
    for path, x in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = x
    return tree


def test_a_base_in_int8_takes_a_quarter_of_the_blocks_bytes():
    _, params, _ = model_and_delta(GPT2)
    sizes = {kind: sum(x.nbytes for x in jax.tree.leaves(make_base(params, kind, 1.0))) for kind in BASE_TYPES}
    kernels = {path: x for path, x in flatten_dict(params).items() if path[-1] == "kernel"}
    size, scales = sum(x.nbytes for x in kernels.values()), sum(4 * x.shape[1] for x in kernels.values())
    assert sizes["bfloat16"] == sizes["float32"] - size // 2
    assert sizes["int8"] == sizes["float32"] - 3 * size // 4 + scales


@pytest.mark.parametrize("targets", ["attn,head", "", "attn.q", "mlp.c_gate"])
def test_targets_that_the_model_has_not_are_named(targets):
    with pytest.raises(
        UserError, match=r"choose some of attn, attn\.c_attn, attn\.c_proj, mlp, mlp\.c_fc, mlp\.c_proj$"
    ):
        layers_of(GPT2, targets)


def test_layers_are_found_by_every_name_they_have():
    assert layers_of(LLAMA, "attn.q,mlp.c_gate") == [("attn", "c_attn", "q"), ("mlp", "c_gate")]
    assert layers_of(LLAMA, "mlp") == [("mlp", "c_fc"), ("mlp", "c_gate"), ("mlp", "c_proj")]
    assert (
        layers_of(GPT2, "attn")
        == layers_of(GPT2, "attn.c_proj,attn.c_attn")
        == [("attn", "c_attn"), ("attn", "c_proj")]
    )
    assert A != B
