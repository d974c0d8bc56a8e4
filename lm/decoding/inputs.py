"""What decoding gives to a model, padded to few shapes, and which tokens it may take from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Batch, Source
from lm.errors import UserError
from lm.models.protocol import Cache

SMALLEST_SOURCE = 8


@dataclass(frozen=True)
class Vocabulary:
    """What decoding must know of a tokenizer."""

    size: int  # a model may have more entries, which are never chosen
    bos_id: int  # never chosen, unless it is the end token too
    eos_id: int  # ends a row; -1 for none
    pad_id: int = 0  # stands after the end of a row; may be an ordinary token as well
    pad_is_special: bool = False  # then it is never chosen, unless it is the end token too


def choosable(vocabulary: Vocabulary, num_entries: int) -> Array:
    """bool (V,): the entries of a model's vocabulary that may be chosen."""
    ids_V = jnp.arange(num_entries)
    never_V = ids_V == vocabulary.bos_id
    if vocabulary.pad_is_special:
        never_V |= ids_V == vocabulary.pad_id
    return (ids_V < vocabulary.size) & (~never_V | (ids_V == vocabulary.eos_id))


def rows_for_mesh(rows: int) -> int:
    """At least so many rows, and a multiple of the devices over which the mesh in context splits them."""
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


def pad_sources(
    sources: Sequence[Sequence[int]], rows: int, max_length: int | None, pad_id: int, bucket: int | None = None
) -> Source:
    """The sources of a batch as (rows, bucket) arrays; rows beyond the sources hold padding alone.

    Args:
        sources: token ids, end token included.
        max_length: the most tokens that the model can read; None for any number.
        bucket: pad to at least so many tokens; None for the bucket of the longest source.

    Raises UserError for a source that has more tokens than the model has learned positions.
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
    tokens_BS = np.full((rows, length), pad_id, np.int32)
    segments_BS = np.zeros((rows, length), np.int32)
    for row, source in enumerate(sources):
        tokens_BS[row, : len(source)] = source
        segments_BS[row, : len(source)] = 1
    positions_BS = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    return Source(tokens=tokens_BS, positions=positions_BS, segments=segments_BS)


def model_batch(tokens_BL: Array, positions_BL: Array, segments_BL: Array, source: Source | None = None) -> Batch:
    """A batch to compute logits of, with nothing to predict."""
    weights_BL = jnp.zeros(tokens_BL.shape, jnp.float32)
    return Batch(
        tokens=tokens_BL,
        targets=tokens_BL,
        weights=weights_BL,
        positions=positions_BL,
        segments=segments_BL,
        source=source,
    )


def place_cache(cache: Cache) -> Cache:
    """Returns the cache, split over the mesh as its logical axes say."""
    return jax.tree.map(nn.with_logical_constraint, cache, cache.axes())
