"""The key/value cache of decoding: an explicit pytree that is passed to the model call and returned by it.

A token's slot is its position. Rows may be at different lengths: slots that hold no token, or only padding, have
segment 0 and are masked, and a later token of that position overwrites them.

With an encoder, each layer also keeps the keys and values of the source. The call that has `batch.source` computes them
once. There may be fewer sources than rows: k rows in a row then share a source.
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
    """Keys and values of one layer in the compute dtype; with a leading axis N when layers are scanned."""

    keys: Array  # (B, G, S, K)
    values: Array  # as keys
    source_keys: Array | None = None  # (sources, G, length of the source, K)
    source_values: Array | None = None


@flax.struct.dataclass
class Cache:
    layers: Any  # a LayerCache with stacked leaves (scanned layers) or a tuple of N of them
    segments: Array  # int32 (B, S): 0 where there is no token yet
    source_segments: Array | None = None  # int32 (sources, length of the source)

    def repeat_rows(self, k: int) -> Cache:
        """Returns a cache in which row i has become the rows i k ... i k + k - 1; they share the source of row i."""
        return self._map_rows(lambda x, axis: jnp.repeat(x, k, axis=axis))

    def take_rows(self, rows_B: Array) -> Cache:
        """Returns a cache in which row i is what row `rows_B[i]` was, which must have the same source."""

        def take(x: Array, axis: int) -> Array:
            if axis == 0:
                return jnp.take(x, rows_B, axis=0, mode="clip")
            # Layers and rows as one axis: a gather along the second would be compiled to transposes and copies.
            indices = (jnp.arange(x.shape[0])[:, None] * x.shape[1] + rows_B[None]).reshape(-1)
            return jnp.take(x.reshape(-1, *x.shape[2:]), indices, axis=0, mode="clip").reshape(x.shape)

        return self._map_rows(take)

    def axes(self) -> Cache:
        """Returns a cache of logical axes instead of arrays: rows are split as the batch, heads as the parameters."""
        names, pair = ("batch", "kv_heads", "length", "head_dim"), ("batch", "length")
        layers = jax.tree.map(lambda x: ("layers",) * (x.ndim - 4) + names, self.layers)
        return Cache(layers, pair, None if self.source_segments is None else pair)

    def _map_rows(self, change: Callable[[Array, int], Array]) -> Cache:
        """Applies `change` (array, axis of the rows) to everything that belongs to the target."""

        def of_layer(layer: LayerCache) -> LayerCache:
            axis = layer.keys.ndim - 4  # after the layers, where they are stacked
            return dataclasses.replace(layer, keys=change(layer.keys, axis), values=change(layer.values, axis))

        layers = jax.tree.map(of_layer, self.layers, is_leaf=lambda x: isinstance(x, LayerCache))
        return dataclasses.replace(self, layers=layers, segments=change(self.segments, 0))


def empty_cache(config: ModelConfig, batch_size: int, capacity: int, source_length: int = 0) -> Cache:
    """Returns a cache for `batch_size` rows of up to `capacity` tokens (and a source each, with an encoder)."""

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
    """Returns the cache with the L new keys or values of each row in the slots of their positions."""
    rows = jnp.arange(cache_BGSK.shape[0])[:, None]
    return cache_BGSK.at[rows, :, positions_BL].set(jnp.swapaxes(new_BGLK, 1, 2).astype(cache_BGSK.dtype))
