"""What an encoder, or another model with a head of its own, learns from: one-sided examples, each of one segment.

Shape letters: E examples, T tokens of one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Piece:
    """One segment of a row: arrays of one length. See `lm.batch.Batch` for what targets and weights say."""

    tokens_T: np.ndarray  # int32
    targets_T: np.ndarray  # int32; float32 for regression
    weights_T: np.ndarray  # float32
    types_T: np.ndarray  # int32: 0 for the first text, 1 for the second


class Pieces(Protocol):
    """Numbered pieces of one data source, whose sizes are known before they are made. Picklable.

    Whatever is drawn is drawn by key (seed, source name, epoch, and the piece's number), so every process
    makes the same, and each epoch has new ones.
    """

    def __len__(self) -> int: ...

    def sizes(self, epoch: int) -> np.ndarray:
        """Tokens of each piece, int64 (E,), never more than a row holds."""
        ...

    def make(self, epoch: int, index: int) -> Piece: ...
