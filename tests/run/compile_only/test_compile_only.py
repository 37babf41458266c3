"""A training step compiled for a TPU slice, or for GPUs, that are not there; and what is said where that cannot be."""

import re

import pytest

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.run.compile_only.chips import chips_of
from nanogpt_jax.run.compile_only.report import what_is_lacking
from tests.helpers.chips import HAS_CUDA, HAS_LIBTPU, compiled, needs_cuda, needs_libtpu
from tests.helpers.commands import command

TINY = ("gpt2", "--n_layer=1", "--n_head=2", "--n_embd=128", "--vocab_size=8192", "--block_size=256")
SMALL_BATCH = ("--batch_size=8", "--gradient_accumulation_steps=1")
MATRICES, VECTORS = 8192 * 128 + 256 * 128 + 12 * 128 * 128, 3 * 128
EACH_MEMORY = [pytest.param("v5e:2x2", 16.0, marks=needs_libtpu), pytest.param("h100:4", 74.5, marks=needs_cuda)]
EACH = [pytest.param(*each.values[:1], marks=each.marks) for each in EACH_MEMORY]


@pytest.mark.parametrize(("chips", "memory"), EACH_MEMORY)
def test_a_step_is_compiled_for_chips_and_its_cost_told(chips, memory):
    done = compiled(*TINY, *SMALL_BATCH, f"--compile_only={chips}", "--mesh=data:2,fsdp:2")
    assert done.status == 0, done.err
    assert done.err == ""
    assert f"{chips}: 4 chips, mesh data:2,fsdp:2, 2,048 tokens a step (1 x 8 x 256)" in done.out
    parameters = MATRICES / 2 + VECTORS  # matrices are halved between chips
    told = {name: float(size) for name, size in re.findall(r"^  ([a-z ]+?) +([\d.]+) GiB", done.out, re.M)}
    assert told["parameters"] == pytest.approx(4 * parameters / 2**30, abs=6e-4)
    assert told["optimizer state"] == pytest.approx(8 * parameters / 2**30, abs=6e-4)
    assert told["arguments"] == pytest.approx((12 * parameters + 2 * 2 * 256 * 4) / 2**30, abs=6e-4)
    code = 0.02  # GiB at most, of the program itself
    assert -2e-3 < told["peak"] - told["arguments"] - told["temporaries"] < code
    left = re.search(r"peak +[\d.]+ GiB of ([\d.]+): fits, ([\d.]+) GiB left", done.out)
    assert float(left[1]) == memory and float(left[2]) == pytest.approx(memory - told["peak"], abs=0.06)
    assert {"all-gather", "all-reduce"} <= set(re.findall(r"^  ([a-z]+-[a-z-]+) +[\d.]+ MB$", done.out, re.M))
    assert re.search(r"at best: compute [\d.]+ ms, memory [\d.]+ ms, interconnect [\d.]+ ms$", done.out, re.M)
    assert re.search(r"step [\d.]+ ms \((compute|memory|interconnect) bound\), [\d,]+ tokens/s, MFU [\d.]+%", done.out)


@needs_cuda
def test_what_goes_between_hosts_is_told_and_bound_by_their_network():
    done = compiled(*TINY, *SMALL_BATCH, "--compile_only=h100:2x4", "--mesh=data:2,fsdp:4")
    assert done.status == 0, done.err
    sent = {kind: float(size) for kind, size in re.findall(r"^  ([a-z -]+?) +([\d.]+) MB", done.out, re.M)}
    gradient = 4 * MATRICES / 4 / 1e6  # the share of one GPU, in float32 at most; two hosts exchange it once
    assert 0.5 * gradient <= sent["between hosts"] <= 1.05 * gradient
    took = float(re.search(r"network ([\d.]+) ms", done.out)[1])
    assert took == pytest.approx(1e3 * sent["between hosts"] * 1e6 / (400e9 / 8), abs=0.01)


@needs_cuda
def test_what_does_not_fit_is_told_by_how_much():
    done = compiled(
        "gpt2_xl", "--n_layer=1", "--vocab_size=1000000", *SMALL_BATCH, "--block_size=256", "--compile_only=l4:1"
    )
    assert done.status == 0, done.err
    told = re.search(r"peak +([\d.]+) GiB of 22.4: does not fit, ([\d.]+) GiB too much", done.out)
    assert float(told[1]) - 22.352 == pytest.approx(float(told[2]), abs=0.01)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm "
            "capacity by 4.75G.\n\nTotal hbm usage >= 21.02G:",
            "it takes 20.50G of 15.75G, 4.75G too much",
        ),
        (  # libtpu 0.0.42
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (131.55G) "
            "exceeds available HBM (15.75G).",
            "its HLO temporaries take 131.55G, more than the 15.75G there are",
        ),
        ("RESOURCE_EXHAUSTED: in words\nof tomorrow", "RESOURCE_EXHAUSTED: in words of tomorrow"),
    ],
)
def test_each_compilers_words_for_too_little_memory_are_told_whole(said, told):
    assert what_is_lacking(RuntimeError(said)) == told


@needs_libtpu
def test_a_slice_that_libtpu_does_not_know_is_one_line():
    assert "compile_only=v5e:3x3 is nothing that libtpu knows" in refusal("--compile_only=v5e:3x3")


@pytest.mark.parametrize(
    "chips",
    ["v99:2x2", "h900:8", "v5e", "h100", "v5e:axb", "h100:two", "h100:0", "h100:2x8x8", "v5e:4", "nonsense", ""],
)
def test_what_is_no_chips_is_refused(chips):
    with pytest.raises(UserError) as error:
        chips_of(chips)
    assert f"compile_only={chips} names no chips that are known here; give a TPU slice (v5e, v5p, v6e) as" in str(error)
    assert "or GPUs (a100, h100, h200, b200, l4, 4090) as h100:8, or h100:2x8 for two hosts of eight" in str(error)


def test_what_is_no_chips_is_one_line():
    assert "compile_only=h900:8 names no chips" in refusal("--compile_only=h900:8")


@pytest.mark.parametrize(
    ("chips", "limit", "mend"),
    [
        ("h100:16", "is of 16 GPUs in a host, which holds 8 at most", "h100:2x8"),
        ("b200:4x20", "is of 20 GPUs in a host, which holds 8 at most", "b200:12x8"),
        ("l4:2x8", "is of 2 hosts, and no network between hosts of l4 is published", "l4:8"),
    ],
)
def test_hosts_that_there_are_not_are_refused(chips, limit, mend):
    with pytest.raises(UserError, match=f"compile_only={chips} {limit}; give {mend}$"):
        chips_of(chips)


@pytest.mark.parametrize("chips", EACH)
def test_a_mesh_that_does_not_fit_the_chips_is_one_line(chips):
    line = refusal(*SMALL_BATCH, f"--compile_only={chips}", "--mesh=data:8")
    assert "mesh=data:8 is of 8 devices where there are 4" in line


@pytest.mark.parametrize(
    ("chips", "package", "extra"),
    [
        pytest.param("v5e:2x2", "libtpu", "tpu", marks=pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")),
        pytest.param(
            "h100:8", "jax_cuda13_plugin", "cuda", marks=pytest.mark.skipif(HAS_CUDA, reason="the plugin is installed")
        ),
    ],
)
def test_a_compiler_that_is_not_installed_is_one_line(chips, package, extra):
    line = refusal(f"--compile_only={chips}")
    assert f"compile_only={chips} needs {package} (Linux); install it with pip install -e '.[{extra}]'" in line


def refusal(*arguments):
    """The line that refuses them."""
    done = command("train.py", *TINY, *arguments)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1)
    return done.err
