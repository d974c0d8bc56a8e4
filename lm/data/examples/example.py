"""The `Example` type, which holds one or two texts, and the base classes of indexed examples.

E is the number of examples, T the number of tokens per example, and S the number of source tokens per example.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lm.data.storing.token_store import TokenStore
from lm.data.tokenizing.special_tokens import SpecialTokens


@dataclass(frozen=True)
class Example:
    """One or more segments of a row; segments cannot attend to each other. `lm.batch.Batch` explains the arrays."""

    tokens_T: np.ndarray  # int32: the input of the decoder, or of the only stack if there is no decoder
    targets_T: np.ndarray  # int32, or float32 for regression
    weights_T: np.ndarray  # float32
    types_T: np.ndarray | None = None  # int32: 0 for the first text, 1 for the second; None if all are 0
    source_S: np.ndarray | None = None  # int32: the input of the encoder, or the other text of a pair
    segments: Sequence[int] = ()  # the length of each segment; empty if the example is one segment
    source_segments: Sequence[int] = ()  # the same for the source
    position: int = 0  # position of the first token; above 0 if the example continues a text (data.stateful)

    def lengths_of_source(self) -> Sequence[int]:
        """Returns the length of each segment of the source."""
        return self.source_segments or (0 if self.source_S is None else len(self.source_S),)


class Joined(NamedTuple):
    """The arrays of E examples, concatenated. Each example is one segment, and so is its source."""

    example: Example
    sizes_E: np.ndarray  # the number of tokens of each example, int64 (E,)
    source_sizes_E: np.ndarray  # the number of source tokens of each example, int64 (E,); empty if there is no source


def cut_notes(number: int, total: int, what: str, setting: str, length: int) -> list[str]:
    """Returns a list with a note that `number` of `total` texts are too long; the list is empty if `number` is 0."""
    return [f"{number:,} of {total:,} {what} (data.{setting}={length})"] if number else []


class Examples(abc.ABC):
    """The examples of one data source, accessed by index. Instances can be pickled.

    All sizes are known before any example is made. Packing plans the rows of an epoch from sizes alone; the tokens of a
    row are made when the row is requested. Every random draw is keyed by (seed, source name, epoch, example index), so
    all processes draw the same values, and each epoch draws new values.
    """

    store: Any  # the store from which the examples are made
    notes: Sequence[str] = ()  # remarks on how the examples were made, e.g. how many were truncated

    def __getstate__(self) -> dict[str, Any]:
        # Cached properties are large, but another process can recompute them quickly.
        cached = [name for name in self.__dict__ if isinstance(getattr(type(self), name, None), cached_property)]
        return {name: value for name, value in self.__dict__.items() if name not in cached}

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        """Returns one int64 (E,) array per capacity in `RowLayout.capacities`: the amount that each example uses."""

    @abc.abstractmethod
    def make(self, epoch: int, index: int) -> Example:
        """Returns one example, which has exactly the sizes that `sizes` returns."""

    def join(self, epoch: int, indices_E: np.ndarray) -> Joined | None:
        """Returns several examples joined, or None if examples can only be made one by one, which is slower."""
        return None

    @property
    def text(self) -> dict[str, int]:
        """The text counts of all targets (see `token_store`).

        `bytes` and `words` are 0 unless all tokens are targets.
        """
        counts = self.store.counts
        return {"documents": counts["documents"], "bytes": 0, "words": 0, "unknown": counts["unknown"]}

    def num_targets(self) -> int:
        """Counts the targets of epoch 0 that have a positive weight, by making every example once."""
        return sum(int(np.count_nonzero(self.make(0, i).weights_T)) for i in range(len(self)))

    def has_targets(self) -> bool:
        """Returns whether any target of epoch 0 has a positive weight. (Usually, the first example already has one.)"""
        return any(np.any(self.make(0, i).weights_T > 0) for i in range(len(self)))


def from_pair(source: np.ndarray, target: np.ndarray, special: SpecialTokens) -> Example:
    """Adds special tokens to two texts and returns them as an example.

    The input of the decoder is `decoder_start`, followed by all targets except the last.
    """
    source_S, target_T = special.for_source.fill(source)[0], special.for_target.fill(target)[0]
    inputs_T = np.concatenate([[special.decoder_start], target_T[:-1]]).astype(np.int32)
    return Example(inputs_T, target_T, np.ones(len(target_T), np.float32), source_S=source_S)


class Chunks(NamedTuple):
    """The chunks cut from documents, excluding each document's first and last token; int64 (E,) arrays."""

    first_E: np.ndarray  # first token, as an index into the store
    length_E: np.ndarray
    document_E: np.ndarray  # index of the document from which the chunk was cut


class ChunkExamples(Examples):
    """Base class for examples that are made anew in each epoch, each from one chunk.

    Each document is cut into chunks of `longest` tokens and a remainder of at least `shortest` (1 or 2) tokens. A
    remainder that is too short takes a token from the chunk before it, or is omitted if that chunk has none to spare.
    """

    def __init__(self, store: TokenStore, longest: int, shortest: int, seed: int, name: str):
        assert 1 <= shortest <= min(2, longest), (shortest, longest)
        self.store, self._longest, self._shortest, self._key = store, longest, shortest, (seed, name)

    @cached_property
    def _chunks(self) -> Chunks:
        lengths, longest = self.store.text_lengths, self._longest
        counts = -(-lengths // longest)
        rests = lengths - (counts - 1) * longest  # length of each document's last chunk
        lone = (lengths > 0) & (rests < self._shortest)
        borrows = lone & (lengths >= 2) & (longest > 2)
        counts -= lone & ~borrows
        document_E, nth_E = numbered(counts)
        borrows_E, chunks_after_E = borrows[document_E], counts[document_E] - 1 - nth_E
        borrowed_E = borrows_E & (chunks_after_E == 0)
        first_E = np.asarray(self.store.starts)[document_E] + 1 + nth_E * longest - borrowed_E
        length_E = np.minimum(lengths[document_E] - nth_E * longest, longest) + borrowed_E
        length_E -= borrows_E & (chunks_after_E == 1)
        return Chunks(first_E, length_E, document_E)

    def __len__(self) -> int:
        return len(self._chunks.first_E)

    def _tokens(self, first: int, length: int) -> np.ndarray:
        """Returns `length` tokens of the store, int32."""
        return np.asarray(self.store.tokens[first : first + length], np.int32)


def numbered(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the group of each item and its index in the group, given the size of each group, int64 (E,) each."""
    group_E = np.repeat(np.arange(len(counts)), counts)
    return group_E, np.arange(len(group_E)) - np.repeat(np.cumsum(counts) - counts, counts)
