"""What a preset's own run is told at its end: where it lies among that preset's seeds."""

import dataclasses

import pytest

from nanogpt_jax.core.config import Settings
from nanogpt_jax.run.expected import EXPECTED, beside_expected
from nanogpt_jax.run.presets import PRESETS


@pytest.mark.parametrize("name", EXPECTED)
def test_a_presets_own_run_is_told_where_it_lies(name):
    expected = EXPECTED[name]
    own = Settings(**PRESETS[name])
    moved = dataclasses.replace(own, seed=5, out_dir="out x", data_dir="elsewhere", log_interval=7, eval_iters=3)
    for settings in (own, moved):
        line = beside_expected(settings, expected.mean + 2 * expected.deviation)
        assert line == (
            f"runs of {name} end at {expected.mean:.4f}, give or take {expected.deviation:.4f} "
            f"({expected.seeds} seeds); this one lies 2.0 times that above"
        )
    assert "1.0 times that below" in (beside_expected(own, expected.mean - expected.deviation) or "")
    for other in (dict(max_iters=own.max_iters + 1), dict(learning_rate=0.5), dict(n_layer=3), dict(patience=9)):
        assert beside_expected(dataclasses.replace(own, **other), expected.mean) is None


def test_every_preset_that_a_cpu_trains_has_one_of_five_seeds_or_more():
    """But for the one that takes a quarter of an hour, which has three."""
    on_cpu = {"bigram", "gpt_dev", "shakespeare_char_cpu", "speedrun_cpu", "shakespeare_char_cpu_modern", "laptop"}
    assert on_cpu <= EXPECTED.keys()
    assert all(expected.seeds >= (3 if name == "laptop" else 5) for name, expected in EXPECTED.items())
