"""Packed rows of examples by number, one-sided or two-sided: `batch = f(config, step)`, as in `loader`.

Each epoch of a source has a shuffle and a packing of its own, both drawn by key. The rows of a source are
those of epoch 0, then of epoch 1, and so on without end; element i of the mixture depends on (seed, i)
alone, and row r of the global batch of step s is element s * batch_size + r. How many rows an epoch has is
known only when it is packed, so a start at a late step packs the epochs before it once (a second for each
five million examples), which is all that resuming costs.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Protocol

import grain
import numpy as np

from lm.batch import Batch
from lm.config import Config
from lm.data import order
from lm.data.examples.epochs import KeptEpochs
from lm.data.packing.next_fit import plan


class Packable(Protocol):
    """Numbered examples of one source: `lm.data.examples.pairs.Examples` or `lm.data.examples.example.Pieces`."""

    def __len__(self) -> int: ...

    def sizes(self, epoch: int) -> Any:
        """Tokens of each example, int64 (E,), or such an array for each of its sides."""
        ...

    def make(self, epoch: int, index: int) -> Any: ...


class Layout(Protocol):
    """How examples of one form lie in rows. Picklable."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """What each side of a row has places for."""
        ...

    def sizes(self, examples: Any, epoch: int) -> tuple[np.ndarray, ...]:
        """What each example takes of each side, int64 (E,)."""
        ...

    def lay_out(self, rows: Sequence[Sequence[Any]]) -> Batch:
        """Rows of examples as NumPy arrays; a row without examples is padding."""
        ...


class _Epochs:
    """The rows of one source, numbered through all epochs."""

    def __init__(self, name: str, examples: Packable, seed: int, layout: Layout):
        assert len(examples), f"{name} has no examples"
        self._name, self.examples, self._seed, self._layout = name, examples, seed, layout
        self._ends: list[int] = []  # rows in all the epochs up to and with this one
        self._kept = KeptEpochs[tuple[np.ndarray, np.ndarray]]()

    def locate(self, index: int) -> tuple[int, int]:
        """(epoch, row of the epoch) of the row with this number."""
        while not self._ends or self._ends[-1] <= index:
            self._ends.append((self._ends or [0])[-1] + self.num_rows(len(self._ends)))
        epoch = bisect.bisect_right(self._ends, index)
        return epoch, index - (self._ends[epoch - 1] if epoch else 0)

    def num_rows(self, epoch: int) -> int:
        return len(self._kept.get(epoch, self._pack)[1]) - 1

    def row(self, epoch: int, row: int) -> np.ndarray:
        """Numbers of the examples in a row."""
        order_E, bounds = self._kept.get(epoch, self._pack)
        return order_E[bounds[row] : bounds[row + 1]]

    def _pack(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order_E = order.generator("shuffle", self._seed, self._name, epoch).permutation(len(self.examples))
        return order_E, plan(self._layout.sizes(self.examples, epoch), order_E, self._layout.lengths)


class PackedTrainRows:
    """Packed rows of training batches, endless. Picklable, so worker processes can make them too.

    Args:
        examples: by source name, none of them without an example.
    """

    def __init__(self, config: Config, examples: Mapping[str, Packable], layout: Layout):
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
        """By source, in epoch 0; later epochs are packed anew and may differ by a little."""
        return {name: epochs.num_rows(0) for name, epochs in self._sources.items()}

    def notes(self) -> dict[str, list[str]]:
        """By source, what a person should know of how its examples were made."""
        return {name: list(getattr(epochs.examples, "notes", ())) for name, epochs in self._sources.items()}

    def places(self, step: int, row_ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """(source name, epoch, row of the epoch) of rows of the global batch of `step`."""
        assert all(0 <= r < self._batch_size for r in row_ids), (row_ids, self._batch_size)
        places = []
        for r in row_ids:
            name, index = self._order[step * self._batch_size + int(r)]
            places.append((name, *self._sources[name].locate(index)))
        return places

    def rows(self, step: int, row_ids: Sequence[int]) -> Batch:
        """Rows `row_ids` of the global batch of `step`, in that order, as the layout has them."""
        rows = []
        for name, epoch, row in self.places(step, row_ids):
            source = self._sources[name]
            rows.append([source.examples.make(epoch, int(index)) for index in source.row(epoch, row)])
        return self._layout.lay_out(rows)


def _number_row(name: str, index: int, _: int) -> tuple[str, int]:
    return name, index


class PackedEvalRows:
    """All examples of one source, each once and in their order, as packed rows; ids past the end give padding.

    Examples that are drawn are those of epoch 0, so every evaluation scores the same.
    """

    def __init__(self, examples: Packable, layout: Layout):
        self._examples, self._layout = examples, layout
        self._bounds = plan(layout.sizes(examples, 0), np.arange(len(examples)), layout.lengths)
        self.num_rows = len(self._bounds) - 1

    def examples_of(self, row: int) -> range:
        """Numbers of the examples in a row."""
        return range(*map(int, self._bounds[row : row + 2])) if row < self.num_rows else range(0)

    def rows(self, row_ids: Sequence[int]) -> Batch:
        """Rows `row_ids`, in that order, as the layout has them."""
        return self._layout.lay_out([[self._examples.make(0, i) for i in self.examples_of(row)] for row in row_ids])
