"""An update whose gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nanogpt_jax.run import loop


def spoiled(at: int) -> Callable[..., Any]:
    """`make_train_step`, with a gradient that is not finite in update `at`."""
    trainer_make = loop.make_train_step

    def make(*arguments: Any, **options: Any) -> Callable[..., Any]:
        step = trainer_make(*arguments, **options)

        def train_step(state: Any, batch: Any) -> Any:
            if int(state.step) != at:
                return step(state, batch)
            kept = jax.tree.map(np.array, state)
            new, metrics = step(state.replace(params=jax.tree.map(lambda p: p * np.nan, state.params)), batch)
            if options["skip_nonfinite"]:
                new = kept.replace(step=new.step)
            return new, metrics

        return train_step

    return make
