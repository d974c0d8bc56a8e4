"""Packed rows of pieces, for training (`packed_rows.PackedTrainRows` with a `PieceLayout`) and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lm.batch import Batch
from lm.config import Config
from lm.data.examples.example import Piece, Pieces
from lm.data.examples.labelled import TaskPieces
from lm.data.packing.next_fit import Side
from lm.data.packing.packed_rows import PackedEvalRows


def lay_out_pieces(
    rows: Sequence[Sequence[Piece]], length: int, with_types: bool = False, real_targets: bool = False
) -> Batch:
    """Rows of pieces as NumPy arrays (R, L), each piece a segment. A row without pieces is padding.

    Targets are int32, or float32 with `real_targets`. Types are left out unless they are asked for.
    """
    pieces = [piece for row in rows for piece in row]
    side = Side([len(piece.tokens_T) for piece in pieces], [len(row) for row in rows], length)

    def joined(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays) if arrays else np.zeros(0, np.int32)

    return Batch(
        tokens=side.spread(joined([piece.tokens_T for piece in pieces])),
        targets=side.spread(joined([piece.targets_T for piece in pieces]), np.float32 if real_targets else np.int32),
        weights=side.spread(joined([piece.weights_T for piece in pieces]), np.float32),
        positions=side.positions,
        segments=side.segments,
        types=side.spread(joined([piece.types_T for piece in pieces])) if with_types else None,
    )


@dataclass(frozen=True)
class PieceLayout:
    """Rows of `length` tokens; see `lay_out_pieces`."""

    length: int
    with_types: bool = False
    real_targets: bool = False
    max_hidden: int = 0  # the most hidden tokens of a row; 0 for any number

    @classmethod
    def of(cls, config: Config) -> PieceLayout:
        """What the model of a config reads."""
        real = config.objective.name == "regression"
        return cls(config.data.sequence_length, config.model.token_types > 0, real, config.model.max_hidden)

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self.length, self.max_hidden) if self.max_hidden else (self.length,)

    def sizes(self, examples: Any, epoch: int) -> tuple[np.ndarray, ...]:
        sizes_E = examples.sizes(epoch)
        return (sizes_E, examples.hidden(epoch)) if self.max_hidden else (sizes_E,)

    def lay_out(self, rows: Sequence[Sequence[Piece]]) -> Batch:
        batch = lay_out_pieces(rows, self.length, self.with_types, self.real_targets)
        if self.max_hidden:
            assert np.count_nonzero(batch.weights, axis=1).max(initial=0) <= self.max_hidden
        return batch


class PieceEvalRows(PackedEvalRows):
    """The pieces of one source, to be scored.

    Args:
        text: `documents`, `bytes`, `words` and `unknown` of the text behind the pieces, where it is known; by default
            each piece is a document.
        missing: why bytes and words are 0.
    """

    def __init__(
        self,
        pieces: Pieces,
        layout: PieceLayout,
        *,
        text: Mapping[str, int] | None = None,
        missing: str = "the text is not what is predicted",
    ):
        super().__init__(pieces, layout)
        self._pieces, self.missing = pieces, missing
        self._text = {"documents": len(pieces), "bytes": 0, "words": 0, "unknown": 0, **(text or {})}

    @cached_property
    def totals(self) -> dict[str, int]:
        """What the losses are divided by: `targets` (those of a weight over 0), and the counts of the text.

        Every piece is made once to count them, the first time that this is asked for.
        """
        made = (self._pieces.make(0, i) for i in range(len(self._pieces)))
        return {"targets": sum(int(np.count_nonzero(piece.weights_T)) for piece in made), **self._text}

    def places(self, row: int) -> list[tuple[int, int]]:
        """(number of the piece, its first column) for the pieces of a row; none for a row past the end."""
        numbers = self.examples_of(row)
        sizes = self._sizes_E[numbers.start : numbers.stop]
        return list(zip(numbers, (np.cumsum(sizes) - sizes).tolist(), strict=True))

    @cached_property
    def _sizes_E(self) -> np.ndarray:
        return self._pieces.sizes(0)


class TaskEvalRows(PieceEvalRows):
    """The pieces of a task with labels, to be scored; `pieces` tells what each of them is of."""

    def __init__(self, pieces: TaskPieces, layout: PieceLayout):
        counts = pieces.store.counts
        text = {"documents": counts["examples"], "unknown": counts["unknown"]}
        super().__init__(pieces, layout, text=text)
        self.pieces = pieces
