"""A device that is not there is refused by one line that names what asked for it, and what would bring it."""

import importlib.util
import shlex
import types

import jax
import pytest

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.run.accelerator import published_flops, use_accelerator
from nanogpt_jax.run.build import build_model
from tests.helpers.commands import command

COMMANDS = [
    ("train.py",), ("sample.py",), ("nanogpt_jax/lens/__main__.py",), ("nanogpt_jax/bench/__main__.py", "growth"),
    ("nanogpt_jax/compare/__main__.py", "--accelerator=auto"),
]  # fmt: skip


@pytest.fixture
def machine(monkeypatch):
    """A machine whose JAX finds a kind of device, with some packages installed."""

    def make(found, *packages):
        monkeypatch.setattr(jax, "default_backend", lambda: found)
        here = {package: types.SimpleNamespace() for package in packages}
        monkeypatch.setattr(importlib.util, "find_spec", here.get)

    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        monkeypatch.delenv(name, raising=False)
    return make


def refusal_of(requested):
    with pytest.raises(UserError) as error:
        use_accelerator(requested)
    return str(error.value)


@pytest.mark.parametrize(
    ("requested", "package", "extra", "look"),
    [("gpu", "jax_cuda13_plugin", "cuda", "nvidia-smi must list a GPU"), ("tpu", "libtpu", "tpu", "a TPU's machine")],
)
def test_only_support_that_is_missing_is_said_to_be(machine, requested, package, extra, look):
    machine("cpu")
    assert f"(JAX finds cpu only); install its support with pip install -e '.[{extra}]'" in refusal_of(requested)
    machine("cpu", package)
    line = refusal_of(requested)
    assert line.startswith(f"accelerator={requested} is not there: its support is installed, but JAX finds cpu only;")
    assert look in line and "pip install" not in line
    machine(requested, package)
    assert use_accelerator(requested) == use_accelerator("auto") == requested


def test_a_variable_that_keeps_an_accelerator_away_is_named(machine, monkeypatch):
    machine("cpu", "jax_cuda13_plugin")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "JAX_PLATFORMS=cpu in the environment leaves JAX cpu only; unset it" in refusal_of("gpu")


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend"), AssertionError()])
@pytest.mark.parametrize(("name", "value"), [("JAX_PLATFORMS", "cuda"), ("JAX_PLATFORM_NAME", "cpu ")])
def test_a_variable_that_names_no_device_here_is_named(machine, monkeypatch, error, name, value):
    def fails():
        raise error  # as JAX does for CUDA without its package

    machine("cpu")
    monkeypatch.setattr(jax, "default_backend", fails)
    monkeypatch.setenv(name, value)
    assert f"{name}={shlex.quote(value)} in the environment names a device that JAX does not" in refusal_of("auto")


@pytest.mark.parametrize(
    ("found", "versions", "dtype", "kernel"),
    [
        ("gpu", ["7.5", "7.5"], "float32", "xla"),  # T4
        ("gpu", ["9.0", "7.0"], "float32", "xla"),  # both run the program
        ("gpu", ["8.0"], "bfloat16", "cudnn"),
        ("gpu", ["12.0"], "bfloat16", "cudnn"),
        ("gpu", ["gfx942"], "bfloat16", "cudnn"),  # AMD's
        ("cpu", [None], "bfloat16", "cudnn"),  # compiled for GPUs that are not there
    ],
)
def test_an_old_gpu_is_given_what_runs_there(machine, monkeypatch, found, versions, dtype, kernel):
    machine(found)
    devices = [types.SimpleNamespace(compute_capability=version) for version in versions]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    model = build_model(Settings(n_embd=64, n_head=1, dropout=0.0), 65, "gpu")
    assert (model.dtype, model.kernel) == (dtype, kernel)
    asked = build_model(Settings(n_embd=64, n_head=1, dropout=0.0, dtype="bfloat16"), 65, "gpu")
    assert (asked.dtype, asked.kernel) == ("bfloat16", kernel)


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: argv[0])
def test_every_command_names_it(argv, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "abacus")
    done = command(*argv, cwd=tmp_path)
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert done.err.startswith("error: JAX_PLATFORMS=abacus in the environment names a device")
    assert list(tmp_path.iterdir()) == []


def test_the_flag_wins_over_the_environment(monkeypatch, trained, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "abacuses")
    monkeypatch.setenv("JAX_PLATFORM_NAME", "abacus")
    flags = (f"--out_dir={trained.out_dir}", "--num_samples=1", "--max_new_tokens=3", "--accelerator=cpu")
    assert command("sample.py", *flags, cwd=tmp_path).status == 0
    assert command("nanogpt_jax/convert.py", trained.out_dir, tmp_path / "hf").status == 0


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA L4", 121), ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA B200", 2250), ("NVIDIA GB200", 2500), ("TPU v5 lite", 197),
        ("TPU v5", 459),
    ],
)  # fmt: skip
def test_a_device_s_peak_is_that_of_its_own_kind(kind, teraflops):
    assert published_flops(kind) == pytest.approx(teraflops * 1e12)
    assert published_flops("cpu") is None
