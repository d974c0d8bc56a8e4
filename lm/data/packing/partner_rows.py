"""Rows of texts that belong together, one pair a row: for vectors that are alike (objective contrastive)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm.batch import Batch, Source
from lm.config import Config
from lm.data.examples.pairs import Examples
from lm.data.packing.next_fit import Side
from lm.data.packing.packed_rows import PackedEvalRows
from lm.data.packing.pair_packing import Example


@dataclass(frozen=True)
class PartnerLayout:
    """Rows with one text, `bos text eos`, in the batch and its partner as the source, each of up to `length` tokens."""

    length: int
    bos_id: int

    @classmethod
    def of(cls, config: Config, bos_id: int) -> PartnerLayout:
        return cls(config.data.sequence_length, bos_id)

    @property
    def lengths(self) -> tuple[int, ...]:
        return (1,)

    def sizes(self, examples: Examples, epoch: int) -> tuple[np.ndarray, ...]:
        """A pair fills a row, whatever its length."""
        return (np.ones(len(examples), np.int64),)

    def lay_out(self, rows: Sequence[Sequence[Example]]) -> Batch:
        assert all(len(row) <= 1 for row in rows), "a vector is that of a row"
        partner, text = (self._side([row[0][side] if row else None for row in rows]) for side in (0, 1))
        weights = np.zeros((len(rows), self.length), np.float32)
        weights[:, 0] = [len(row) for row in rows]
        return Batch(
            tokens=text.tokens,
            targets=np.zeros_like(text.tokens),
            weights=weights,
            positions=text.positions,
            segments=text.segments,
            source=partner,
        )

    def _side(self, texts: Sequence[np.ndarray | None]) -> Source:
        """Of each row; what is too long loses its end, and keeps eos."""
        whole = []
        for text in texts:
            if text is not None:
                fitting = text if len(text) < self.length else np.append(text[: self.length - 2], text[-1])
                whole.append(np.concatenate([[self.bos_id], fitting]).astype(np.int32))
        side = Side([len(each) for each in whole], [int(text is not None) for text in texts], self.length)
        tokens = side.spread(np.concatenate([np.zeros(0, np.int32), *whole]))
        return Source(tokens=tokens, positions=side.positions, segments=side.segments)


class PartnerEvalRows(PackedEvalRows):
    """The pairs of one source, to be scored: each row is one target."""

    missing = "no text is predicted"

    def __init__(self, pairs: Examples, layout: PartnerLayout):
        super().__init__(pairs, layout)
        count = len(pairs)
        self.totals: dict[str, int] = {"targets": count, "documents": count, "bytes": 0, "words": 0, "unknown": 0}
