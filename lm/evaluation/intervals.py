"""How certain a metric is: bootstrap confidence intervals over examples (Efron 1979).

Each resample draws as many examples as there are, with replacement, and computes the metric of these. The interval lies
between the percentiles 2.5 and 97.5. It covers the choice of the evaluated examples, not the randomness of training.
The same seed draws the same examples for every metric.

Shape letters: E examples, S resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

Interval = tuple[float, float]
DRAWN_AT_ONCE = 2**20


def resamples(num_examples: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the indices of the examples of all resamples in blocks, int64 (some of the S, E).

    Together they equal `default_rng(seed).choice(E, size=(S, E))`, which would not fit into memory for large data.
    """
    generator, left = np.random.default_rng(seed), samples
    while left > 0:
        block = min(left, max(1, DRAWN_AT_ONCE // num_examples))
        yield generator.choice(num_examples, size=(block, num_examples), replace=True)
        left -= block


def intervals(
    metrics: Callable[[np.ndarray], Mapping[str, float]], num_examples: int, *, samples: int, seed: int
) -> dict[str, Interval]:
    """Returns the interval of each metric.

    Args:
        metrics: takes the indices of examples, some of them several times, and returns the metrics of these.
    """
    found = [metrics(indices_E) for block_SE in resamples(num_examples, samples, seed) for indices_E in block_SE]
    return {name: _percentiles(np.array([each[name] for each in found], np.float64)) for name in found[0]}


def _percentiles(values_S: np.ndarray) -> Interval:
    """Returns NaN if one of the values is NaN."""
    low, high = np.percentile(values_S, (2.5, 97.5))
    return float(low), float(high)
