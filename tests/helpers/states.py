"""What a run left, and that two of them are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.train_step import abstract_state
from nanogpt_jax.run.build import build_model
from nanogpt_jax.weights.loading import open_run, stored_settings


def state_of(run: Path) -> Any:
    """The training state in a run's newest checkpoint."""
    checkpoint = open_run(run)
    settings = stored_settings(checkpoint.run)
    model, tx = build_model(settings, checkpoint.run.vocab_size, "cpu"), make_optimizer(settings)
    return checkpoint.state(abstract_state(model, tx))


def assert_same_bits(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def tree_of(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, with its bytes: to see that nothing changed."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
