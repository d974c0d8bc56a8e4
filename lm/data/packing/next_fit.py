"""Which examples share a row, and where in it their tokens stand. None of them sees another.

An example has one side or several, and a row so many places for each of them. Examples are taken in a given
order and put into the row until the next one does not fit on one of its sides; that one opens a new row
(next-fit). No example is cut, and each is in one row. Segment i of each side is the i-th example of the row.

Shape letters: E examples, R rows, T tokens of one side of all examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def plan(sizes: Sequence[np.ndarray], order_E: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Bounds of the rows in `order_E`, int64 (R + 1,): row r holds order_E[bounds[r]:bounds[r + 1]].

    `sizes` has the tokens of each example for each side, int (E,), and `lengths` what a row has places for.
    `order_E` may leave examples out. Every example must fit into a row of its own.
    """
    count = len(order_E)
    reach_E = np.full(count, count, np.int64)  # where the row would end that began with this example
    for sizes_E, length in zip(sizes, lengths, strict=True):
        assert count == 0 or 0 < sizes_E.min() <= sizes_E.max() <= length, "an example is empty or longer than a row"
        ends_E = np.concatenate([[0], np.cumsum(sizes_E[order_E], dtype=np.int64)])
        reach_E = np.minimum(reach_E, np.searchsorted(ends_E, ends_E[:-1] + length, side="right") - 1)
    next_row, bounds, place = reach_E.tolist(), [0], 0
    while place < count:
        place = next_row[place]
        bounds.append(place)
    return np.array(bounds, np.int64)


class Side:
    """Places of the tokens of one side of all examples, one after another, in rows of `length`.

    Args:
        sizes_E: tokens of each example, in the order of the rows.
        counts_R: examples of each row.
    """

    def __init__(self, sizes_E: Sequence[int] | np.ndarray, counts_R: Sequence[int] | np.ndarray, length: int):
        sizes_E, counts_R = np.asarray(sizes_E, np.int64), np.asarray(counts_R, np.int64)
        self._shape = (len(counts_R), length)
        row_of_E = np.repeat(np.arange(len(counts_R)), counts_R)
        first_E = np.repeat(np.cumsum(counts_R) - counts_R, counts_R)  # the first example of each one's row
        self.begins_E = np.cumsum(sizes_E) - sizes_E
        columns_E = self.begins_E - self.begins_E[first_E]
        assert np.all(columns_E + sizes_E <= length), "the examples of a row are longer than it"
        positions_T = np.arange(int(sizes_E.sum())) - np.repeat(self.begins_E, sizes_E)
        self._places_T = np.repeat(row_of_E * length + columns_E, sizes_E) + positions_T
        self.positions = self.spread(positions_T)  # place within the example, int32 (R, length)
        self.segments = self.spread(np.repeat(np.arange(len(sizes_E)) - first_E + 1, sizes_E))  # from 1; 0 is padding

    def spread(self, values_T: np.ndarray, dtype: Any = np.int32) -> np.ndarray:
        """Values of the tokens as rows (R, length), 0 where there is no token."""
        flat = np.zeros(self._shape[0] * self._shape[1], dtype)
        flat[self._places_T] = values_T
        return flat.reshape(self._shape)
