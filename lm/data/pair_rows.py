"""Packed rows of (source, target) examples by number: `batch = f(config, step)`, as in `loader`.

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
from typing import Any

import grain
import numpy as np

from lm.batch import Batch
from lm.config import Config
from lm.data import order
from lm.data.examples import Examples
from lm.data.pair_packing import lay_out, plan

EPOCHS_KEPT = 2  # batches made ahead may lie in the next epoch already


class _Epochs:
    """The rows of one source, numbered through all epochs."""

    def __init__(self, name: str, examples: Examples, seed: int, source_length: int, target_length: int):
        assert len(examples), f"{name} has no examples"
        self._name, self.examples, self._seed = name, examples, seed
        self._lengths = (source_length, target_length)
        self._ends: list[int] = []  # rows in all the epochs up to and with this one
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def locate(self, index: int) -> tuple[int, int]:
        """(epoch, row of the epoch) of the row with this number."""
        while not self._ends or self._ends[-1] <= index:
            self._ends.append((self._ends or [0])[-1] + self.num_rows(len(self._ends)))
        epoch = bisect.bisect_right(self._ends, index)
        return epoch, index - (self._ends[epoch - 1] if epoch else 0)

    def num_rows(self, epoch: int) -> int:
        return len(self._packed(epoch)[1]) - 1

    def row(self, epoch: int, row: int) -> np.ndarray:
        """Numbers of the examples in a row."""
        order_E, bounds = self._packed(epoch)
        return order_E[bounds[row] : bounds[row + 1]]

    def _packed(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._kept:
            while len(self._kept) >= EPOCHS_KEPT:
                self._kept.pop(next(iter(self._kept)))
            order_E = order.generator("shuffle", self._seed, self._name, epoch).permutation(len(self.examples))
            self._kept[epoch] = order_E, plan(*self.examples.sizes(epoch), order_E, *self._lengths)
        return self._kept[epoch]


class PairTrainRows:
    """Packed rows of training batches, endless. Picklable, so worker processes can make them too.

    Args:
        examples: by source name, none of them without an example.
        bos_id: what the decoder reads first.
    """

    def __init__(self, config: Config, examples: Mapping[str, Examples], bos_id: int):
        self._lengths = (config.data.source_length, config.data.sequence_length)
        self._batch_size, self._bos_id = config.train.batch_size, bos_id
        self._weights = {name: config.data.train[name].weight for name in examples}
        self._sources = {name: _Epochs(name, each, config.seed, *self._lengths) for name, each in examples.items()}

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

    def places(self, step: int, row_ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """(source name, epoch, row of the epoch) of rows of the global batch of `step`."""
        assert all(0 <= r < self._batch_size for r in row_ids), (row_ids, self._batch_size)
        places = []
        for r in row_ids:
            name, index = self._order[step * self._batch_size + int(r)]
            places.append((name, *self._sources[name].locate(index)))
        return places

    def rows(self, step: int, row_ids: Sequence[int]) -> Batch:
        """Rows `row_ids` of the global batch of `step`, in that order: NumPy arrays, source (R, S), target (R, L)."""
        rows = []
        for name, epoch, row in self.places(step, row_ids):
            source = self._sources[name]
            rows.append([source.examples.make(epoch, int(index)) for index in source.row(epoch, row)])
        return lay_out(rows, *self._lengths, self._bos_id)


def _number_row(name: str, index: int, _: int) -> tuple[str, int]:
    return name, index


class PairEvalRows:
    """All examples of one source, each once and in their order, as packed rows; ids past the end give padding.

    Examples that are drawn are those of epoch 0, so every evaluation scores the same. `totals` has what the
    losses are divided by: `targets` (scored tokens: all of the targets, their end tokens included), and
    `documents`, `bytes`, `words`, `unknown` as `loader.EvalRows` has them. Where bytes and words are 0
    `missing` says why.
    """

    def __init__(self, examples: Examples, source_length: int, target_length: int, bos_id: int):
        self._examples, self._lengths, self._bos_id = examples, (source_length, target_length), bos_id
        source_sizes_E, target_sizes_E = examples.sizes(0)
        self._bounds = plan(source_sizes_E, target_sizes_E, np.arange(len(examples)), *self._lengths)
        self.num_rows = len(self._bounds) - 1
        self.totals: dict[str, int] = {"targets": int(target_sizes_E.sum()), **examples.text}
        self.missing = examples.missing

    def rows(self, row_ids: Sequence[int]) -> Batch:
        """Rows `row_ids`, in that order: source (R, S), target (R, L)."""
        rows = []
        for row in row_ids:
            inside = range(*self._bounds[row : row + 2]) if row < self.num_rows else range(0)
            rows.append([self._examples.make(0, index) for index in inside])
        return lay_out(rows, *self._lengths, self._bos_id)
