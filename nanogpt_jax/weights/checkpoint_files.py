"""How a checkpoint lies on the disk: the names of its files, of the arrays in them, and what proves them whole."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import jax

from nanogpt_jax.core.train_step import Params, TrainState

FILES, SUMS, RUN = "files", "sums.json", "run.json"


def split(state: TrainState) -> tuple[Params, dict[str, Any]]:
    """The parameters, and the rest of the state: sampling reads the first without the second."""
    return state.params, {"step": state.step, "opt_state": state.opt_state, "seed": state.seed}


def named(tree: Any) -> dict[str, Any]:
    """The leaves by their path, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def sum_of(path: Path) -> str:
    """The CRC-32 of a file: enough against accidents, and a cryptographic hash takes as long as all else of a save."""
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"
