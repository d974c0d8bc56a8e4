"""The one type of example, for one text or two, and the base classes of numbered sets of examples.

Shape letters: E examples, T tokens of one example, S tokens of its source.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lm.data.storing.token_store import TokenStore


@dataclass(frozen=True)
class Example:
    """One segment of a row, or several that cannot attend to each other. `lm.batch.Batch` explains its arrays."""

    tokens_T: np.ndarray  # int32: what the decoder, or the only stack, reads
    targets_T: np.ndarray  # int32; float32 for regression
    weights_T: np.ndarray  # float32
    types_T: np.ndarray | None = None  # int32: 0 for the first text, 1 for the second; None: all 0
    source_S: np.ndarray | None = None  # int32: what the encoder reads, or the other text of a pair
    segments: Sequence[int] = ()  # the length of each segment; empty: the example is one segment


class Examples(abc.ABC):
    """Numbered examples of one data source, whose sizes are known before they are made. Picklable.

    Packing plans the rows of an epoch from sizes alone; the tokens of a row are made when the row is requested.
    Every random draw has a key (seed, source name, epoch, number of the example), so all processes make the same
    examples, and each epoch has new ones.
    """

    notes: Sequence[str] = ()  # messages about how the examples were made, such as the number that were cut

    def __getstate__(self) -> dict[str, Any]:
        # Cached properties are large, and quickly computed again by another process.
        cached = [name for name in self.__dict__ if isinstance(getattr(type(self), name, None), cached_property)]
        return {name: value for name, value in self.__dict__.items() if name not in cached}

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        """Returns what each example takes of each of `RowLayout.capacities`, in their order, int64 (E,) each."""

    @abc.abstractmethod
    def make(self, epoch: int, index: int) -> Example:
        """Returns one example, which has exactly the `sizes` of this epoch."""

    @property
    @abc.abstractmethod
    def text(self) -> dict[str, int]:
        """Counts of the text of all targets (see `token_store`); `bytes` and `words` are 0 if it is not all text."""

    def num_targets(self) -> int:
        """Returns the number of targets of epoch 0 with a weight above 0. Makes every example once."""
        return sum(int(np.count_nonzero(self.make(0, i).weights_T)) for i in range(len(self)))


def from_pair(source_S: np.ndarray, target_T: np.ndarray, bos_id: int) -> Example:
    """Returns the example whose decoder reads bos and the target up to its last token, and predicts the target."""
    target_T = np.asarray(target_T, np.int32)
    inputs_T = np.concatenate([[bos_id], target_T[:-1]]).astype(np.int32)
    return Example(inputs_T, target_T, np.ones(len(target_T), np.float32), source_S=np.asarray(source_S, np.int32))


class Chunks(NamedTuple):
    """Documents of a store, without bos and eos, cut into stretches that fit a row. All int64 (E,)."""

    first_E: np.ndarray  # first token, as an index into the store
    length_E: np.ndarray
    document_E: np.ndarray  # number of the document that the chunk was cut from


class ChunkExamples(Examples):
    """Base of the examples that are made from one chunk each, anew in each epoch."""

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
    """Returns each document as chunks of `longest` tokens and a rest, in order, all of `shortest` (1 or 2) or more.

    A rest that is too short takes a token from the chunk before it, or is left out if that chunk would be too short.
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
