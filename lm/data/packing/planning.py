"""Plans which examples share a row. E is the number of examples, R the number of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def plan(sizes: Sequence[np.ndarray], order_E: np.ndarray, capacities: Sequence[int]) -> np.ndarray:
    """Returns the bounds of the rows in `order_E`, int64 (R + 1,): row r contains order_E[bounds[r]:bounds[r + 1]].

    Args:
        sizes: for each capacity, the amount that each example uses, int (E,). Every example must fit in an empty row.
        order_E: indices of the examples to pack, in order.
    """
    count = len(order_E)
    reach_E = np.full(count, count, np.int64)  # end of the row that would begin with this example
    for sizes_E, capacity in zip(sizes, capacities, strict=True):
        assert count == 0 or 0 < sizes_E.min() <= sizes_E.max() <= capacity, "an example is empty or too long for a row"
        ends_E = np.concatenate([[0], np.cumsum(sizes_E[order_E], dtype=np.int64)])
        reach_E = np.minimum(reach_E, np.searchsorted(ends_E, ends_E[:-1] + capacity, side="right") - 1)
    next_row, bounds, begin = reach_E.tolist(), [0], 0
    while begin < count:
        begin = next_row[begin]
        bounds.append(begin)
    return np.array(bounds, np.int64)
