"""How sure a figure is: bootstrap intervals over examples (Efron 1979).

As many examples are drawn, with replacement, as there are; the figure of these is taken; and so on. The interval
lies between the percentiles 2.5 and 97.5 of these figures. It tells of the chance in which examples were
evaluated, and not of that in training. The same seed draws the same examples, whatever the figure.

Shape letters: E examples, S resamplings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

Interval = tuple[float, float]
DRAWN_AT_ONCE = 2**20


def resamples(num_examples: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Places of the examples of all resamplings in blocks, int64 (some of the S, E).

    One after another they are what `default_rng(seed).choice(E, size=(S, E))` gives, which would not fit into
    memory for large data.
    """
    generator, left = np.random.default_rng(seed), samples
    while left > 0:
        block = min(left, max(1, DRAWN_AT_ONCE // num_examples))
        yield generator.choice(num_examples, size=(block, num_examples), replace=True)
        left -= block


def intervals(
    figures: Callable[[np.ndarray], Mapping[str, float]], num_examples: int, *, samples: int, seed: int
) -> dict[str, Interval]:
    """Of any figures.

    Args:
        figures: of the examples at places_E, of which some come several times and some not at all.
    """
    found = [figures(places_E) for block_SE in resamples(num_examples, samples, seed) for places_E in block_SE]
    return {name: _percentiles(np.array([each[name] for each in found], np.float64)) for name in found[0]}


def _percentiles(values_S: np.ndarray) -> Interval:
    """NaN if one of the values is."""
    low, high = np.percentile(values_S, (2.5, 97.5))
    return float(low), float(high)
