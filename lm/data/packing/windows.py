"""Windows of a token stream: concatenate and cut, for causal language modelling.

The documents of a source follow one another in one stream, each as `[bos] tokens [eos]`. A row is a window of that
stream, so it can be computed from its start alone: nothing is planned or stored, and `batch = f(config, step)` for
every process and every number of workers.

The order of training rows is a `grain.MapDataset`: each source's rows are shuffled anew in each epoch, repeated, and
mixed by weight; element i depends on (seed, i) alone. Row r of the global batch of step s is element
s * batch_size + r, so a host computes only its own rows, and there is no iterator state to save.

Shape letters: R rows of a call, L sequence length, M = L + 1 tokens of a window (L inputs and the target of the last).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import grain
import numpy as np

from lm.batch import Batch
from lm.config import Config
from lm.data import order
from lm.data.storing.token_store import TokenStore


class Windows(NamedTuple):
    """Packed windows, before they become inputs and targets. All int32."""

    tokens_RM: np.ndarray  # 0 for padding
    segments_RM: np.ndarray  # document within the row, from 1; 0 for padding
    positions_RM: np.ndarray  # position within the stretch of the document that lies in this row, from 0


def cut_windows(
    tokens: np.ndarray, starts_of_documents: np.ndarray, starts_R: np.ndarray, length: int, *, circular: bool
) -> Windows:
    """Returns windows of `length` tokens that begin at `starts_R`.

    Args:
        starts_of_documents: increasing offsets of the documents' first tokens; the first is 0.
        circular: a window that passes the end of the stream continues at its beginning. Otherwise it is padded, and a
            start at or past the end gives a row of padding.
    """
    size = len(tokens)
    indices_RM = np.asarray(starts_R, np.int64)[:, None] + np.arange(length, dtype=np.int64)[None, :]
    if circular:
        indices_RM %= size
        real_RM = np.ones(indices_RM.shape, bool)
    else:
        real_RM = indices_RM < size
        indices_RM = np.minimum(indices_RM, size - 1)
    tokens_RM = np.where(real_RM, tokens[indices_RM].astype(np.int32), np.int32(0))

    nearest_RM = np.searchsorted(starts_of_documents, indices_RM)
    nearest_RM = np.minimum(nearest_RM, len(starts_of_documents) - 1)
    begins_RM = np.asarray(starts_of_documents)[nearest_RM] == indices_RM
    begins_RM[:, 0] = True  # the window's first stretch, whether or not its document begins here
    columns_RM = np.broadcast_to(np.arange(length, dtype=np.int32), begins_RM.shape)
    stretch_begins_RM = np.maximum.accumulate(np.where(begins_RM, columns_RM, 0), axis=1)
    return Windows(
        tokens_RM=tokens_RM,
        segments_RM=np.where(real_RM, np.cumsum(begins_RM, axis=1, dtype=np.int32), np.int32(0)),
        positions_RM=np.where(real_RM, columns_RM - stretch_begins_RM, np.int32(0)).astype(np.int32),
    )


def next_token_batch(windows: Windows) -> Batch:
    """Returns inputs (R, L) and the targets one position later.

    A target counts only if it belongs to the same document as its input: the first token of a document (its begin
    token) is never predicted from the document before.
    """
    segments_RM = windows.segments_RM
    same_RL = (segments_RM[:, 1:] == segments_RM[:, :-1]) & (segments_RM[:, 1:] > 0)
    return Batch(
        tokens=windows.tokens_RM[:, :-1],
        targets=np.where(same_RL, windows.tokens_RM[:, 1:], 0).astype(np.int32),
        weights=same_RL.astype(np.float32),
        positions=windows.positions_RM[:, :-1],
        segments=segments_RM[:, :-1],
    )


def num_training_rows(num_tokens: int, sequence_length: int) -> int:
    """Returns the number of rows of an epoch: how often L targets fit into the stream, which must hold one window."""
    assert num_tokens > sequence_length, (num_tokens, sequence_length)
    return num_tokens // sequence_length


def num_evaluation_rows(num_tokens: int, sequence_length: int, stride: int) -> int:
    """Returns the number of windows, each `stride` further, until the stream's last token has been a target."""
    assert 0 < stride <= sequence_length, (stride, sequence_length)
    beyond_first = max(0, num_tokens - 1 - sequence_length)
    return 1 + -(-beyond_first // stride)


def scored_targets(row_ids: np.ndarray, sequence_length: int, stride: int) -> np.ndarray:
    """Returns which targets no earlier window has scored, bool (R, L). The first window scores all its targets."""
    columns_L = np.arange(sequence_length)
    return (np.asarray(row_ids)[:, None] == 0) | (columns_L >= sequence_length - stride)[None, :]


class WindowTrainRows:
    """Rows of training batches, without end. Picklable, so worker processes can make them too."""

    kind = "window"

    def __init__(self, config: Config, stores: Mapping[str, TokenStore]):
        self._seed = config.seed
        self._length = config.data.sequence_length
        self._batch_size = config.train.batch_size
        self._stores = dict(stores)
        self._weights = {name: config.data.train[name].weight for name in self._stores}

    def rows_per_epoch(self) -> dict[str, int]:
        """Returns the number of rows of an epoch by source."""
        return {name: num_training_rows(s.num_tokens, self._length) for name, s in self._stores.items()}

    def notes(self) -> dict[str, list[str]]:
        return {}

    @cached_property
    def _order(self) -> grain.MapDataset:
        """Element i is (source name, epoch, row of the epoch)."""
        orders = {}
        for name, count in self.rows_per_epoch().items():
            number_rows = partial(_number_row, name, count)
            seed = order.number("shuffle", self._seed, name, below=2**32)
            # Numbered before the shuffle: there the index still counts on over the epochs.
            rows = grain.MapDataset.range(count).map_with_index(number_rows)
            orders[name] = rows.shuffle(seed=seed).repeat()
        return order.mix(orders, self._weights)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_order"}

    def locate(self, step: int, row_ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """Returns (source name, epoch, row of the epoch) of rows of the global batch of `step`."""
        assert all(0 <= r < self._batch_size for r in row_ids), (row_ids, self._batch_size)
        return [self._order[step * self._batch_size + int(r)] for r in row_ids]

    def rows(self, step: int, row_ids: Sequence[int]) -> Batch:
        """Returns rows `row_ids` of the global batch of `step`, in that order, as NumPy arrays (R, L)."""
        located = self.locate(step, row_ids)
        whole = Windows(*np.zeros((3, len(located), self._length + 1), np.int32))
        for name, store in self._stores.items():
            chosen = [i for i, (source, _, _) in enumerate(located) if source == name]
            starts = np.array([self._start(*located[i]) for i in chosen])
            some = cut_windows(store.tokens, store.starts, starts, self._length + 1, circular=True)
            for whole_RM, some_RM in zip(whole, some, strict=True):
                whole_RM[chosen] = some_RM
        return next_token_batch(whole)

    def _start(self, name: str, epoch: int, row: int) -> int:
        # Another offset in each epoch, so that rows are not cut at the same tokens again.
        return order.number("offset", self._seed, name, epoch, below=self._length) + row * self._length


def _number_row(name: str, count: int, index: int, row: int) -> tuple[str, int, int]:
    return name, index // count, row


class WindowEvalRows:
    """All windows of one store, each target scored exactly once; ids past the end give padding.

    Attributes:
        totals: the divisors of the losses: `targets` (scored tokens: all except the bos of each document),
            `documents`, `bytes`, `words`, `unknown` (see `token_store`).
    """

    def __init__(self, store: TokenStore, sequence_length: int, stride: int):
        self._store, self._length, self._stride = store, sequence_length, stride
        self.num_rows = num_evaluation_rows(store.num_tokens, sequence_length, stride)
        self.totals: dict[str, int] = {
            "targets": store.num_tokens - store.num_documents,
            **{name: store.counts[name] for name in ("documents", "bytes", "words", "unknown")},
        }

    def rows(self, row_ids: Sequence[int]) -> Batch:
        """Returns rows `row_ids`, in that order, (R, L); targets that an earlier window has scored have weight 0."""
        ids_R = np.asarray(row_ids, np.int64)
        # With a short stride a row past the last one could start within the stream; it is padding all the same.
        starts_R = np.where(ids_R < self.num_rows, ids_R * self._stride, self._store.num_tokens)
        windows = cut_windows(self._store.tokens, self._store.starts, starts_R, self._length + 1, circular=False)
        batch = next_token_batch(windows)
        scored_RL = scored_targets(ids_R, self._length, self._stride)
        return dataclasses.replace(batch, weights=np.where(scored_RL, batch.weights, np.float32(0.0)))
