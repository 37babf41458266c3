"""What a machine can do at most, and what a model asks of it: rates measured here, operations and bytes counted.

A program's share of the limit is what it asks for, times how often it gets it in a second, over the machine's rate.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.decoding_weights import ROWS
from nanogpt_jax.core.sampling import Weights
from nanogpt_jax.core.train_step import Params

CASES = ("matmul", "memory")
_SIDE = 2048  # of the square matrices
_ROWS, _COLUMNS = 1 << 15, 1 << 12  # 512 MiB of float32, larger than any cache
MATMUL_FLOPS = 2 * _SIDE**3
MEMORY_BYTES = 4 * _ROWS * _COLUMNS


class Limits:
    """The two measured rates: a product of large matrices in `dtype`, and reading memory once for a thin product.

    Reading is what a step of decoding does: a vector times matrices that fit no cache. Each weight is read once and
    used once.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._product = jax.jit(jnp.dot)
        self._operands: dict[str, tuple[Array, Array]] = {}

    def run(self, case: str, times: int) -> None:
        """Do `MATMUL_FLOPS` operations or read `MEMORY_BYTES` bytes, so many times."""
        if case not in self._operands:  # made late: they would count as the program's memory
            square = jnp.ones((_SIDE, _SIDE), self._dtype)
            pair = (square, square) if case == "matmul" else (jnp.ones((_ROWS, _COLUMNS)), jnp.ones(_COLUMNS))
            self._operands = {case: pair}
        for _ in range(times):
            jax.block_until_ready(self._product(*self._operands[case]))


def reading_flops(settings: Settings, params: Params) -> float:
    """Floating-point operations to read `block_size` tokens for the logits of one.

    As in PaLM, appendix B, two for each weight of a block and token, and four for each entry of each score, for each
    component of a head; the head reads one position.
    """
    T, L, table = settings.block_size, settings.n_layer, params["wte"]["embedding"]
    config = settings.gpt_config(len(table))
    in_blocks = sum(p.size for layer in range(L) for p in jax.tree.leaves(params[f"h_{layer}"]))
    return T * (2 * in_blocks + 4 * L * config.n_head * config.head_width * T) + 2 * table.size


def weight_bytes(weights: Weights) -> int:
    """Bytes of weights that a step of decoding must read: all but tables of which it takes a single row."""
    tables, rows = weights["params"], weights[ROWS]
    looked_up = tables["wpe"]["embedding"].nbytes if "wpe" in tables else 0  # rotary positions have no table
    if rows.keys() & {"head", "lm_head"}:  # else the token table is the head as well, and read whole
        looked_up += tables["wte"]["embedding"].nbytes
    return sum(part.nbytes for part in jax.tree.leaves(weights)) - looked_up


def bytes_per_token(weights: int, cache_per_position: float, prompt: int, tokens: int, batch: int) -> float:
    """Least number of bytes to read for one token of one sequence, on average over a text.

    A step reads `weights` bytes once for all `batch` sequences, and of each sequence the keys and values of all
    positions so far, `cache_per_position` bytes each: `prompt` of them at the first token, one more at each that
    follows.
    """
    return weights / batch + cache_per_position * (prompt + (tokens - 1) / 2)


def cache_bytes_per_position(model: nn.Module) -> int:
    """Bytes that the model's cache holds for one position of one sequence."""
    cache = jax.eval_shape(lambda: model.init_cache(batch=1, length=1))
    return sum(part.size * part.dtype.itemsize for part in jax.tree.leaves(cache))
