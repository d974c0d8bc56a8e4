"""Several (source, target) examples in one row, none of which sees another.

A row has S places for sources and L for targets. Examples are taken in a given order and put into the row
until the next one does not fit on either side; that one opens a new row (next-fit). No example is cut, and
each is in one row. Segment i of the source and segment i of the target are the i-th example of the row.

Shape letters: E examples, R rows, T tokens of one side of all examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm.batch import Batch, Source

Example = tuple[np.ndarray, np.ndarray]  # tokens of source and target, int32


def plan(
    source_sizes_E: np.ndarray, target_sizes_E: np.ndarray, order_E: np.ndarray, source_length: int, target_length: int
) -> np.ndarray:
    """Bounds of the rows in `order_E`, int64 (R + 1,): row r holds order_E[bounds[r]:bounds[r + 1]].

    `order_E` may leave examples out. Every example must fit into a row of its own.
    """
    count = len(order_E)
    reach_E = np.full(count, count, np.int64)  # where the row would end that began with this example
    for sizes_E, length in ((source_sizes_E, source_length), (target_sizes_E, target_length)):
        assert count == 0 or 0 < sizes_E.min() <= sizes_E.max() <= length, "an example is empty or longer than a row"
        ends_E = np.concatenate([[0], np.cumsum(sizes_E[order_E], dtype=np.int64)])
        reach_E = np.minimum(reach_E, np.searchsorted(ends_E, ends_E[:-1] + length, side="right") - 1)
    next_row, bounds, place = reach_E.tolist(), [0], 0
    while place < count:
        place = next_row[place]
        bounds.append(place)
    return np.array(bounds, np.int64)


def lay_out(rows: Sequence[Sequence[Example]], source_length: int, target_length: int, bos_id: int) -> Batch:
    """Rows of examples as NumPy arrays: source (R, S), the rest (R, L). A row without examples is padding.

    The decoder reads bos and the target less its last token, and each token of the target is scored.
    """
    sizes_R = np.array([len(row) for row in rows], np.int64)
    row_of_E = np.repeat(np.arange(len(rows)), sizes_R)
    # Of each example's row the first example, and so the example's number within the row.
    first_E = np.repeat(np.cumsum(sizes_R) - sizes_R, sizes_R)
    source = _Side([source for row in rows for source, _ in row], row_of_E, first_E, len(rows), source_length)
    target = _Side([target for row in rows for _, target in row], row_of_E, first_E, len(rows), target_length)
    inputs_T = np.concatenate([[bos_id], target.tokens_T])[:-1]
    inputs_T[target.begins_E] = bos_id
    return Batch(
        tokens=target.spread(inputs_T),
        targets=target.spread(target.tokens_T),
        weights=target.spread(np.ones_like(target.tokens_T)).astype(np.float32),
        positions=target.spread(target.positions_T),
        segments=target.spread(target.segments_T),
        source=Source(
            tokens=source.spread(source.tokens_T),
            positions=source.spread(source.positions_T),
            segments=source.spread(source.segments_T),
        ),
    )


class _Side:
    """Sources or targets of all examples one after another, and the place of each token in the rows."""

    def __init__(self, pieces: list[np.ndarray], row_of_E: np.ndarray, first_E: np.ndarray, rows: int, length: int):
        self._shape = (rows, length)
        sizes_E = np.array([len(piece) for piece in pieces], np.int64)
        self.tokens_T = np.concatenate([np.zeros(0, np.int32), *pieces])
        self.begins_E = np.cumsum(sizes_E) - sizes_E
        everything_T = np.arange(len(self.tokens_T))
        self.positions_T = everything_T - np.repeat(self.begins_E, sizes_E)
        self.segments_T = np.repeat(np.arange(len(pieces)) - first_E + 1, sizes_E)
        columns_E = self.begins_E - self.begins_E[first_E]
        assert np.all(columns_E + sizes_E <= length), "the examples of a row are longer than it"
        self._places_T = np.repeat(row_of_E * length + columns_E, sizes_E) + self.positions_T

    def spread(self, values_T: np.ndarray) -> np.ndarray:
        """Values of the tokens as rows, int32, 0 where there is no token."""
        flat = np.zeros(self._shape[0] * self._shape[1], np.int32)
        flat[self._places_T] = values_T
        return flat.reshape(self._shape)
