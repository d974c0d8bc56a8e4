"""Examples made from pairs: a source and a target for an encoder-decoder, or two texts with similar meaning.

E is the number of examples.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from lm.data.examples.example import Example, Examples, cut_notes, from_pair
from lm.data.storing.token_store import PairStore


class PairExamples(Examples):
    """The pairs of a store, which are the same in every epoch. Each side has the form `tokens eos`.

    A side that is too long for a row is cut before its EOS. If `drop` is true, its pair is omitted instead.
    """

    def __init__(self, pairs: PairStore, source_length: int, target_length: int, bos_id: int, *, drop: bool = False):
        assert pairs.source.num_documents == pairs.target.num_documents, "the sides have different numbers of documents"
        self._source, self._target, self._bos_id = pairs.source, pairs.target, bos_id
        self._source_length, self._target_length, self._drop = source_length, target_length, drop
        fate = "are too long, so their pairs are dropped" if drop else "are cut"
        self.notes = [
            *_count_long(pairs.source.text_lengths + 1, f"sources {fate}", "source_length", source_length),
            *_count_long(pairs.target.text_lengths + 1, f"targets {fate}", "sequence_length", target_length),
        ]

    @cached_property
    def _kept_E(self) -> np.ndarray:
        """The indices of the pairs that are kept."""
        long = (self._source.text_lengths >= self._source_length) | (self._target.text_lengths >= self._target_length)
        return np.flatnonzero(~(long & self._drop))

    @cached_property
    def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
        source_sizes_E, target_sizes_E = (side.text_lengths[self._kept_E] + 1 for side in (self._source, self._target))
        return np.minimum(target_sizes_E, self._target_length), np.minimum(source_sizes_E, self._source_length)

    @property
    def text(self) -> dict[str, int]:
        counts = self._target.counts
        whole = len(self) == counts["documents"] and np.all(self._target.text_lengths < self._target_length)
        text = {name: counts[name] if whole else 0 for name in ("bytes", "words")}
        return {"documents": len(self), **text, "unknown": counts["unknown"]}

    def __len__(self) -> int:
        return len(self._kept_E)

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        return self._sizes

    def num_targets(self) -> int:
        return int(self._sizes[0].sum())

    def make(self, epoch: int, index: int) -> Example:
        pair = int(self._kept_E[index])
        # BOS is removed, because a source has no BOS and `from_pair` adds a BOS to the target.
        source_S = _cut(self._source.document(pair)[1:], self._source_length)
        return from_pair(source_S, _cut(self._target.document(pair)[1:], self._target_length), self._bos_id)


class PairedTexts(Examples):
    """Pairs of texts with similar meaning, each of the form `bos text eos`.

    A text that is too long is cut before its EOS. A pair occupies a whole row of `length` tokens. In each pair, only
    the first target token has a positive weight.
    """

    def __init__(self, pairs: PairStore, length: int):
        self._source, self._target, self._length = pairs.source, pairs.target, length
        lengths = np.concatenate([pairs.source.text_lengths, pairs.target.text_lengths])
        self.notes = _count_long(lengths + 2, "texts are cut", "sequence_length", length)

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
        source_S, tokens_T = (_cut(side.document(index), self._length) for side in (self._source, self._target))
        weights_T = np.zeros(len(tokens_T), np.float32)
        weights_T[0] = 1.0
        return Example(tokens_T, np.zeros_like(tokens_T), weights_T, source_S=source_S)


def _count_long(lengths: np.ndarray, what: str, setting: str, longest: int) -> list[str]:
    return cut_notes(int(np.sum(lengths > longest)), len(lengths), what, setting, longest)


def _cut(document: np.ndarray, length: int) -> np.ndarray:
    """Cuts a document to at most `length` tokens, but keeps its last token."""
    tokens = np.array(document[:length], np.int32)
    tokens[-1] = document[-1]
    return tokens
