"""Rows for models that carry their state across batches (data.stateful): row r continues in row r of the next batch.

The stream of tokens is cut into as many stretches as a batch has rows. Row r reads stretch r, one window after
another. Positions count from the start of the document or of the stretch, whichever is later, so a model that resets
its state at position 0 never carries its state into another document or stretch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lm.batch import Batch
from lm.data import order
from lm.data.examples.example import Example
from lm.data.packing.rows import RowLayout, SingleRows, WindowExamples
from lm.data.packing.windows import cut, next_tokens
from lm.data.storing.token_store import TokenStore


def continued(store: TokenStore, begin: int, end: int, stretch: int) -> list[Example]:
    """Returns the parts of documents in tokens [begin, end) of the stream.

    The positions of the first part count from the start of its document or from the start of the stretch (token
    `stretch`), whichever is later. `begin` must be at least `stretch`.
    """
    first, *others = (next_tokens(store, *each) for each in cut(store, begin, end))
    document = int(store.starts[np.searchsorted(store.starts, begin, side="right") - 1])
    return [dataclasses.replace(first, position=begin - max(document, stretch)), *others]


class StatefulRows(SingleRows):
    """The training rows of one data source.

    In each epoch, each of the `batch_size` stretches has as many windows of `length` tokens as fit. Each epoch has its
    own random offset, from which the stream is read cyclically, so the boundaries of stretches and windows differ
    between epochs. Row r of window t is row t * batch_size + r of the epoch.
    """

    kind = "stateful window"

    def __init__(self, name: str, store: TokenStore, seed: int, length: int, batch_size: int):
        assert store.num_tokens >= length * batch_size, (store.num_tokens, length, batch_size)
        self._store, self._key, self._length, self._batch_size = store, (seed, name), length, batch_size
        self._windows = store.num_tokens // (length * batch_size)

    def num_rows(self, epoch: int) -> int:
        return self._windows * self._batch_size

    def locate(self, index: int) -> tuple[int, int]:
        return divmod(index, self.num_rows(0))

    def row(self, epoch: int, row: int) -> list[Example]:
        window, stretch = divmod(row, self._batch_size)
        total, length = self._store.num_tokens, self._length
        offset = order.number("stretches", *self._key, epoch, below=total)
        first = (offset + stretch * self._windows * length) % total
        begin = first + window * length
        if begin >= total:  # the stretch wrapped around in an earlier window and continues with the first document
            begin, first = begin - total, 0
        examples = continued(self._store, begin, min(begin + length, total), first)
        if (rest := begin + length - total) > 0:
            examples += continued(self._store, 0, rest, 0)
        return examples


class StatefulEvalRows:
    """All tokens of one data source, in stretches of equal length, with each target in exactly one row.

    Row r of window t is row t * `stretches` + r. The last stretches may be shorter or empty; rows past the end of a
    stretch or past the last row are all padding. The other attributes are the same as in `EvalRows`.
    """

    def __init__(self, store: TokenStore, length: int, stretches: int, layout: RowLayout):
        self.examples = WindowExamples(store, length, length)
        self.stretches, self._store, self._length, self._layout = stretches, store, length, layout
        self._windows = -(-store.num_tokens // (length * stretches))
        self.num_rows = self._windows * stretches

    @property
    def totals(self) -> dict[str, int]:
        """The divisors of the losses: the number of `targets` with a positive weight, and the text counts."""
        return {"targets": self.examples.num_targets(), **self.examples.text}

    def rows(self, row_ids: Sequence[int]) -> Batch:
        """Returns rows `row_ids`, in that order, as NumPy arrays."""
        return self._layout.lay_out([self._row(int(row)) for row in row_ids])

    def _row(self, row: int) -> list[Example]:
        window, stretch = divmod(row, self.stretches)
        first = stretch * self._windows * self._length
        begin = first + window * self._length
        if row >= self.num_rows or begin >= self._store.num_tokens:
            return []
        return continued(self._store, begin, min(begin + self._length, self._store.num_tokens), first)
