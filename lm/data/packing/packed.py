"""Packed rows of numbered examples: `batch = f(config, step)`, as in `windows`.

In each epoch the examples of a source are shuffled and packed anew, both by random numbers with a key. The rows of a
source are those of epoch 0, then of epoch 1, and so on without end; element i of the mixture of all sources depends
on (seed, i) alone, and row r of the global batch of step s is element s * batch_size + r. The number of rows of an
epoch is known only once it is packed, so a start at a late step packs the earlier epochs once (about a second for
five million examples). That is all that resuming costs.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import grain
import numpy as np

from lm.batch import Batch
from lm.config import Config
from lm.data import order
from lm.data.examples.epochs import KeptEpochs
from lm.data.examples.example import Examples
from lm.data.packing.layout import RowLayout, plan


class _Epochs:
    """The rows of one source, numbered through all epochs."""

    def __init__(self, name: str, examples: Examples, seed: int, layout: RowLayout):
        assert len(examples), f"{name} has no examples"
        self._name, self.examples, self._seed, self._layout = name, examples, seed, layout
        self._ends: list[int] = []  # number of rows in all epochs up to and including this one
        self._kept = KeptEpochs[tuple[np.ndarray, np.ndarray]]()

    def locate(self, index: int) -> tuple[int, int]:
        """Returns (epoch, row of the epoch) of the row with this number."""
        while not self._ends or self._ends[-1] <= index:
            self._ends.append((self._ends or [0])[-1] + self.num_rows(len(self._ends)))
        epoch = bisect.bisect_right(self._ends, index)
        return epoch, index - (self._ends[epoch - 1] if epoch else 0)

    def num_rows(self, epoch: int) -> int:
        return len(self._kept.get(epoch, self._pack)[1]) - 1

    def row(self, epoch: int, row: int) -> np.ndarray:
        """Returns the numbers of the examples in a row."""
        order_E, bounds = self._kept.get(epoch, self._pack)
        return order_E[bounds[row] : bounds[row + 1]]

    def _pack(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order_E = order.generator("shuffle", self._seed, self._name, epoch).permutation(len(self.examples))
        return order_E, plan(self.examples.sizes(epoch), order_E, self._layout.capacities)


class PackedTrainRows:
    """Packed rows of training batches, without end. Picklable, so worker processes can make them too.

    Args:
        examples: by source name, none of them without an example.
    """

    kind = "packed row"

    def __init__(self, config: Config, examples: Mapping[str, Examples], layout: RowLayout):
        self._batch_size, self._layout = config.train.batch_size, layout
        self._weights = {name: config.data.train[name].weight for name in examples}
        self._sources = {name: _Epochs(name, each, config.seed, layout) for name, each in examples.items()}

    @cached_property
    def _order(self) -> grain.MapDataset:
        """Element i is (source name, number of the row)."""
        orders = {
            name: grain.MapDataset.range(1).map_with_index(partial(_number_row, name)).repeat()
            for name in self._sources
        }
        return order.mix(orders, self._weights)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_order"}

    def rows_per_epoch(self) -> dict[str, int]:
        """Returns the rows of epoch 0 by source; later epochs are packed anew and may differ a little."""
        return {name: epochs.num_rows(0) for name, epochs in self._sources.items()}

    def notes(self) -> dict[str, list[str]]:
        """Returns, by source, what a person should know about how its examples were made."""
        return {name: list(epochs.examples.notes) for name, epochs in self._sources.items()}

    def locate(self, step: int, row_ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """Returns (source name, epoch, row of the epoch) of rows of the global batch of `step`."""
        assert all(0 <= r < self._batch_size for r in row_ids), (row_ids, self._batch_size)
        found = []
        for r in row_ids:
            name, index = self._order[step * self._batch_size + int(r)]
            found.append((name, *self._sources[name].locate(index)))
        return found

    def rows(self, step: int, row_ids: Sequence[int]) -> Batch:
        """Returns rows `row_ids` of the global batch of `step`, in that order, as NumPy arrays."""
        rows = []
        for name, epoch, row in self.locate(step, row_ids):
            source = self._sources[name]
            numbers = source.row(epoch, row).tolist()
            rows.append([segment for number in numbers for segment in source.examples.segments(epoch, number)])
        return self._layout.lay_out(rows)


def _number_row(name: str, index: int, _: int) -> tuple[str, int]:
    return name, index


class PackedEvalRows:
    """All examples of one source as packed rows, each example once and in order; ids past the end give padding.

    Examples that are drawn at random are those of epoch 0, so every evaluation scores the same ones.

    Attributes:
        num_rows: how many rows there are.
        missing: why `totals` has no bytes and words, or "".
    """

    def __init__(self, examples: Examples, layout: RowLayout):
        self.examples, self._layout = examples, layout
        self._bounds = plan(examples.sizes(0), np.arange(len(examples)), layout.capacities)
        self.num_rows = len(self._bounds) - 1
        self.missing = examples.missing

    @cached_property
    def totals(self) -> dict[str, int]:
        """What the losses are divided by: `targets` (those with a weight above 0) and the counts of the text."""
        return {"targets": self.examples.num_targets(), **self.examples.text}

    def examples_of(self, row: int) -> range:
        """Returns the numbers of the examples in a row; none for a row past the end."""
        return range(*map(int, self._bounds[row : row + 2])) if row < self.num_rows else range(0)

    def starts(self, row: int) -> list[tuple[int, int]]:
        """Returns (number of the example, its first column) for the examples of a row."""
        numbers = self.examples_of(row)
        sizes = self._sizes_E[numbers.start : numbers.stop]
        return list(zip(numbers, (np.cumsum(sizes) - sizes).tolist(), strict=True))

    @cached_property
    def _sizes_E(self) -> np.ndarray:
        return self.examples.sizes(0)[0]

    def rows(self, row_ids: Sequence[int]) -> Batch:
        """Returns rows `row_ids`, in that order, as NumPy arrays."""
        return self._layout.lay_out(
            [[each for i in self.examples_of(row) for each in self.examples.segments(0, i)] for row in row_ids]
        )
