"""Examples of pairs: a source and its target for an encoder-decoder, or two texts with similar meaning.

Shape letters: E examples.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from lm.data.examples.chunks import text_counts, text_lengths
from lm.data.examples.example import Example, Examples, from_pair
from lm.data.storing.pair_store import PairStore


class PairExamples(Examples):
    """The pairs of a store, the same in every epoch: the tokens and the end token of either side.

    Args:
        source_length, target_length: tokens per row on either side.
        drop: leave out pairs that are longer than a row; otherwise their text is cut and the end token kept.
    """

    def __init__(self, pairs: PairStore, source_length: int, target_length: int, bos_id: int, *, drop: bool = False):
        assert pairs.source.num_documents == pairs.target.num_documents, "sides of different length"
        self._source, self._target, self._bos_id = pairs.source, pairs.target, bos_id
        self._source_length, self._target_length, self._drop = source_length, target_length, drop

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_sizes", "_kept_E")}

    @cached_property
    def _kept_E(self) -> np.ndarray:
        """Numbers of the pairs that are not dropped."""
        fits = np.ones(self._source.num_documents, bool)
        if self._drop:
            fits &= text_lengths(self._source) < self._source_length
            fits &= text_lengths(self._target) < self._target_length
        return np.flatnonzero(fits)

    @cached_property
    def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
        source_sizes_E = text_lengths(self._source)[self._kept_E] + 1
        target_sizes_E = text_lengths(self._target)[self._kept_E] + 1
        return np.minimum(target_sizes_E, self._target_length), np.minimum(source_sizes_E, self._source_length)

    @property
    def text(self) -> dict[str, int]:
        return text_counts(self._target, len(self), whole=not self.missing)

    @property
    def missing(self) -> str:  # type: ignore[override]
        whole = len(self) == self._target.num_documents
        whole = whole and bool(np.all(text_lengths(self._target) < self._target_length))
        return "" if whole else "truncated: targets that are longer than a row are not scored whole"

    def __len__(self) -> int:
        return len(self._kept_E)

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        return self._sizes

    def num_targets(self) -> int:
        return int(self._sizes[0].sum())

    def make(self, epoch: int, index: int) -> Example:
        pair = int(self._kept_E[index])
        source_S = _cut(self._source.document(pair), self._source_length)
        return from_pair(source_S, _cut(self._target.document(pair), self._target_length), self._bos_id)


class PairedTexts(Examples):
    """Pairs of texts with similar meaning, each `bos text eos`. A pair fills a row, and its first token has the weight.

    A text that is longer than a row loses its end and keeps eos.
    """

    missing = "no text is predicted"

    def __init__(self, pairs: PairStore, length: int):
        self._source, self._target, self._length = pairs.source, pairs.target, length

    @property
    def text(self) -> dict[str, int]:
        return {"documents": len(self), "bytes": 0, "words": 0, "unknown": 0}

    def __len__(self) -> int:
        return self._target.num_documents

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        whole_row_E = np.full(len(self), self._length, np.int64)
        return whole_row_E, whole_row_E

    def num_targets(self) -> int:
        return len(self)

    def make(self, epoch: int, index: int) -> Example:
        source_S, tokens_T = (_fitting(side.document(index), self._length) for side in (self._source, self._target))
        weights_T = np.zeros(len(tokens_T), np.float32)
        weights_T[0] = 1.0
        return Example(tokens_T, np.zeros_like(tokens_T), weights_T, source_S=source_S)


def _fitting(document: np.ndarray, length: int) -> np.ndarray:
    """`bos text eos` of at most `length` tokens."""
    tokens = np.array(document[:length], np.int32)
    tokens[-1] = document[-1]
    return tokens


def _cut(document: np.ndarray, length: int) -> np.ndarray:
    """`[bos] text [eos]` without its bos, its text cut such that at most `length` tokens remain."""
    tokens = np.array(document[1 : length + 1], np.int32)
    tokens[-1] = document[-1]
    return tokens
