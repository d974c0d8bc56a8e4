"""Several (source, target) examples in one row: S places for sources and L for targets (see `next_fit`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm.batch import Batch, Source
from lm.data.packing.next_fit import Side

Example = tuple[np.ndarray, np.ndarray]  # tokens of source and target, int32


def lay_out(rows: Sequence[Sequence[Example]], source_length: int, target_length: int, bos_id: int) -> Batch:
    """Rows of examples as NumPy arrays: source (R, S), the rest (R, L). A row without examples is padding.

    The decoder reads bos and the target less its last token, and each token of the target is scored.
    """
    counts_R = [len(row) for row in rows]
    sources, targets = ([example[side] for row in rows for example in row] for side in (0, 1))
    source_tokens_T, target_tokens_T = (np.concatenate([np.zeros(0, np.int32), *each]) for each in (sources, targets))
    source = Side([len(each) for each in sources], counts_R, source_length)
    target = Side([len(each) for each in targets], counts_R, target_length)
    inputs_T = np.concatenate([[bos_id], target_tokens_T])[:-1]
    inputs_T[target.begins_E] = bos_id
    return Batch(
        tokens=target.spread(inputs_T),
        targets=target.spread(target_tokens_T),
        weights=target.spread(np.ones_like(target_tokens_T), np.float32),
        positions=target.positions,
        segments=target.segments,
        source=Source(tokens=source.spread(source_tokens_T), positions=source.positions, segments=source.segments),
    )
