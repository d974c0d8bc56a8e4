"""Bootstrap confidence intervals for metrics over examples (Efron 1979).

Each resample consists of E examples drawn with replacement. The interval of a metric extends from the 2.5th to the
97.5th percentile of the metric over the resamples. The interval reflects the random choice of the evaluated examples,
not the randomness of training.

E is the number of examples, and S is the number of resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Interval = tuple[float, ...]  # lower and upper bound
# Computes the metrics of the examples with the given indices, which may repeat.
Metrics = Callable[[np.ndarray], Mapping[str, float]]


def resampled(metrics: Metrics, num_examples: int, *, samples: int, seed: int) -> dict[str, np.ndarray]:
    """Returns the values of each metric on all resamples, float64 (S,).

    The resamples are the rows of `default_rng(seed).choice(E, size=(S, E))`. They are drawn one at a time, because the
    whole array may not fit in memory.
    """
    generator = np.random.default_rng(seed)
    found = [metrics(generator.choice(num_examples, size=num_examples)) for _ in range(samples)]
    return {name: np.array([each[name] for each in found], np.float64) for name in found[0]}


def intervals(metrics: Metrics, num_examples: int, *, samples: int, seed: int) -> dict[str, Interval]:
    """Computes the confidence interval of each metric. If the metric is NaN on any resample, both bounds are NaN."""
    found = resampled(metrics, num_examples, samples=samples, seed=seed)
    return {name: tuple(np.percentile(values_S, (2.5, 97.5)).tolist()) for name, values_S in found.items()}
