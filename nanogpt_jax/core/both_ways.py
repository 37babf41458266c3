"""Functions with a backward rule of their own that JAX can still differentiate forward, and again.

`jax.custom_vjp` replaces a function's derivative by a rule for reverse mode and so takes forward mode away. Here the
rule is attached one step further on, to the linear map that carries tangents through the function: evaluated, it is
what JAX derives from the function as it is written; transposed, which is all that reverse mode asks of it, it is the
rule. Both are made of plain operations, so that derivatives of derivatives follow in any order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from nanogpt_jax.core.switches import promised

Leaves = Sequence[Array]
Rule = Callable[..., Any]
Shapes = tuple[tuple[tuple[int, ...], Any], ...]  # each with its dtype


class both_ways:  # a decorator, as `jax.custom_vjp` is
    """Decorates a function of arrays whose reverse mode `defvjp` states; the interface is `jax.custom_vjp`'s.

    Each argument is an array or None; those at `nondiff_argnums`, the last ones, are static.
    """

    def __init__(self, function: Rule, nondiff_argnums: tuple[int, ...] = ()) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._call = jax.custom_jvp(function, nondiff_argnums=nondiff_argnums)

    def defvjp(self, forward: Rule, backward: Rule, plain: Rule | None = None) -> None:
        """``forward(*args) -> (value, saved)`` and ``backward(*static, saved, dvalue) -> gradients``, one an argument.

        Forward mode follows `plain`, another way to write the function, or the function itself. A gradient of None is
        zero.
        """
        function = plain or self._function

        def jvp(*args: Any) -> tuple[Any, Any]:
            *static, primals, tangents = args
            value, saved = forward(*primals, *static)
            linear = _Linear(lambda *x: function(*x, *static), functools.partial(backward, *static), primals, saved)
            return value, linear(value, tangents)

        self._call.defjvp(jvp)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


class _Linear:
    """The map from tangents of a function's arguments to those of its value, at `primals`."""

    def __init__(self, function: Rule, backward: Rule, primals: tuple[Any, ...], saved: Any) -> None:
        self._function, self._backward = function, backward
        self._known, self._tree = jax.tree.flatten((primals, saved))
        self._moves = [x is not None and jnp.issubdtype(x.dtype, jnp.inexact) for x in primals]

    def __call__(self, value: Any, tangents: tuple[Any, ...]) -> Any:
        leaves, tree = jax.tree.flatten(value)
        moving = [d for d, moves in zip(tangents, self._moves, strict=True) if moves]

        def pushed(known: Leaves, moving: Leaves) -> Leaves:
            primals, _ = jax.tree.unflatten(self._tree, known)
            of = iter(moving)
            d = tuple(next(of) if moves else _no_tangent(x) for x, moves in zip(primals, self._moves, strict=True))
            with promised():  # reverse mode comes here when the function itself is done
                return jax.tree.leaves(jax.jvp(self._function, primals, d)[1])

        def pulled(known: Leaves, d: Leaves) -> Leaves:
            primals, saved = jax.tree.unflatten(self._tree, known)
            with promised():
                gradients = zip(self._backward(saved, jax.tree.unflatten(tree, d)), primals, self._moves, strict=True)
            return [jnp.zeros_like(x) if g is None else g for g, x, moves in gradients if moves]

        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        rules = {"pushed": pushed, "pulled": pulled, "shapes": shapes, "split": len(self._known)}
        return jax.tree.unflatten(tree, _linear.bind(*self._known, *moving, **rules))


def _no_tangent(x: Array | None) -> np.ndarray | None:
    return None if x is None else np.zeros(x.shape, jax.dtypes.float0)


_linear = Primitive("linear_with_transpose")
_linear.multiple_results = True


@_linear.def_impl
def _evaluated(*args: Array, pushed: Rule, split: int, **_: Any) -> Leaves:
    return pushed(args[:split], args[split:])


@_linear.def_abstract_eval
def _abstract(*_: Any, shapes: Shapes, **__: Any) -> list[jax.core.ShapedArray]:
    return [jax.core.ShapedArray(*shape) for shape in shapes]


mlir.register_lowering(_linear, mlir.lower_fun(_evaluated, multiple_results=True))


def _transposed(d: Sequence[Any], *args: Any, pulled: Rule, split: int, **_: Any) -> list[Any]:
    gradients = pulled(args[:split], [ad.instantiate_zeros(each) for each in d])
    asked = [ad.is_undefined_primal(x) for x in args[split:]]  # of the others, the tangent is known to be zero
    return [None] * split + [g if wanted else None for g, wanted in zip(gradients, asked, strict=True)]


def _differentiated(primals: Sequence[Array], tangents: Sequence[Any], **rules: Any) -> tuple[Leaves, Leaves]:
    """What is known may move too: the derivative of the tangents is that of the operations they are made of."""
    moving = [i for i, d in enumerate(tangents) if not isinstance(d, ad.Zero)]

    def of(*moved: Array) -> Leaves:
        args = list(primals)
        for i, x in zip(moving, moved, strict=True):
            args[i] = x
        return _evaluated(*args, **rules)

    return jax.jvp(of, [primals[i] for i in moving], [tangents[i] for i in moving])


def _batched(
    args: Sequence[Array], axes: Sequence[int | None], *, pushed: Rule, pulled: Rule, shapes: Shapes, split: int
) -> tuple[Leaves, list[int]]:
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    known, moving = args[:split], args[split:]
    moving = [batching.bdim_at_front(x, axis, size) for x, axis in zip(moving, axes[split:], strict=True)]
    over = (tuple(axes[:split]), 0)
    rules = {
        "pushed": jax.vmap(pushed, over),
        "pulled": jax.vmap(pulled, over),
        "shapes": tuple(((size, *shape), dtype) for shape, dtype in shapes),
        "split": split,
    }
    return _linear.bind(*known, *moving, **rules), [0] * len(shapes)


ad.primitive_transposes[_linear] = _transposed
ad.primitive_jvps[_linear] = _differentiated
batching.primitive_batchers[_linear] = _batched
