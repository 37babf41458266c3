"""JAX's own switches change no number: not of a library call, and not of a command."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.sampling import generate
from nanogpt_jax.core.train_step import (
    Batch,
    init_params,
    init_state,
    loss_fn,
    make_eval_step,
    make_train_step,
    purpose_key,
)
from nanogpt_jax.run.presets import preset
from tests.helpers.commands import as_users_compile, command, metrics_of
from tests.helpers.tiny import prepare_tiny

SETTINGS = preset("shakespeare_char_cpu", n_layer=1, dropout=0.1, warmup_iters=3)
MODEL = GPT(SETTINGS.gpt_config(65))
OTHERWISE = {
    "enable_x64": True,
    "default_prng_impl": "rbg",
    "threefry_partitionable": False,
    "numpy_rank_promotion": "raise",
    "numpy_dtype_promotion": "strict",
    "default_matmul_precision": "bfloat16",
}


def batch_at(i):
    windows = np.random.default_rng(i).integers(0, 65, (12, 65)).astype(np.int32)
    return Batch(windows[:, :-1], windows[:, 1:])


def everything():
    """Ten updates from fresh parameters, an evaluation and a text, by functions that are compiled here and now."""
    tx = make_optimizer(SETTINGS)
    params = init_params(MODEL, SETTINGS.seed)
    state = init_state(params, tx, SETTINGS.seed)
    text = generate(MODEL, params, [1, 2, 3], purpose_key(7, "sample"), max_new_tokens=9, num_samples=2)
    step = make_train_step(MODEL, tx)
    for i in range(10):
        state, metrics = step(state, batch_at(i))
    loss = loss_fn(MODEL, state.params, batch_at(0))
    total = make_eval_step(MODEL)(state.params, batch_at(0), np.ones((12, 64), np.float32))
    return jax.tree.map(np.asarray, (state, metrics, text, loss, total))


@pytest.fixture(scope="module")
def usual():
    return everything()


@pytest.mark.parametrize("switch", OTHERWISE)
def test_no_switch_changes_a_bit_of_what_the_library_computes(usual, switch):
    with getattr(jax, switch)(OTHERWISE[switch]):
        found = everything()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(usual), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_nor_in_a_program_of_the_callers(usual):
    params, key = usual[0].params, purpose_key(3, "dropout")

    def loss(params, batch, key):
        return loss_fn(MODEL, params, batch, key)

    want = jax.jit(jax.value_and_grad(loss))(params, batch_at(0), key)
    for switch in ("enable_x64", "numpy_dtype_promotion", "numpy_rank_promotion", "default_prng_impl"):
        with getattr(jax, switch)(OTHERWISE[switch]):
            found = jax.jit(jax.value_and_grad(loss))(params, batch_at(0), key)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            assert a.dtype == b.dtype == jnp.float32
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    with jax.threefry_partitionable(False), pytest.raises(UserError, match="JAX_THREEFRY_PARTITIONABLE=0 changes"):
        jax.jit(loss)(params, batch_at(0), key)


def test_keys_are_those_of_jax():
    for seed in (0, 1337, 2**32 - 1):
        want = jax.random.fold_in(jax.random.key(jnp.uint32(seed)), 1)
        np.testing.assert_array_equal(jax.random.key_data(purpose_key(seed, "dropout")), jax.random.key_data(want))


ENVIRONMENT = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_RANDOM_SEED_OFFSET": "5",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
    "JAX_DISABLE_JIT": "1",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_HIGH_DYNAMIC_RANGE_GUMBEL": "1",
    "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
}


def test_a_run_and_its_texts_are_the_same_under_all_of_them_at_once(tmp_path, monkeypatch):
    arguments = (
        "--n_layer=1", "--max_iters=10", "--eval_interval=5", "--eval_iters=1", "--dataset=tiny", "--accelerator=cpu",
        f"--data_dir={prepare_tiny(tmp_path)}",
    )  # fmt: skip
    texts, params, losses = [], [], []
    for name, environment in (("plain", {}), ("switched", ENVIRONMENT)):
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        out_dir = tmp_path / name
        with as_users_compile():
            ran = command("train.py", "shakespeare_char_cpu", "--nan_policy=skip", *arguments, f"--out_dir={out_dir}")
        assert ran.status == 0, ran.err
        losses.append([(m["step"], m["split"], m["loss"]) for m in metrics_of(out_dir)])
        params.append(load_file(out_dir / "checkpoints" / "10" / "files" / "params.safetensors"))
        # each time from the plain run: what it saved is read under the switches too
        with as_users_compile():
            drawn = command(
                "sample.py", f"--out_dir={tmp_path / 'plain'}", "--num_samples=2", "--max_new_tokens=40", "--start=to"
            )
        assert drawn.status == 0, drawn.err
        texts.append(drawn.out)
        assert len(drawn.err.splitlines()) == bool(environment)
        assert all(f" {variable}=" in drawn.err for variable in environment)
    assert losses[0] == losses[1] and texts[0] == texts[1]
    assert params[0].keys() == params[1].keys()
    for path, tensor in params[0].items():
        np.testing.assert_array_equal(tensor, params[1][path])
