"""What compiles for chips that are not there, and marks for tests that need it."""

import importlib.util

import pytest

from tests.helpers.commands import Finished, as_users_compile, command


def _has(package: str) -> bool:
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


HAS_LIBTPU = _has("libtpu")
HAS_CUDA = _has("jax_cuda13_plugin") or _has("jax_cuda12_plugin")

needs_libtpu = pytest.mark.skipif(
    not HAS_LIBTPU, reason="libtpu, which compiles for TPUs, is not installed (pip install -e '.[tpu]', Linux)"
)
needs_cuda = pytest.mark.skipif(
    not HAS_CUDA, reason="JAX's CUDA plugin, which compiles for GPUs, is not installed (.ci/gpu does it all, Linux)"
)


def compiled(*arguments: str) -> Finished:
    """`train.py` with the arguments, compiling as it does for users."""
    with as_users_compile():
        return command("train.py", *arguments)
