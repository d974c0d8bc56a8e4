"""Examples made from chunks: the documents of a store, without bos and eos, cut into stretches that fit a row.

Shape letters: E examples.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from lm.data.examples.example import Examples
from lm.data.storing.token_store import TokenStore


class Chunks(NamedTuple):
    """All int64 (E,)."""

    first_E: np.ndarray  # first token, as an index into the store
    length_E: np.ndarray
    document_E: np.ndarray  # number of the document that the chunk was cut from


class ChunkExamples(Examples):
    """Base of the examples that are made from one chunk each, anew in each epoch.

    The seed and the name of the data source decide all draws; `longest` and `shortest` are those of `cut_documents`.
    """

    def __init__(self, store: TokenStore, longest: int, shortest: int, seed: int, name: str):
        self._store, self._longest, self._shortest, self._key = store, longest, shortest, (seed, name)

    @cached_property
    def _chunks(self) -> Chunks:
        return cut_documents(self._store, self._longest, self._shortest)

    @property
    def text(self) -> dict[str, int]:
        counts = self._store.counts
        return {"documents": counts["documents"], "bytes": 0, "words": 0, "unknown": counts["unknown"]}

    def __len__(self) -> int:
        return len(self._chunks.first_E)

    def _tokens(self, first: int, length: int) -> np.ndarray:
        """Returns tokens of the store, int32 (length,)."""
        return np.asarray(self._store.tokens[first : first + length], np.int32)


def cut_documents(store: TokenStore, longest: int, shortest: int) -> Chunks:
    """Returns each document as chunks of `longest` tokens and a rest, in order; `shortest` is 1 or 2.

    If `shortest` is 2 and the rest is a single token, it takes a second token from the chunk before it (and is left out
    if that chunk has only two). Documents shorter than `shortest` give no chunk.
    """
    assert 1 <= shortest <= min(2, longest), (shortest, longest)
    lengths = store.text_lengths
    counts = -(-lengths // longest)
    rests = lengths - (counts - 1) * longest  # length of each document's last chunk
    lone = (lengths > 0) & (rests < shortest)
    borrows = lone & (lengths >= 2) & (longest > 2)
    counts -= lone & ~borrows
    document_E = np.repeat(np.arange(len(lengths)), counts)
    nth_E = np.arange(len(document_E)) - np.repeat(np.cumsum(counts) - counts, counts)
    borrows_E, chunks_after_E = borrows[document_E], counts[document_E] - 1 - nth_E
    borrowed_E = borrows_E & (chunks_after_E == 0)
    first_E = np.asarray(store.starts)[document_E] + 1 + nth_E * longest - borrowed_E
    length_E = np.minimum(lengths[document_E] - nth_E * longest, longest) + borrowed_E
    length_E -= borrows_E & (chunks_after_E == 1)
    return Chunks(first_E, length_E, document_E)
