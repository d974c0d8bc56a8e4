"""The key/value cache of decoding: an explicit pytree that goes into the model call and comes out.

A token's slot is its position. Rows may be at different lengths: slots that hold no token, or only
padding, have segment 0 and are masked, and a later token of that position overwrites them.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax.numpy as jnp

from lm.batch import Array
from lm.config import ModelConfig


@flax.struct.dataclass
class LayerCache:
    keys: Array  # (B, G, S, K) compute dtype; with a leading N when layers are scanned
    values: Array  # as keys


@flax.struct.dataclass
class Cache:
    layers: Any  # a LayerCache with stacked leaves (scanned layers) or a tuple of N of them
    segments: Array  # int32 (B, S): 0 where no token lies yet


def empty_cache(config: ModelConfig, batch_size: int, capacity: int) -> Cache:
    """A cache for `batch_size` rows of up to `capacity` tokens."""

    def zeros(*leading: int) -> LayerCache:
        shape = (*leading, batch_size, config.num_kv_heads, capacity, config.head_dim)
        dtype = jnp.dtype(config.dtype)
        return LayerCache(keys=jnp.zeros(shape, dtype), values=jnp.zeros(shape, dtype))

    layers = zeros(config.num_layers) if config.scan_layers else tuple(zeros() for _ in range(config.num_layers))
    return Cache(layers=layers, segments=jnp.zeros((batch_size, capacity), jnp.int32))


def write_tokens(cache_BGSK: Array, new_BGLK: Array, positions_BL: Array) -> Array:
    """Puts the L new keys or values of each row into the slots of their positions."""
    rows = jnp.arange(cache_BGSK.shape[0])[:, None]
    return cache_BGSK.at[rows, :, positions_BL].set(jnp.swapaxes(new_BGLK, 1, 2).astype(cache_BGSK.dtype))


def write_segments(cache: Cache, segments_BL: Array, positions_BL: Array) -> Array:
    rows = jnp.arange(segments_BL.shape[0])[:, None]
    return cache.segments.at[rows, positions_BL].set(segments_BL)
