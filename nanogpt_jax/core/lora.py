"""LoRA (Hu et al., 2021): what a model learns anew lies in two thin matrices beside each of its own, which stay.

A kernel W (K, M) has A (K, r) and B (r, M) beside it, the `delta`, and the model computes x W + scale x A B with
scale = alpha / r. The base may lie there in bfloat16 or int8, since nothing is added to it in training. Queries, keys
and values are three matrices where positions are rotary, as in Llama's files, and one as in GPT-2's where they are
learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, no_type_check

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

from nanogpt_jax.core.decoding_weights import dequantized, quantized
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.shape import GPTConfig

LORA, INT8 = "lora", "int8"
"""The linen collections of a delta, and of a base's kernels where those are in int8."""

A, B = "lora_A", "lora_B"

Delta = Any
"""A tree as the parameters', with `A` and `B` where a kernel is, or below ``q``, ``k`` and ``v`` there."""

BaseType = Literal["float32", "bfloat16", "int8"]


@flax.struct.dataclass
class Base:
    """What does not change while a delta is trained: a model's variables, and the factor of the delta's products."""

    variables: Mapping[str, Any]
    scale: float = flax.struct.field(pytree_node=False)

    def with_delta(self, delta: Delta) -> dict[str, Any]:
        """The variables of the model that both are together."""
        flat = flatten_dict(delta)
        scaled = {path: x * self.scale if path[-1] == B else x for path, x in flat.items()}
        return {**self.variables, LORA: unflatten_dict(scaled)}

    def merged(self, delta: Delta) -> Any:
        """The parameters of a plain model, float32, that computes what both do together."""
        flat = {path: jnp.asarray(p, jnp.float32) for path, p in flatten_dict(self.variables["params"]).items()}
        flat |= {path: dequantized(rows) for path, rows in flatten_dict(self.variables.get(INT8, {})).items()}
        return merge(unflatten_dict(flat), delta, self.scale)


no_type_check(Base.__init__)  # a tree of this shape may hold anything


def make_base(params: Any, kind: BaseType, scale: float) -> Base:
    """The parameters of a model as a base: the matrices of its blocks as they are, in bfloat16, or in int8.

    Tables, which the loss reads as a whole, and vectors stay in float32.
    """
    flat = flatten_dict(params)
    kernels = {path: p for path, p in flat.items() if path[0].startswith("h_") and path[-1] == "kernel"}
    if kind == "int8":
        rest = {path: p for path, p in flat.items() if path not in kernels}
        small = {path: quantized(kernel.T) for path, kernel in kernels.items()}
        return Base({"params": unflatten_dict(rest), INT8: unflatten_dict(small)}, scale)
    return Base({"params": unflatten_dict(flat | {path: p.astype(kind) for path, p in kernels.items()})}, scale)


def layers_of(config: GPTConfig, targets: str) -> list[tuple[str, ...]]:
    """The matrices of a block that `targets` names, as paths in it, in their order.

    A target is ``attn``, ``mlp``, or one of their layers as ``attn.c_attn``, ``attn.c_proj``, ``mlp.c_fc``,
    ``mlp.c_gate``, ``mlp.c_proj``; where positions are rotary also ``attn.q``, ``attn.k``, ``attn.v``. Several stand
    with commas between them. `UserError` for any other.
    """
    of_c_attn = [("attn", "c_attn", part) for part in "qkv"] if config.position == "rope" else [("attn", "c_attn")]
    of_mlp = ("c_fc", "c_gate", "c_proj") if config.activation in ("swiglu", "geglu") else ("c_fc", "c_proj")
    there = [*of_c_attn, ("attn", "c_proj"), *(("mlp", layer) for layer in of_mlp)]
    names = {path: {path[0], ".".join(path[:2]), f"{path[0]}.{path[-1]}"} for path in there}
    known = list(dict.fromkeys(name for path in there for name in sorted(names[path])))
    asked = {target.strip() for target in targets.split(",")}
    for target in sorted(asked - set(known)):
        raise UserError(f"lora_targets={targets!r} names {target!r}; choose some of {', '.join(known)}")
    return [path for path in there if names[path] & asked]


def init_delta(model: nn.Module, key: PRNGKeyArray, rank: int, targets: str) -> Delta:
    """A delta that changes nothing yet, in float32: A uniform within 1 / sqrt(K) of zero, as in PEFT, and B zero."""
    config: GPTConfig = model.config
    like = jax.eval_shape(lambda: model.init(key, jnp.zeros((1, 1), jnp.int32)))["params"]
    cuts = [0, *config.qkv_cuts]
    delta: dict[tuple[str, ...], Array] = {}
    for layer in range(config.n_layer):
        for path in layers_of(config, targets):
            inputs, outputs = like[f"h_{layer}"][path[0]][path[1]]["kernel"].shape
            if path[-1] in "qkv":
                ends = [*cuts[1:], outputs]
                part = "qkv".index(path[-1])
                outputs = ends[part] - cuts[part]
            reach = 1 / math.sqrt(inputs)
            own = jax.random.fold_in(key, len(delta))
            delta[f"h_{layer}", *path, A] = jax.random.uniform(own, (inputs, rank), jnp.float32, -reach, reach)
            delta[f"h_{layer}", *path, B] = jnp.zeros((rank, outputs), jnp.float32)
    return unflatten_dict(delta)


def abstract_delta(model: nn.Module, rank: int, targets: str) -> Delta:
    """The shapes and types of a delta: nothing is computed."""
    return jax.eval_shape(lambda: init_delta(model, jax.random.key(0), rank, targets))


def merge(params: Any, delta: Delta, scale: float) -> Any:
    """The parameters of a plain model that computes what base and delta do together: W + scale A B, in float32."""
    flat = dict(flatten_dict(params))
    for path, own in flatten_dict(delta, is_leaf=lambda _, tree: A in tree or not {*tree}.isdisjoint("qkv")).items():
        kernel = flat[*path, "kernel"]
        flat[*path, "kernel"] = kernel + scale * products(own, lambda a, b: a @ b, kernel.shape[1])
    return unflatten_dict(flat)


def products(
    own: Mapping[str, Any], times: Callable[[Array, Array], Array], outputs: int
) -> Float[Array, "N {outputs}"]:
    """``times(A, B)`` of a layer's delta; of several matrices side by side, with zeros where one has none."""
    if A in own:
        return times(own[A], own[B])
    made = {part: times(ab[A], ab[B]) for part, ab in own.items()}
    [some, *_] = made.values()
    side = next((made[part].shape[1] for part in "kv" if part in made), None)
    if side is None:
        side = (outputs - made["q"].shape[1]) // 2
    widths = {"q": outputs - 2 * side, "k": side, "v": side}
    return jnp.concatenate(
        [made[part] if part in made else jnp.zeros((len(some), width), some.dtype) for part, width in widths.items()],
        axis=1,
    )
