"""Packs examples into rows and rows into batches. A batch depends only on the config and the step.

A row has one or more capacities: the maximum numbers of tokens, source tokens and masked tokens. Examples are added to
a row in a given order. An example that would exceed a capacity starts a new row (next-fit). Each example is in exactly
one row, is kept whole, and attends to no other example. The segments on each side of a row are numbered from 1.

For causal language modelling, all documents are joined into one stream, in which each document has the form
`[bos] tokens [eos]`. A row is a window of this stream and is determined by its start offset. Each part of a document
in the window is an example.

The training rows of a data source are the rows of epoch 0, followed by the rows of epoch 1, and so on. Element i of the
mixture of all sources depends only on (seed, i). Row r of the global batch of step s is element s * batch_size + r.
Each host therefore computes only its own rows, and there is no iterator state to save.

E is the number of examples, R of rows, W of windows, and T of all tokens on one side of the examples.
"""

from __future__ import annotations

import abc
import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from typing import Any

import grain
import jax
import numpy as np

from lm.batch import Batch, Source
from lm.config import Config
from lm.data import order
from lm.data.examples.example import Example, Examples, numbered
from lm.data.packing.planning import plan
from lm.data.packing.windows import most_segments, next_tokens, windows_of
from lm.data.storing.token_store import TokenStore

# The length of each segment, int64 (E,), and the number of segments in each row, int64 (R,).
Sizes = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class RowLayout:
    """The layout of a task's rows, and thus of its batches."""

    length: int  # number of tokens per row
    source_length: int = 0  # number of source tokens per row; 0 if there is no source
    max_masked: int = 0  # maximum number of masked tokens; 0 means no limit
    with_types: bool = False  # whether batches have token types
    real_targets: bool = False  # whether targets are float32 instead of int32

    @property
    def capacities(self) -> tuple[int, ...]:
        return tuple(each for each in (self.length, self.source_length, self.max_masked) if each)

    def lay_out(self, rows: Sequence[Sequence[Example]]) -> Batch:
        """Arranges rows of examples in (R, length) and (R, source_length) arrays. Empty rows are all padding."""
        examples = [example for row in rows for example in row]
        segments = [[n for each in row for n in each.segments or (len(each.tokens_T),)] for row in rows]
        sources = [[n for each in row for n in each.lengths_of_source()] for row in rows] if self.source_length else []
        return self._arrange(examples, *map(_sizes_and_counts, (segments, sources)))

    def lay_out_joined(self, examples: Examples, epoch: int, indices: Sequence[np.ndarray]) -> Batch:
        """Arranges rows of examples, given the indices of the examples of each row."""
        joined = examples.join(epoch, np.concatenate([np.zeros(0, np.int64), *indices]))
        if joined is None:
            return self.lay_out([[examples.make(epoch, i) for i in each.tolist()] for each in indices])
        counts_R = np.array(list(map(len, indices)), np.int64)
        return self._arrange([joined.example], (joined.sizes_E, counts_R), (joined.source_sizes_E, counts_R))

    def _arrange(self, examples: Sequence[Example], segments: Sizes, source_segments: Sizes) -> Batch:
        side = _Side([each.tokens_T for each in examples], *segments, self.length)
        types, source = None, None
        if self.with_types:
            types = side.spread([each.tokens_T * 0 if each.types_T is None else each.types_T for each in examples])
        if self.source_length:
            sources = [each.source_S for each in examples if each.source_S is not None]
            assert len(sources) == len(examples), "an example has no source, but the rows need one"
            source_side = _Side(sources, *source_segments, self.source_length)
            source = Source(source_side.tokens, source_side.positions, source_side.segments)
        targets = side.spread([each.targets_T for each in examples], np.float32 if self.real_targets else np.int32)
        weights = side.spread([each.weights_T for each in examples], np.float32)
        positions = side.positions
        if any(each.position for each in examples):
            positions = positions + side.spread([np.full_like(each.tokens_T, each.position) for each in examples])
        if self.max_masked:
            assert np.count_nonzero(weights, axis=1).max(initial=0) <= self.max_masked
        return Batch(
            side.tokens, targets, weights, positions=positions, segments=side.segments, source=source, types=types
        )


def _sizes_and_counts(segments: Sequence[Sequence[int]]) -> Sizes:
    sizes_E = np.array([size for row in segments for size in row], np.int64)
    return sizes_E, np.array([len(row) for row in segments], np.int64)


class _Side:
    """One side (inputs or source) of rows of `length` tokens, which hold the tokens of all examples, in order.

    `sizes_E` contains the lengths of all segments, and `counts_R` the number of segments in each row.
    """

    def __init__(self, tokens: Sequence[np.ndarray], sizes_E: np.ndarray, counts_R: np.ndarray, length: int):
        self._shape = (len(counts_R), length)
        row_of_E, nth_E = numbered(counts_R)
        begins_E = np.cumsum(sizes_E) - sizes_E
        columns_E = begins_E - begins_E[np.arange(len(sizes_E)) - nth_E]
        assert np.all(columns_E + sizes_E <= length), "the examples of a row are longer than the row"
        every_T = np.arange(int(sizes_E.sum()))
        self._flat_index_T = every_T + np.repeat(row_of_E * length + columns_E - begins_E, sizes_E)
        self.tokens = self.spread(tokens)
        self.positions = self.spread([every_T - np.repeat(begins_E, sizes_E)])  # within the segment, int32 (R, length)
        self.segments = self.spread([np.repeat(nth_E + 1, sizes_E)])  # segment 0 is padding

    def spread(self, values: Sequence[np.ndarray], dtype: Any = np.int32) -> np.ndarray:
        """Arranges one value per token in an (R, length) array, with 0 where there is no token."""
        flat = np.zeros(self._shape[0] * self._shape[1], dtype)
        flat[self._flat_index_T] = values[0] if len(values) == 1 else np.concatenate([np.zeros(0, np.int32), *values])
        return flat.reshape(self._shape)


class RowSource(abc.ABC):
    """Base class for the endless training rows of one data source, such as `PackedRows` or `WindowRows`."""

    kind: str  # the word for a row in messages, such as "window"
    max_segments = 0  # no row has more segments than this; 0 if there is no known limit
    notes: Sequence[str] = ()  # messages about how the examples were made

    @abc.abstractmethod
    def num_rows(self, epoch: int) -> int: ...

    @abc.abstractmethod
    def locate(self, index: int) -> tuple[int, int]:
        """Returns (epoch, row within the epoch) for row `index`, where `index` counts the rows of all epochs."""

    @abc.abstractmethod
    def batch(self, rows: Sequence[tuple[int, int]], layout: RowLayout) -> Batch:
        """Returns the rows with the given (epoch, row within the epoch), in the given order, as NumPy arrays."""


class SingleRows(RowSource):
    """Base class for training rows that are made one by one."""

    @abc.abstractmethod
    def row(self, epoch: int, row: int) -> list[Example]: ...

    def batch(self, rows: Sequence[tuple[int, int]], layout: RowLayout) -> Batch:
        return layout.lay_out([self.row(*each) for each in rows])


class PackedRows(RowSource):
    """Rows of examples that are shuffled and packed anew in each epoch.

    The number of rows in an epoch is known only after packing, so resuming at a step requires packing all earlier
    epochs once (about a second for five million examples). Resuming has no other cost.
    """

    kind = "packed row"  # what a row is called in messages

    def __init__(self, name: str, examples: Examples, seed: int, layout: RowLayout):
        assert len(examples), f"{name} has no examples"
        self._examples, self._key, self._capacities = examples, (seed, name), layout.capacities
        self.notes = examples.notes  # messages about how the examples were made
        self._ends: list[int] = []  # total number of rows up to the end of each epoch
        self._kept = order.EpochCache[tuple[np.ndarray, np.ndarray]]()

    def locate(self, index: int) -> tuple[int, int]:
        while not self._ends or self._ends[-1] <= index:
            self._ends.append((self._ends or [0])[-1] + self.num_rows(len(self._ends)))
        epoch = bisect.bisect_right(self._ends, index)
        return epoch, index - (self._ends[epoch - 1] if epoch else 0)

    def num_rows(self, epoch: int) -> int:
        return len(self._kept.get(epoch, self._pack)[1]) - 1

    def batch(self, rows: Sequence[tuple[int, int]], layout: RowLayout) -> Batch:
        found = [(epoch, self._indices(epoch, row)) for epoch, row in rows]
        if len({epoch for epoch, _ in rows}) == 1:
            return layout.lay_out_joined(self._examples, rows[0][0], [indices for _, indices in found])
        return layout.lay_out([[self._examples.make(epoch, i) for i in each.tolist()] for epoch, each in found])

    def _indices(self, epoch: int, row: int) -> np.ndarray:
        """Returns the indices of the examples in a row."""
        order_E, bounds = self._kept.get(epoch, self._pack)
        return order_E[bounds[row] : bounds[row + 1]]

    def _pack(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order_E = order.generator("shuffle", *self._key, epoch).permutation(len(self._examples))
        return order_E, plan(self._examples.sizes(epoch), order_E, self._capacities)


class WindowRows(RowSource):
    """Windows of one data source, shuffled anew in each epoch.

    An epoch has as many rows of `length` tokens as fit into the stream. Each epoch has its own random offset, so the
    row boundaries differ between epochs. The last window may wrap around to the beginning of the stream.
    """

    kind = "window"

    def __init__(self, name: str, store: TokenStore, seed: int, length: int):
        assert store.num_tokens > length, (store.num_tokens, length)
        self._store, self._key, self._length = store, (seed, name), length
        self.max_segments = most_segments(store, length)
        self._count = store.num_tokens // length
        self._seed = order.number("shuffle", *self._key, below=2**32)

    def num_rows(self, epoch: int) -> int:
        return self._count

    def locate(self, index: int) -> tuple[int, int]:
        return order.shuffled(index, self._count, self._seed)

    def batch(self, rows: Sequence[tuple[int, int]], layout: RowLayout) -> Batch:
        assert layout == RowLayout(self._length), "windows have no source and no types"
        tokens, targets, weights, positions, segments = windows_of(
            self._store, np.array([self._start(*each) for each in rows], np.int64), self._length
        )
        return Batch(tokens, targets, weights, positions=positions, segments=segments)

    def _start(self, epoch: int, row: int) -> int:
        return order.number("offset", *self._key, epoch, below=self._length) + row * self._length


class WindowExamples(Examples):
    """The parts of documents in all windows of a store. Each target is scored exactly once.

    Window i begins at token i * stride. A target already scored in an earlier window has weight 0. All windows except
    the last have `length` tokens, so no two windows share a row.
    """

    def __init__(self, store: TokenStore, length: int, stride: int):
        self._store, self._length, self._stride = store, length, stride
        assert 0 < stride <= length, (stride, length)
        last = -(-max(0, store.num_tokens - 1 - length) // stride)  # the first window that reaches the end
        starts_W = stride * np.arange(1 + last)
        ends_W = np.minimum(starts_W + length, store.num_tokens)
        first_W = np.searchsorted(store.starts, starts_W, side="right") - 1  # index of the first document per window
        counts_W = np.searchsorted(store.starts, ends_W) - first_W
        self._window_E, nth_E = numbered(counts_W)
        document_E = first_W[self._window_E] + nth_E
        bounds = np.append(store.starts, store.num_tokens)
        self._begin_E = np.maximum(starts_W[self._window_E], bounds[document_E])
        self._end_E = np.minimum(ends_W[self._window_E], bounds[document_E + 1])

    def __len__(self) -> int:
        return len(self._begin_E)

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        return (self._end_E - self._begin_E,)

    def make(self, epoch: int, index: int) -> Example:
        window, begin = int(self._window_E[index]), int(self._begin_E[index])
        example = next_tokens(self._store, begin, int(self._end_E[index]))
        if window:
            column = begin - window * self._stride
            example.weights_T[: max(0, self._length - self._stride - column)] = 0.0
        return example

    @property
    def text(self) -> dict[str, int]:
        return {name: self._store.counts[name] for name in ("documents", "bytes", "words", "unknown", "changed")}

    def num_targets(self) -> int:
        """Returns the total number of tokens, excluding the BOS token of each document."""
        return self._store.num_tokens - self._store.num_documents


class TrainRows:
    """The endless sequence of training rows. The object can be pickled, so worker processes can make batches too."""

    def __init__(self, config: Config, sources: Mapping[str, RowSource], layout: RowLayout):
        self._batch_size, self._sources, self._layout = config.train.batch_size, dict(sources), layout
        self._first = next(iter(sources))
        self.kind = sources[self._first].kind
        counts = [source.max_segments for source in sources.values()]
        self.max_segments = max(counts) if all(counts) else 0  # of a row; 0 if there is no known limit
        one = grain.MapDataset.range(1)
        orders = [one.map_with_index(partial(_number_row, name)).repeat() for name in sources]
        weights = [config.data.train[name].weight for name in sources]
        # Element i is (source name, row index). In any stretch of elements, the frequency of each source is
        # proportional to its weight.
        self._order = None if len(orders) == 1 else grain.MapDataset.mix(orders, weights=weights)

    def rows_per_epoch(self, epoch: int = 0) -> dict[str, int]:
        """Returns the number of rows in an epoch for each source. The number may vary slightly between epochs."""
        return {name: source.num_rows(epoch) for name, source in self._sources.items()}

    def notes(self) -> dict[str, list[str]]:
        return {name: list(source.notes) for name, source in self._sources.items()}

    def locate(self, step: int, row_ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """Returns (source name, epoch, row within the epoch) for rows `row_ids` of the global batch of `step`."""
        assert all(0 <= r < self._batch_size for r in row_ids), (row_ids, self._batch_size)
        elements = [step * self._batch_size + int(r) for r in row_ids]
        found = [self._order[i] for i in elements] if self._order is not None else [(self._first, i) for i in elements]
        return [(name, *self._sources[name].locate(index)) for name, index in found]

    def rows(self, step: int, row_ids: Sequence[int]) -> Batch:
        """Returns rows `row_ids` of the global batch of `step`, in that order, as NumPy arrays."""
        located = self.locate(step, row_ids)
        found = {name: [n for n, each in enumerate(located) if each[0] == name] for name in self._sources}
        found = {name: numbers for name, numbers in found.items() if numbers}
        batches = [self._sources[name].batch([located[n][1:] for n in ns], self._layout) for name, ns in found.items()]
        batch = batches[0]
        if len(batches) > 1:
            places = np.argsort(list(chain.from_iterable(found.values())))
            batch = jax.tree.map(lambda *arrays: np.concatenate(arrays)[places], *batches)
        return dataclasses.replace(batch, max_segments=self.max_segments)


def _number_row(name: str, index: int, _: int) -> tuple[str, int]:
    return name, index


class EvalRows:
    """All examples of one data source, packed in order into rows. Rows past the end are all padding.

    Random draws are the same as in epoch 0, so every evaluation scores the same examples.
    """

    def __init__(self, examples: Examples, layout: RowLayout):
        self.examples, self._layout = examples, layout
        sizes = examples.sizes(0)
        self._sizes_E = sizes[0]
        self._bounds = plan(sizes, np.arange(len(examples)), layout.capacities)
        self.num_rows = len(self._bounds) - 1

    @cached_property
    def totals(self) -> dict[str, int]:
        """The divisors of the losses: the number of `targets` with a positive weight, and the text counts."""
        return {"targets": self.examples.num_targets(), **self.examples.text}

    def _examples_of(self, row: int) -> np.ndarray:
        """Returns the indices of the examples in a row; there are none in a row past the end."""
        return np.arange(*self._bounds[row : row + 2] if row < self.num_rows else (0,))

    def starts(self, row: int) -> list[tuple[int, int]]:
        """Returns (example index, first column) for each example in a row."""
        numbers = self._examples_of(row)
        sizes = self._sizes_E[numbers]
        return list(zip(numbers.tolist(), (np.cumsum(sizes) - sizes).tolist(), strict=True))

    def rows(self, row_ids: Sequence[int]) -> Batch:
        """Returns rows `row_ids`, in that order, as NumPy arrays."""
        return self._layout.lay_out_joined(self.examples, 0, [self._examples_of(row) for row in row_ids])
