"""Figures and their standard errors, beside what they are when models and texts are drawn again and again."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nanogpt_jax.evaluate.figures import difference, error, exponential, ratio

DRAWS, N = 4000, 60


def drawn(seed):
    """Sums and weights of two models over the same parts, many times: (DRAWS, N) each, and alike in what is hard."""
    draw = np.random.default_rng(seed)
    weights = draw.integers(5, 20, (DRAWS, N))
    hard = draw.gamma(2.0, 0.4, (DRAWS, N))
    one, other = (weights * (hard + draw.normal(shift, 0.04, (DRAWS, N))) for shift in (0.2, 0.1))
    return one, other, weights


@pytest.mark.parametrize("make", [ratio, lambda s, w: exponential(ratio(s, w), True)], ids=["ratio", "perplexity"])
@pytest.mark.parametrize("paired", [False, True])
def test_errors_are_how_far_figures_scatter(make, paired):
    one, other, weights = drawn(0)
    figures = [make(sums, weight) for sums, weight in zip(one, weights, strict=True)]
    if paired:
        seconds = [make(sums, weight) for sums, weight in zip(other, weights, strict=True)]
        figures = [difference(second, first) for second, first in zip(seconds, figures, strict=True)]
    scatter = np.std([figure.value for figure in figures], ddof=1)
    assert np.mean([error(figure.pulls) for figure in figures]) == pytest.approx(scatter, rel=0.05)


def test_pairing_tells_apart_what_each_error_alone_does_not():
    one, other, weights = drawn(1)
    first, second = ratio(one[0], weights[0]), ratio(other[0], weights[0])
    less = difference(second, first)
    assert less.value < -4 * error(less.pulls) and abs(less.value) < error(first.pulls) + error(second.pulls)
    assert less.value == second.value - first.value


def test_of_equal_weights_it_is_the_standard_error_of_a_mean():
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    figure = ratio(values, 1)
    assert (figure.value, error(figure.pulls)) == (0.6, pytest.approx(np.std(values, ddof=1) / math.sqrt(5)))
    assert error(ratio([3.0], 1).pulls) is None
