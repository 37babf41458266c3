"""Where the runs of presets end, measured by `sweep` over seeds, and where one run lies in that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nanogpt_jax.core.config import Settings
from nanogpt_jax.run.presets import PRESETS
from nanogpt_jax.run.recipe import NO_RECIPE


class Expected(NamedTuple):
    """Losses over the whole validation split of the last weights, in nats per token.

    Attributes:
        mean: of the runs.
        deviation: how far a run lies from it, typically: the sample's standard deviation.
        seeds: how many runs.
    """

    mean: float
    deviation: float
    seeds: int


# On a 2-core AMD EPYC, float32: python -m nanogpt_jax.sweep PRESET --seed=1337..1341
EXPECTED: Mapping[str, Expected] = {
    "bigram": Expected(2.4883, 0.0030, 5),
    "gpt_dev": Expected(1.8103, 0.0096, 5),
    "shakespeare_char_cpu": Expected(1.9127, 0.0072, 5),
    "speedrun_cpu": Expected(1.8860, 0.0077, 5),
    "shakespeare_char_cpu_modern": Expected(1.5385, 0.0125, 5),
    "laptop": Expected(1.4564, 0.0062, 3),  # --seed=1337..1339
}

# Settings that may be others than the preset's without its losses being others.
_NO_MATTER = NO_RECIPE - {"patience", "init_from"}


def beside_expected(settings: Settings, loss: float) -> str | None:
    """A line about where `loss` lies among the runs of the preset whose own settings these are; None if of none."""
    for name, expected in EXPECTED.items():
        own = vars(Settings(**PRESETS[name]))
        if all(own[each] == value for each, value in vars(settings).items() if each not in _NO_MATTER):
            apart = (loss - expected.mean) / expected.deviation
            where = "above" if apart > 0 else "below"
            return (
                f"runs of {name} end at {expected.mean:.4f}, give or take {expected.deviation:.4f} "
                f"({expected.seeds} seeds); this one lies {abs(apart):.1f} times that {where}"
            )
    return None
