"""What is refused, and in what line; and what the system refuses where a test needs it: permissions, and room."""

import contextlib
import ctypes
import resource
import signal
from collections.abc import Callable

import jax
import pytest

from nanogpt_jax.core.errors import UserError

_VERSION_3 = 0x20080522
_READS_AND_WRITES_ANYTHING = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def refusal(function: Callable[..., object], *arguments: object, **named: object) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **named)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@contextlib.contextmanager
def permissions_that_count():
    """Take this thread root's power to read and write what the permissions deny; others never had it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, before = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    effective, *rest = before
    assert libc.capset(header, (ctypes.c_uint32 * 6)(effective & ~_READS_AND_WRITES_ANYTHING, *rest)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@contextlib.contextmanager
def largest_file(size):
    """No file may grow beyond `size` bytes: the kernel refuses the rest, as a full disk does.

    What is compiled meanwhile is not kept: JAX would leave half of it in the cache that the tests share.
    """
    kept_from = jax.config.jax_persistent_cache_min_compile_time_secs
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        signal.signal(signal.SIGXFSZ, ignored)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", kept_from)
