"""Windows of a token stream: concatenate and cut, for causal language modelling.

The documents of a source follow one another in one stream, each as `[bos] tokens [eos]`. A row is a window of that
stream: each stretch of a document in it is an example. So a row can be computed from its start alone.

Shape letters: E examples, W windows.
"""

from __future__ import annotations

from itertools import pairwise

import grain
import numpy as np

from lm.data import order
from lm.data.examples.example import Example, Examples
from lm.data.packing.rows import RowSource
from lm.data.storing.token_store import TokenStore


def next_tokens(store: TokenStore, begin: int, end: int) -> Example:
    """Returns tokens [begin, end) of one document and, as their targets, the tokens one position later.

    The last token of a document has no target: the bos of a document is never predicted from the document before.
    """
    tokens_T = np.array(store.tokens[begin:end], np.int32)
    targets_T, weights_T = np.zeros_like(tokens_T), np.zeros(len(tokens_T), np.float32)
    after = np.searchsorted(store.starts, end)
    is_end = end == store.num_tokens if after == len(store.starts) else store.starts[after] == end
    scored = len(tokens_T) - int(is_end)
    targets_T[:scored] = store.tokens[begin + 1 : begin + 1 + scored]
    weights_T[:scored] = 1.0
    return Example(tokens_T, targets_T, weights_T)


class WindowRows(RowSource):
    """Windows of one source in an order that is shuffled anew in each epoch.

    An epoch has as many rows of `length` tokens as fit into the stream. Its windows begin at another offset than those
    of other epochs, so that rows are not cut at the same tokens; the last one may continue at the stream's beginning.
    """

    kind = "window"

    def __init__(self, name: str, store: TokenStore, seed: int, length: int):
        assert store.num_tokens > length, (store.num_tokens, length)
        self._store, self._key, self._length = store, (seed, name), length
        self._count = store.num_tokens // length
        shuffle = order.number("shuffle", *self._key, below=2**32)
        self._order = grain.MapDataset.range(self._count).shuffle(seed=shuffle).repeat()

    def num_rows(self, epoch: int) -> int:
        return self._count

    def locate(self, index: int) -> tuple[int, int]:
        return index // self._count, self._order[index]

    def row(self, epoch: int, row: int) -> list[Example]:
        store, start = self._store, self._start(epoch, row)
        end = min(start + self._length, store.num_tokens)
        stretches = _cut(store, start, end)
        if start + self._length > end:
            stretches += _cut(store, 0, start + self._length - end)
        return [next_tokens(store, *each) for each in stretches]

    def _start(self, epoch: int, row: int) -> int:
        return order.number("offset", *self._key, epoch, below=self._length) + row * self._length


def _cut(store: TokenStore, start: int, end: int) -> list[tuple[int, int]]:
    """Returns the bounds of the stretches of documents between two tokens of the stream."""
    first, last = np.searchsorted(store.starts, (start + 1, end))
    return list(pairwise([start, *store.starts[first:last].tolist(), end]))


class WindowExamples(Examples):
    """The stretches of documents in all windows of a store, each target scored exactly once.

    Window i begins at token i * stride. A target that an earlier window has scored has weight 0. Every window except
    the last is full, so no two share a row of `length` tokens.
    """

    def __init__(self, store: TokenStore, length: int, stride: int):
        self._store, self._length, self._stride = store, length, stride
        starts_W = stride * np.arange(num_windows(store.num_tokens, length, stride))
        ends_W = np.minimum(starts_W + length, store.num_tokens)
        first_W = np.searchsorted(store.starts, starts_W, side="right") - 1  # document
        counts_W = np.searchsorted(store.starts, ends_W) - first_W
        self._window_E = np.repeat(np.arange(len(starts_W)), counts_W)
        document_E = np.arange(len(self._window_E)) + np.repeat(first_W - np.cumsum(counts_W) + counts_W, counts_W)
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
        return {name: self._store.counts[name] for name in ("documents", "bytes", "words", "unknown")}

    def num_targets(self) -> int:
        """All tokens except the bos of each document."""
        return self._store.num_tokens - self._store.num_documents


def num_windows(num_tokens: int, length: int, stride: int) -> int:
    """Returns the number of windows, one every `stride` tokens, until the stream's last token has been a target."""
    assert 0 < stride <= length, (stride, length)
    return 1 + -(-max(0, num_tokens - 1 - length) // stride)
