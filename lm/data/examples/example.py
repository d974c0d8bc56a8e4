"""The one type of example, for one text or two, and the protocol of a numbered set of examples.

Shape letters: E examples, T tokens of one example, S tokens of its source.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Example:
    """One segment of a row. See `lm.batch.Batch` for the meaning of targets and weights."""

    tokens_T: np.ndarray  # int32: what the decoder, or the only stack, reads
    targets_T: np.ndarray  # int32; float32 for regression
    weights_T: np.ndarray  # float32
    types_T: np.ndarray | None = None  # int32: 0 for the first text, 1 for the second; None: all 0
    source_S: np.ndarray | None = None  # int32: what the encoder reads, or the other text of a pair


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

    def segments(self, epoch: int, index: int) -> list[Example]:
        """Returns the segments of one example, which do not see each other; by default there is one, from `make`.

        They lie next to each other in a row. `sizes` gives their sums.
        """
        return [self.make(epoch, index)]

    @property
    @abc.abstractmethod
    def text(self) -> dict[str, int]:
        """`documents`, `bytes`, `words` and `unknown` of the text that all targets spell (see `token_store`).

        `bytes` and `words` are 0 unless the targets are the whole text.
        """

    def num_targets(self) -> int:
        """Returns the number of targets of epoch 0 with a weight above 0. Makes every example once."""
        segments = (segment for i in range(len(self)) for segment in self.segments(0, i))
        return sum(int(np.count_nonzero(segment.weights_T)) for segment in segments)


def framed(bos_id: int, eos_id: int, *texts: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens `bos A eos`, or `bos A eos B eos`, and their types: 0 up to the first eos, then 1; int32."""
    tokens_T = np.concatenate([[bos_id], *(each for text in texts for each in (text, [eos_id]))]).astype(np.int32)
    types_T = np.zeros(len(tokens_T), np.int32)
    types_T[len(texts[0]) + 2 :] = 1
    return tokens_T, types_T


def from_pair(source_S: np.ndarray, target_T: np.ndarray, bos_id: int) -> Example:
    """Returns the example whose decoder reads bos and the target without its last token, and predicts all of it.

    Both sides end with their end token.
    """
    target_T = np.asarray(target_T, np.int32)
    inputs_T = np.concatenate([[bos_id], target_T[:-1]]).astype(np.int32)
    return Example(inputs_T, target_T, np.ones(len(target_T), np.float32), source_S=np.asarray(source_S, np.int32))
