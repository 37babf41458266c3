"""A training step compiled for a TPU slice that is not there."""

import importlib.util
import re

import pytest

from tests.helpers.commands import command

TINY = ("gpt2", "--n_layer=1", "--n_head=2", "--n_embd=128", "--vocab_size=8192", "--block_size=256")
SMALL_BATCH = ("--batch_size=8", "--gradient_accumulation_steps=1")

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None or importlib.util.find_spec("libtpu").origin is None,
    reason="libtpu, which compiles for TPUs, is not installed (pip install -e '.[tpu]', Linux)",
)


@needs_libtpu
def test_a_step_is_compiled_for_a_slice_and_its_cost_told():
    done = command("train.py", *TINY, *SMALL_BATCH, "--compile_only=v5e:2x2", "--mesh=data:2,fsdp:2")
    assert done.status == 0, done.err
    assert done.err == ""
    assert "v5e:2x2: 4 chips, mesh data:2,fsdp:2, 2,048 tokens a step (1 x 8 x 256)" in done.out
    parameters = 8192 * 128 + 256 * 128 + 12 * 128 * 128 + 3 * 128  # of which matrices are halved between chips
    told = dict(re.findall(r"^  (parameters|optimizer state) +([\d.]+) GiB$", done.out, re.M))
    assert float(told["parameters"]) == pytest.approx(4 * parameters / 2 / 2**30, abs=1e-3)
    assert float(told["optimizer state"]) == pytest.approx(8 * parameters / 2 / 2**30, abs=1e-3)
    assert re.search(r"peak +[\d.]+ GiB of 16: fits, 1\d\.\d+ GiB left", done.out)
    assert {"all-gather", "all-reduce"} <= set(re.findall(r"^  ([a-z]+-[a-z-]+) +[\d.]+ MB$", done.out, re.M))
    assert re.search(r"at best: compute [\d.]+ ms, memory [\d.]+ ms, interconnect [\d.]+ ms", done.out)
    assert re.search(r"step [\d.]+ ms \((compute|memory|interconnect) bound\), [\d,]+ tokens/s, MFU [\d.]+%", done.out)


@needs_libtpu
def test_a_slice_that_libtpu_does_not_know_is_one_line():
    done = command("train.py", *TINY, "--compile_only=v5e:3x3")
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert "compile_only=v5e:3x3 is no slice" in done.err


@pytest.mark.parametrize("topology", ["v99:2x2", "v5e", "v5e:axb", "nonsense"])
def test_what_is_no_slice_is_one_line(topology):
    done = command("train.py", *TINY, f"--compile_only={topology}")
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert f"compile_only={topology} is not a TPU slice" in done.err


@needs_libtpu
def test_a_mesh_that_does_not_fit_the_slice_is_one_line():
    done = command("train.py", *TINY, *SMALL_BATCH, "--compile_only=v5e:2x2", "--mesh=data:8")
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert "mesh=data:8 is of 8 devices where there are 4" in done.err
