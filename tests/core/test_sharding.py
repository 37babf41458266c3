"""One program on every mesh: the same losses, each device its own share, and no more communication than there must be.

Virtual devices exist in fresh processes only, so one child trains on all meshes and the tests look at what it found.
"""

import json
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from nanogpt_jax.core import sharding
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.run.mesh import mesh_shape, require_fit
from nanogpt_jax.run.presets import preset
from tests.helpers.commands import HANGS, ROOT
from tests.helpers.jobs import virtual_devices

SMALL, LARGE = 64, 4096  # vocabularies: from 4096 on the head and the loss are one function
MESHES = {
    "tensor:2": 2, "fsdp:2,tensor:2": 4, "data:8": 8, "fsdp:8": 8,
    "data:2,fsdp:2,tensor:2": 8,
}  # fmt: skip
RUNS = [
    ("auto", 1, SMALL, 1), *((mesh, count, SMALL, 1) for mesh, count in MESHES.items()),
    ("auto", 1, LARGE, 2), ("tensor:2", 2, LARGE, 2),
    *((mesh, 8, LARGE, 2) for mesh in ("data:8", "fsdp:8", "data:2,fsdp:2,tensor:2")),
    ("auto", 1, SMALL, 1, "llama"), ("data:2,fsdp:2,tensor:2", 8, SMALL, 1, "llama"),
    ("auto", 1, SMALL, 1, "muon"), ("data:2,fsdp:2,tensor:2", 8, SMALL, 1, "muon"),
    ("auto", 1, SMALL, 1, "one key head"), ("data:4,tensor:2", 8, SMALL, 1, "one key head"),
    ("auto", 1, SMALL, 2, "lora, two texts a row"), ("data:2,fsdp:2,tensor:2", 8, SMALL, 2, "lora, two texts a row"),
]  # fmt: skip


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.mesh_child", json.dumps(RUNS)], cwd=ROOT, env=virtual_devices(8),
        capture_output=True, text=True, timeout=HANGS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(RUNS, json.loads(done.stdout), strict=True))


def kinds(of):
    return Counter(kind for kind, *_ in of["collectives"])


@pytest.mark.parametrize("run", [run for run in RUNS if run[1] > 1], ids=str)
def test_every_mesh_gives_the_losses_of_one_device(found, run):
    """In the second half of the updates devices count unequally many targets: the last one none."""
    alone = found["auto", 1, *run[2:]]
    assert found[run]["bits"] == alone["bits"]
    assert found[run]["losses"] == pytest.approx(alone["losses"], rel=0, abs=1e-5)
    assert len(set(alone["losses"])) == 20


@pytest.mark.parametrize("mesh", MESHES)
def test_no_device_holds_more_than_its_share(found, mesh):
    shape = mesh_shape(mesh, MESHES[mesh])
    of = found[mesh, MESHES[mesh], SMALL, 1]
    share = 1 / (shape.fsdp * shape.tensor)
    assert of["shards"] == [share, share] and of["after"] == share  # the parameter, its moment; and after 20 updates


def test_data_parallel_training_sums_gradients_and_nothing_else(found):
    assert set(kinds(found["data:8", 8, SMALL, 1])) == {"all-reduce"}


def test_fsdp_gathers_each_matrix_and_brings_its_gradient_back(found):
    """XLA:CPU has no pass that joins an all-reduce and a slice to a reduce-scatter; a TPU's program has neither."""
    collectives = kinds(found["fsdp:8", 8, SMALL, 1])
    assert set(collectives) <= {"all-gather", "all-reduce", "reduce-scatter"}
    matrices = 6  # four of the block, and two tables, of which that of the tokens is used twice
    assert matrices <= collectives["all-gather"] <= matrices + 2


def test_tensor_parallel_training_deals_out_heads_without_gathering_activations(found):
    collectives = kinds(found["tensor:2", 2, SMALL, 1])
    assert set(collectives) == {"all-reduce", "all-to-all", "all-gather"}
    assert collectives["all-to-all"] == 2  # c_attn to heads, and its gradient back
    assert collectives["all-gather"] == 2  # the gradients of two bias vectors


def test_micro_batches_are_summed_along_data_once_an_update(found):
    """Nothing goes along `data` in the loop over them: before it the number of targets does, after it the sums."""
    alone, mixed = (found[mesh, 8, LARGE, 2]["collectives"] for mesh in ("data:8", "data:2,fsdp:2,tensor:2"))
    assert alone == [["all-reduce", ["data"], False]] * 2
    assert {(kind, in_loop) for kind, axes, in_loop in mixed if "data" in axes} == {("all-reduce", False)}


def test_each_micro_batch_brings_its_gradient_to_the_shares_along_fsdp(found):
    """Else each device would hold a whole one; XLA:CPU reduces everywhere and slices."""
    collectives = found["fsdp:8", 8, LARGE, 2]["collectives"]
    assert "all-reduce" in [kind for kind, axes, in_loop in collectives if in_loop]


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data:3", "is of 3 devices where there are 8"),
        ("data:2,data:4", "'data:4'"),
        ("data:8,pipe:1", "'pipe:1'"),
        ("data", "'data'"),
        ("data:-8", "'data:-8'"),
        ("", "''"),
    ],
)
def test_a_mesh_that_is_none_is_refused(mesh, message):
    with pytest.raises(UserError, match=message) as error:
        mesh_shape(mesh, 8)
    assert f"mesh={mesh}" in str(error.value)


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        ("data:8", {"batch_size": 13}, r"batch_size=13 cannot be split over the 8 devices"),
        ("data:8", {"batch_size": 2, "gradient_accumulation_steps": 8}, "batch_size=8 with gradient_accumulation_st"),
        ("tensor:8", {"n_head": 4}, "n_head=4 cannot be split over the 8 devices along tensor of mesh=tensor:8"),
        ("fsdp:8", {"n_embd": 132, "batch_size": 8}, "n_embd=132 cannot be split"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(mesh, changes, message):
    with pytest.raises(UserError, match=message):
        require_fit(mesh_shape(mesh, 8), preset("shakespeare_char_cpu", **changes))


def test_moments_lie_as_their_parameters_and_vectors_are_whole():
    mesh = jax.sharding.AbstractMesh((2, 2, 2), sharding.AXES)
    matrix, vector = jax.ShapeDtypeStruct((32, 128), jnp.float32), jax.ShapeDtypeStruct((128,), jnp.float32)
    params = {"h_0": {"mlp": {"c_fc": {"kernel": matrix, "bias": vector}}}}
    places = sharding.state_shardings(
        mesh, {"params": params, "mu": params, "count": jax.ShapeDtypeStruct((), "int32")}
    )
    for tree in ("params", "mu"):
        layer = places[tree]["h_0"]["mlp"]["c_fc"]
        assert layer["kernel"].spec == P("fsdp", "tensor") and layer["bias"].spec == P()
    assert places["count"].spec == P()
    assert sharding.stored_spec("wte", (65, 32), mesh.shape) == P(None, "fsdp")  # 65 rows are not split in two
