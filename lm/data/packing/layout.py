"""How examples lie in rows: which of them share a row, and where in it their tokens are. None of them sees another.

A row has one capacity or several: tokens, source tokens, masked tokens. Examples are taken in a given order and put
into the row until the next one exceeds one of its capacities; that one opens a new row (next-fit). No example is
cut, and each is in one row. Segment i of each side of a row belongs to the i-th segment of its examples.

Shape letters: E examples, R rows, T tokens of one side of all examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.batch import Batch, Source
from lm.data.examples.example import Example


def plan(sizes: Sequence[np.ndarray], order_E: np.ndarray, capacities: Sequence[int]) -> np.ndarray:
    """Returns the bounds of the rows in `order_E`, int64 (R + 1,): row r holds order_E[bounds[r]:bounds[r + 1]].

    Args:
        sizes: for each capacity what each example takes of it, int (E,). Every example must fit a row of its own.
        order_E: numbers of examples; it may leave some out.
    """
    count = len(order_E)
    reach_E = np.full(count, count, np.int64)  # where a row would end that begins with this example
    for sizes_E, capacity in zip(sizes, capacities, strict=True):
        assert count == 0 or 0 < sizes_E.min() <= sizes_E.max() <= capacity, "an example is empty or exceeds a row"
        ends_E = np.concatenate([[0], np.cumsum(sizes_E[order_E], dtype=np.int64)])
        reach_E = np.minimum(reach_E, np.searchsorted(ends_E, ends_E[:-1] + capacity, side="right") - 1)
    next_row, bounds, begin = reach_E.tolist(), [0], 0
    while begin < count:
        begin = next_row[begin]
        bounds.append(begin)
    return np.array(bounds, np.int64)


@dataclass(frozen=True)
class RowLayout:
    """The form of a task's rows, and so of its batches."""

    length: int  # tokens
    source_length: int = 0  # tokens of the source side; 0: there is none
    max_masked: int = 0  # the largest number of masked tokens; 0: it is not limited
    with_types: bool = False  # whether there are types of tokens
    real_targets: bool = False  # targets are float32 instead of int32

    @property
    def capacities(self) -> tuple[int, ...]:
        return tuple(each for each in (self.length, self.source_length, self.max_masked) if each)

    def lay_out(self, rows: Sequence[Sequence[Example]]) -> Batch:
        """Returns rows of examples as NumPy arrays (R, length) and (R, source_length). An empty row is padding."""
        examples = [example for row in rows for example in row]
        counts_R = [len(row) for row in rows]
        side = _Side([len(example.tokens_T) for example in examples], counts_R, self.length)
        types, source = None, None
        if self.with_types:
            types = side.spread([_types(example) for example in examples])
        if self.source_length:
            tokens = [_source_of(example) for example in examples]
            source_side = _Side([len(each) for each in tokens], counts_R, self.source_length)
            source = Source(source_side.spread(tokens), source_side.positions, source_side.segments)
        batch = Batch(
            tokens=side.spread([example.tokens_T for example in examples]),
            targets=side.spread(
                [example.targets_T for example in examples], np.float32 if self.real_targets else np.int32
            ),
            weights=side.spread([example.weights_T for example in examples], np.float32),
            positions=side.positions,
            segments=side.segments,
            source=source,
            types=types,
        )
        if self.max_masked:
            assert np.count_nonzero(batch.weights, axis=1).max(initial=0) <= self.max_masked
        return batch


def _source_of(example: Example) -> np.ndarray:
    assert example.source_S is not None, "an example without a source in rows that have one"
    return example.source_S


def _types(example: Example) -> np.ndarray:
    return np.zeros_like(example.tokens_T) if example.types_T is None else example.types_T


class _Side:
    """Positions of the tokens of one side of all examples in rows of `length`.

    Args:
        sizes: tokens of each example, in the order of the rows.
        counts: examples of each row.
    """

    def __init__(self, sizes: Sequence[int], counts: Sequence[int], length: int):
        sizes_E, counts_R = np.asarray(sizes, np.int64), np.asarray(counts, np.int64)
        self._shape = (len(counts_R), length)
        row_of_E = np.repeat(np.arange(len(counts_R)), counts_R)
        first_E = np.repeat(np.cumsum(counts_R) - counts_R, counts_R)  # the first example of each one's row
        begins_E = np.cumsum(sizes_E) - sizes_E
        columns_E = begins_E - begins_E[first_E]
        assert np.all(columns_E + sizes_E <= length), "the examples of a row are longer than the row"
        positions_T = np.arange(int(sizes_E.sum())) - np.repeat(begins_E, sizes_E)
        self._flat_index_T = np.repeat(row_of_E * length + columns_E, sizes_E) + positions_T
        self.positions = self.spread([positions_T])  # within the example, int32 (R, length)
        self.segments = self.spread([np.repeat(np.arange(len(sizes_E)) - first_E + 1, sizes_E)])  # 0 is padding

    def spread(self, values: Sequence[np.ndarray], dtype: Any = np.int32) -> np.ndarray:
        """Returns values of the tokens as rows (R, length), 0 where there is no token."""
        flat = np.zeros(self._shape[0] * self._shape[1], dtype)
        flat[self._flat_index_T] = np.concatenate([np.zeros(0, np.int32), *values])
        return flat.reshape(self._shape)
