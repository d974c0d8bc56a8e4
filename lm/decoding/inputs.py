"""Model inputs for decoding: batches padded to a small number of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lm.batch import Array, Batch, Source
from lm.errors import UserError
from lm.parallel.mesh import shards_of

Rows = Sequence[Sequence[int]]  # token ids of each row

SMALLEST_SOURCE = 8


def check_settings(settings: Any, *rules: tuple[str, bool, str]) -> None:
    """Raises UserError for the first rule that is violated.

    A rule is (name of a setting, whether its value is valid, description of the valid values).
    """
    for name, holds, rule in rules:
        if not holds:
            raise UserError(f"{name}={getattr(settings, name)!r} is invalid; it must be {rule}.")


def rows_for_mesh(rows: int) -> int:
    """Rounds `rows` up to a multiple of the number of devices over which the current mesh splits a batch."""
    split = shards_of("batch")
    return -(-rows // split) * split


def source_bucket(length: int) -> int:
    """Rounds the length of a source up to the next value in the series 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, ..."""
    power = max(SMALLEST_SOURCE, 1 << max(length - 1, 0).bit_length())
    return power * 3 // 4 if power >= 4 * SMALLEST_SOURCE and length <= power * 3 // 4 else power


def source_length(sources: Rows, max_length: int | None) -> int:
    """Returns the length to which sources are padded. Raises UserError if one has more than `max_length` tokens."""
    for number, source in enumerate(sources, start=1):
        if max_length is not None and len(source) > max_length:
            raise UserError(
                f"source {number} has {len(source)} tokens (including special tokens), more than the "
                f"model's {max_length} positions (config.model.max_length); shorten the source."
            )
    length = source_bucket(max(map(len, sources), default=0))
    return length if max_length is None else min(length, max_length)


def longest_first(rows: Rows) -> list[int]:
    """Returns the indices of rows of tokens, longest first, so that out-of-memory errors occur early."""
    return sorted(range(len(rows)), key=lambda number: -len(rows[number]))


def pad_rows(rows: Rows, shape: tuple[int, int], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens, segments), both int32 (B, L): the right-padded rows, then padding rows (segment 0)."""
    tokens_BL, segments_BL = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
    for number, row in enumerate(rows):
        tokens_BL[number, : len(row)] = row
        segments_BL[number, : len(row)] = 1
    return tokens_BL, segments_BL


def pad_sources(sources: Rows, rows: int, max_length: int | None, pad_id: int) -> Source:
    """Pads sources, which include special tokens, to (rows, length) arrays. Additional rows contain only padding.

    Raises UserError if a source has more than `max_length` tokens; None means no limit.
    """
    assert len(sources) <= rows, (len(sources), rows)
    length = source_length(sources, max_length)
    tokens_BS, segments_BS = pad_rows(sources, (rows, length), pad_id)
    positions_BS = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    return Source(tokens=tokens_BS, positions=positions_BS, segments=segments_BS)


def model_batch(tokens_BL: Array, positions_BL: Array, segments_BL: Array, source: Source | None = None) -> Batch:
    """Builds a batch for computing logits. All targets have weight 0."""
    weights_BL = np.zeros(tokens_BL.shape, np.float32)
    return Batch(tokens_BL, tokens_BL, weights_BL, positions_BL, segments_BL, source)


def place_whole(tree: Any) -> Any:
    """Constrains arrays to be replicated over the mesh."""
    return jax.tree.map(lambda x: nn.with_logical_constraint(x, (None,) * x.ndim), tree)
