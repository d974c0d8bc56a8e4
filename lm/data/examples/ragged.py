"""Rows of different length in two flat arrays, which cost little to send to another process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lm.data.tokenizing.base import Tokenizer

TEXTS_AT_ONCE = 1024


@dataclass(frozen=True)
class Ragged:
    """Rows of different length, one after another. N is the number of values in all rows."""

    flat_N: np.ndarray  # int32
    starts: np.ndarray  # int64 (rows + 1,)

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> Ragged:
        arrays = [np.asarray(row, np.int32) for row in rows]
        starts = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(each) for each in arrays], out=starts[1:])
        return cls(np.concatenate([np.zeros(0, np.int32), *arrays]), starts)

    @classmethod
    def encode(cls, tokenizer: Tokenizer, texts: Sequence[str]) -> Ragged:
        """Returns the tokens of each text, without special tokens."""
        return cls.of(_encode(tokenizer, texts))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat_N[self.starts[row] : self.starts[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 (rows,)."""
        return np.diff(self.starts)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        yield from tokenizer.encode_batch(texts[first : first + TEXTS_AT_ONCE])
