"""Bootstrap intervals against closed forms and against resampling in one piece."""

import numpy as np
import pytest
from scipy import stats

from lm.evaluation.intervals import intervals, resampled


def mean_interval(values, samples, seed):
    """Of the mean over examples."""
    return intervals(lambda indices: {"x": values[indices].mean()}, len(values), samples=samples, seed=seed)["x"]


def test_resamples_equal_a_single_draw():
    drawn = []
    resampled(lambda indices: drawn.append(indices) or {"x": 0.0}, 30, samples=11, seed=7)
    assert np.array_equal(drawn, np.random.default_rng(7).choice(30, size=(11, 30)))


def test_interval_of_a_share_is_binomial():
    """Resampling n examples of which a share p is right is a binomial draw of n with p."""
    right = np.arange(200) % 5 == 0
    low, high = mean_interval(right, 4000, 1)
    expected = stats.binom.ppf([0.025, 0.975], 200, 0.2) / 200
    assert (low, high) == (pytest.approx(expected[0], abs=0.0051), pytest.approx(expected[1], abs=0.0051))


def test_interval_of_a_mean_is_normal():
    values = np.random.default_rng(0).normal(3, 2, 500)
    low, high = mean_interval(values, 4000, 2)
    error = values.std() / 500**0.5
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_equal_seeds_draw_the_same_for_all_metrics():
    draw = np.random.default_rng(3)
    values = {"one": draw.random(40), "two": draw.random(40) < 0.5}

    def metrics(indices_E):
        return {name: each[indices_E].mean() for name, each in values.items()} | {"max": values["one"][indices_E].max()}

    got = intervals(metrics, 40, samples=200, seed=5)
    assert all(got[name] == mean_interval(each, 200, 5) for name, each in values.items())
    assert got["max"][1] == values["one"].max()
    assert intervals(metrics, 40, samples=200, seed=5) == got != intervals(metrics, 40, samples=200, seed=6)


def test_interval_excludes_2_and_a_half_percent_at_each_end():
    values = iter(np.random.default_rng(0).permutation(1001).tolist())
    assert intervals(lambda _: {"x": next(values)}, 3, samples=1001, seed=0) == {"x": (25.0, 975.0)}


def test_interval_of_constant_metric_has_no_width():
    assert mean_interval(np.array([0.5]), 10, 0) == (0.5, 0.5)
    assert mean_interval(np.ones(9), 1, 0) == (1.0, 1.0)
