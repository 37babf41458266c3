"""JAX's switches, those of its environment and its `jax.config`, held where a seed and a number mean the same.

Parameters and state are float32, counters int32, keys threefry's in its partitionable form. Most of that is stated
where arrays are made. The rest hangs on switches that the libraries below read: a function of the core holds those
while it runs (`as_promised`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from nanogpt_jax.core.errors import UserError

_F = TypeVar("_F", bound=Callable[..., Any])

_PARTITIONABLE = "jax_threefry_partitionable"

# What changes a number or what a seed means, or refuses what is meant; with the context that holds it in a block.
HELD: dict[str, tuple[Any, Callable[[Any], contextlib.AbstractContextManager[Any]]]] = {
    "jax_enable_x64": (False, jax.enable_x64),
    "jax_default_prng_impl": ("threefry2x32", jax.default_prng_impl),
    _PARTITIONABLE: (True, jax.threefry_partitionable),
    "jax_numpy_rank_promotion": ("allow", jax.numpy_rank_promotion),
    "jax_numpy_dtype_promotion": ("standard", jax.numpy_dtype_promotion),
    "jax_default_matmul_precision": (None, jax.default_matmul_precision),
    "jax_softmax_custom_jvp": (False, jax.softmax_custom_jvp),
}


@contextlib.contextmanager
def promised() -> Iterator[None]:
    """In the block the switches stand as this package promises, whatever they are around it."""
    with contextlib.ExitStack() as held:
        for name, (value, context) in HELD.items():
            if getattr(jax.config, name) != value:
                held.enter_context(context(value))
        yield


def as_promised(function: _F) -> _F:
    """`function`, and its `lower` if it is compiled, under `promised` switches.

    Raises `UserError` where that cannot be: in a program of the caller's, drawing is compiled as the switches stand
    around that.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not getattr(jax.config, _PARTITIONABLE) and _is_traced((args, kwargs)):
            raise UserError(
                f"{_PARTITIONABLE.upper()}=0 changes what a seed means inside a compiled program; leave it out, or "
                "compile within jax.threefry_partitionable(True)"
            )
        with promised():
            return function(*args, **kwargs)

    if hasattr(function, "lower"):
        call.lower = as_promised(function.lower)  # type: ignore[attr-defined]  # a function may have any
    return call  # type: ignore[return-value]  # it is called as `function` is


def _is_traced(arguments: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments))
