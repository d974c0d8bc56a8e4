"""Examples for GloVe: rows of word pairs with their co-occurrence counts."""

from __future__ import annotations

import numpy as np

from lm.data import order
from lm.data.examples.example import Example, Examples
from lm.data.packing.rows import SingleRows
from lm.data.storing.pair_counts import PairCounts


class CountedExamples(Examples):
    """Each example fills a row with the next pairs of a store, in stored order. The last example may be shorter."""

    def __init__(self, store: PairCounts, length: int):
        self.store, self._length = store, length

    def __len__(self) -> int:
        return -(-len(self.store) // self._length)

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        return (np.full(len(self), self._length, np.int64),) * 2

    def make(self, epoch: int, index: int) -> Example:
        chosen = slice(index * self._length, (index + 1) * self._length)
        first_T, second_T, counts_T = (self.store.array(name)[chosen] for name in ("first", "second", "count"))
        ones_T = np.ones(len(first_T), np.float32)
        return Example(np.array(first_T), np.array(counts_T), ones_T, source_S=np.array(second_T))

    def num_targets(self) -> int:
        return len(self.store)


class CountedRows(SingleRows):
    """The training rows of one data source. The rows, but not the pairs within them, are shuffled in each epoch."""

    kind = "row of pairs"

    def __init__(self, name: str, store: PairCounts, seed: int, length: int):
        self._examples = CountedExamples(store, length)
        self._seed = order.number("shuffle", seed, name, below=2**32)

    def num_rows(self, epoch: int) -> int:
        return len(self._examples)

    def locate(self, index: int) -> tuple[int, int]:
        return order.shuffled(index, len(self._examples), self._seed)

    def row(self, epoch: int, row: int) -> list[Example]:
        return [self._examples.make(epoch, row)]
