"""Inputs of the model in decoding: batches padded to few distinct shapes, and the cache on a mesh."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Batch, Source
from lm.errors import UserError
from lm.models.protocol import Cache

SMALLEST_SOURCE = 8


def rows_for_mesh(rows: int) -> int:
    """`rows`, rounded up to a multiple of the devices over which the mesh in context splits a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return rows
    (axes,) = nn.logical_to_mesh_axes(("batch",))
    split = math.prod(mesh.shape[axis] for axis in axes)
    return -(-rows // split) * split


def source_bucket(length: int) -> int:
    """The padded length of a source: the next of 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, ..."""
    power = max(SMALLEST_SOURCE, 1 << max(length - 1, 0).bit_length())
    return power * 3 // 4 if power >= 4 * SMALLEST_SOURCE and length <= power * 3 // 4 else power


def pad_rows(rows: Sequence[Sequence[int]], shape: tuple[int, int], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, segments), int32 (B, L) each: the rows padded at the right, then rows of padding alone (segment 0)."""
    tokens_BL, segments_BL = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
    for number, row in enumerate(rows):
        tokens_BL[number, : len(row)] = row
        segments_BL[number, : len(row)] = 1
    return tokens_BL, segments_BL


def pad_sources(
    sources: Sequence[Sequence[int]], rows: int, max_length: int | None, pad_id: int, bucket: int | None = None
) -> Source:
    """The sources of a batch as (rows, bucket) arrays; rows beyond the sources contain only padding.

    Args:
        sources: token ids, end token included.
        max_length: the most tokens that the model can read; None for any number.
        bucket: smallest padded length; None for the bucket of the longest source.

    Raises UserError for a source that has more tokens than that.
    """
    assert len(sources) <= rows, (len(sources), rows)
    longest = max((len(source) for source in sources), default=0)
    length = max(source_bucket(longest), bucket or 0)
    if max_length is not None:
        length = min(length, max_length)
        if longest > length:
            number = next(i for i, source in enumerate(sources, start=1) if len(source) > length)
            raise UserError(
                f"source {number} has {len(sources[number - 1])} tokens (end token included), more than the model's "
                f"{max_length} positions (config.model.max_length); shorten it."
            )
    tokens_BS, segments_BS = pad_rows(sources, (rows, length), pad_id)
    positions_BS = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    return Source(tokens=tokens_BS, positions=positions_BS, segments=segments_BS)


def model_batch(tokens_BL: Array, positions_BL: Array, segments_BL: Array, source: Source | None = None) -> Batch:
    """A batch without targets, for logits."""
    weights_BL = jnp.zeros(tokens_BL.shape, jnp.float32)
    return Batch(tokens_BL, tokens_BL, weights_BL, positions_BL, segments_BL, source)


def place_cache(cache: Cache) -> Cache:
    """Constrains how a mesh splits the cache: as its logical axes say."""
    return jax.tree.map(nn.with_logical_constraint, cache, cache.axes())
