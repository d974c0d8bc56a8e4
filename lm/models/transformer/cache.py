"""The key/value cache for decoding. Every model call receives this explicit pytree and returns an updated copy.

Each token is stored in the slot given by its position. Rows may have different lengths: slots that are empty or hold
padding have segment 0, so they are masked until a later token with the same position overwrites them.

In an encoder-decoder, each layer also caches the keys and values of the source, which are computed once, by the call
that passes `batch.source`. If there are fewer sources than rows, each source is shared by the same number of
consecutive rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lm.batch import Array
from lm.config import ModelConfig


@flax.struct.dataclass
class LayerCache:
    """Keys and values of one layer, in the compute dtype. With scanned layers, all arrays have a leading layer axis."""

    keys: Array  # (B, G, S, K)
    values: Array  # (B, G, S, K)
    source_keys: Array | None = None  # (sources, G, source length, K)
    source_values: Array | None = None  # (sources, G, source length, K)


@flax.struct.dataclass
class Cache:
    layers: Any  # one LayerCache with stacked arrays if layers are scanned, otherwise a tuple of N LayerCaches
    segments: Array  # int32 (B, S): the segment of each slot; 0 if the slot holds no token
    source_segments: Array | None = None  # int32 (sources, source length)

    def repeat_rows(self, k: int) -> Cache:
        """Returns a cache in which rows i*k to i*k + k - 1 are copies of row i and share its source."""
        return self._map_rows(lambda x, axis: jnp.repeat(x, k, axis=axis))

    def take_rows(self, rows_B: Array) -> Cache:
        """Returns a cache whose row i is a copy of the old row `rows_B[i]`. The two rows must have the same source."""

        def take(x: Array, axis: int) -> Array:
            if axis == 0:
                return jnp.take(x, rows_B, axis=0, mode="clip")
            # Merges layers and rows into one axis, because a gather along axis 1 compiles to transposes and copies.
            indices = (jnp.arange(x.shape[0])[:, None] * x.shape[1] + rows_B[None]).reshape(-1)
            return jnp.take(x.reshape(-1, *x.shape[2:]), indices, axis=0, mode="clip").reshape(x.shape)

        return self._map_rows(take)

    def axes(self) -> Cache:
        """Returns the logical axes of the arrays. Rows are sharded as in batches, and heads as in the parameters."""
        names, pair = ("batch", "kv_heads", "length", "head_dim"), ("batch", "length")
        layers = jax.tree.map(lambda x: ("layers",) * (x.ndim - 4) + names, self.layers)
        return Cache(layers, pair, None if self.source_segments is None else pair)

    def _map_rows(self, change: Callable[[Array, int], Array]) -> Cache:
        """Applies `change(array, row axis)` to all arrays except those of the source."""

        def of_layer(layer: LayerCache) -> LayerCache:
            axis = layer.keys.ndim - 4  # the row axis follows the layer axis, if there is one
            return dataclasses.replace(layer, keys=change(layer.keys, axis), values=change(layer.values, axis))

        layers = jax.tree.map(of_layer, self.layers, is_leaf=lambda x: isinstance(x, LayerCache))
        return dataclasses.replace(self, layers=layers, segments=change(self.segments, 0))


def empty_cache(config: ModelConfig, batch_size: int, capacity: int, source_length: int = 0) -> Cache:
    """Returns an empty cache for `batch_size` rows of `capacity` tokens, each with a source if source_length > 0."""

    def zeros(length: int) -> Array:
        stacked = (config.num_layers,) if config.scan_layers else ()
        shape = (*stacked, batch_size, config.num_kv_heads, length, config.head_dim)
        return jnp.zeros(shape, config.dtype)

    def layer() -> LayerCache:
        source = (zeros(source_length), zeros(source_length)) if source_length else (None, None)
        return LayerCache(zeros(capacity), zeros(capacity), *source)

    layers = layer() if config.scan_layers else tuple(layer() for _ in range(config.num_layers))
    return Cache(
        layers=layers,
        segments=jnp.zeros((batch_size, capacity), jnp.int32),
        source_segments=jnp.zeros((batch_size, source_length), jnp.int32) if source_length else None,
    )


def write_tokens(cache_BGSK: Array, new_BGLK: Array, positions_BL: Array) -> Array:
    """Writes the L new keys or values of each row to the slots of their positions. Returns the updated array."""
    rows = jnp.arange(cache_BGSK.shape[0])[:, None]
    return cache_BGSK.at[rows, :, positions_BL].set(jnp.swapaxes(new_BGLK, 1, 2).astype(cache_BGSK.dtype))
