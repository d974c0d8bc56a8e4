"""Packed rows of (source, target) examples, for training and evaluation (see `packed_rows`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm.batch import Batch
from lm.data.examples.pairs import Examples
from lm.data.packing.packed_rows import PackedEvalRows
from lm.data.packing.pair_packing import Example, lay_out


@dataclass(frozen=True)
class PairLayout:
    """Rows with source (R, S) and target (R, L); `bos_id` is what the decoder reads first."""

    source_length: int
    target_length: int
    bos_id: int

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.source_length, self.target_length

    def sizes(self, examples: Examples, epoch: int) -> tuple[np.ndarray, ...]:
        return examples.sizes(epoch)

    def lay_out(self, rows: Sequence[Sequence[Example]]) -> Batch:
        return lay_out(rows, self.source_length, self.target_length, self.bos_id)


class PairEvalRows(PackedEvalRows):
    """The pairs of one source, to be scored.

    `totals` has what the losses are divided by: `targets` (scored tokens: all of the targets, their end tokens
    included), and `documents`, `bytes`, `words`, `unknown` as `loader.EvalRows` has them. Where bytes and words
    are 0 `missing` says why.
    """

    def __init__(self, examples: Examples, layout: PairLayout):
        super().__init__(examples, layout)
        self.totals: dict[str, int] = {"targets": int(examples.sizes(0)[1].sum()), **examples.text}
        self.missing = examples.missing
