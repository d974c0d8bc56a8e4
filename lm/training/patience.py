"""Early stopping: whether the chosen metric has stopped to improve. A function of what was measured, without state."""

from __future__ import annotations

import math
from collections.abc import Sequence


def is_exhausted(values: Sequence[float], patience: int, highest_is_best: bool) -> bool:
    """Whether the last `patience` of these evaluations, in their order, were no better than one before them.

    What is not finite is never better. 0 never stops.
    """
    sign = 1.0 if highest_is_best else -1.0
    scores = [sign * value if math.isfinite(value) else -math.inf for value in values]
    if patience == 0 or len(scores) <= patience:
        return False
    return max(scores[-patience:]) <= max(scores[:-patience])
