"""Early stopping: whether the chosen metric has stopped improving, as a function of all evaluations so far."""

from __future__ import annotations

import math
from collections.abc import Sequence


def is_exhausted(values: Sequence[float], patience: int, highest_is_best: bool) -> bool:
    """Returns whether none of the last `patience` evaluations was better than the best one before them.

    A value that is not finite is never better than another. With patience 0 a run is never stopped.
    """
    sign = 1.0 if highest_is_best else -1.0
    scores = [sign * value if math.isfinite(value) else -math.inf for value in values]
    if patience == 0 or len(scores) <= patience:
        return False
    return max(scores[-patience:]) <= max(scores[:-patience])
