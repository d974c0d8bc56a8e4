"""Bootstrap confidence intervals for metrics over examples (Efron 1979).

Each resample consists of E examples drawn with replacement. The interval of a metric extends from the 2.5th to the
97.5th percentile of the metric over the resamples. The interval reflects the random choice of the evaluated examples,
not the randomness of training.

E is the number of examples, and S the number of resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

Interval = tuple[float, ...]  # lower and upper bound
Metrics = Callable[[np.ndarray], Mapping[str, float]]  # of the examples with the given indices, which may repeat
DRAWN_AT_ONCE = 2**20


def resamples(num_examples: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields all resamples in blocks. A block holds indices of examples, int64 (number of resamples, E).

    The concatenated blocks equal `default_rng(seed).choice(E, size=(S, E))`, which may be too large for memory.
    """
    generator, left = np.random.default_rng(seed), samples
    while left > 0:
        block = min(left, max(1, DRAWN_AT_ONCE // num_examples))
        yield generator.choice(num_examples, size=(block, num_examples), replace=True)
        left -= block


def resampled(metrics: Metrics, num_examples: int, *, samples: int, seed: int) -> dict[str, np.ndarray]:
    """Returns each metric on all resamples, float64 (S,). With the same seed, the resamples are the same."""
    found = [metrics(indices_E) for block_SE in resamples(num_examples, samples, seed) for indices_E in block_SE]
    return {name: np.array([each[name] for each in found], np.float64) for name in found[0]}


def intervals(metrics: Metrics, num_examples: int, *, samples: int, seed: int) -> dict[str, Interval]:
    """Computes the confidence interval of each metric. If the metric is NaN on any resample, both bounds are NaN."""
    found = resampled(metrics, num_examples, samples=samples, seed=seed)
    return {name: tuple(np.percentile(values_S, (2.5, 97.5)).tolist()) for name, values_S in found.items()}
