"""The key/value cache for decoding. Every model call takes this pytree as an argument and returns an updated copy.

Each token is stored in the slot given by its position. Rows may have different lengths: slots that are empty or hold
padding have segment 0, so they are masked until a later token with the same position overwrites them.

In an encoder-decoder, each layer also caches the keys and values of the source, which are computed once, by the call
that passes `batch.source`. If there are fewer sources than rows, each source is shared by the same number of
consecutive rows.

In beam search, k rows share a source, and after each token, a row may continue the text of another row in its group.
Copying the keys and values of all tokens at each step would take longer than most other operations. Instead, after
`repeat_rows(k)`, a group shares its slots: slot s of row j in the group is entry s * k + j of one array. For each row
and slot, `owners` contains the row of the group whose entry holds the token, so reordering the rows copies no keys or
values. The scores between the queries of all rows in a group and all entries of the group are computed together, as for
a single row. A mask limits each row to the entries that it owns.
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
from lm.models.layers import activation_dtype


@flax.struct.dataclass
class LayerCache:
    """Keys and values of one layer, in the activation dtype. With scanned layers, arrays have a leading layer axis."""

    keys: Array  # (B, G, S, K) or, if k rows share their slots, (B / k, G, S * k, K)
    values: Array  # like the keys
    source_keys: Array | None = None  # (sources, G, source length, K)
    source_values: Array | None = None  # (sources, G, source length, K)


@flax.struct.dataclass
class Cache:
    layers: Any  # one LayerCache with stacked arrays if layers are scanned, otherwise a tuple of N LayerCaches
    segments: Array  # int32 (B, S): the segment of each slot; 0 if the slot holds no token
    source_segments: Array | None = None  # int32 (sources, source length)
    owners: Array | None = None  # int32 (B, S): which row of the group holds a slot's token; None if no slot is shared

    def repeat_rows(self, k: int) -> Cache:
        """Returns a cache in which rows i*k to i*k + k - 1 are copies of row i and share its source."""
        if k == 1:
            return self
        assert self.owners is None, "the rows already share their slots"
        segments = jnp.repeat(self.segments, k, axis=0)
        owners = jnp.broadcast_to((jnp.arange(len(segments)) % k)[:, None], segments.shape)
        layers = self._map_tokens(lambda x: jnp.repeat(x, k, axis=-2))
        return dataclasses.replace(self, layers=layers, segments=segments, owners=owners)

    def take_rows(self, rows_B: Array) -> Cache:
        """Returns a cache whose row i is a copy of the old row `rows_B[i]`. The two rows must have the same source."""

        assert self.owners is not None, "only rows that share a source may replace one another"
        segments, owners = (jnp.take(x, rows_B, axis=0, mode="clip") for x in (self.segments, self.owners))
        return dataclasses.replace(self, segments=segments, owners=owners)

    def axes(self) -> Cache:
        """Returns the logical axes of the arrays.

        Rows are sharded like the rows of a batch, and heads are sharded like the heads of the parameters.
        """
        names, pair = ("batch", "kv_heads", "length", "head_dim"), ("batch", "length")
        layers = jax.tree.map(lambda x: ("layers",) * (x.ndim - 4) + names, self.layers)
        return Cache(layers, pair, *(None if x is None else pair for x in (self.source_segments, self.owners)))

    def _map_tokens(self, change: Callable[[Array], Array]) -> Any:
        """Returns the layers with changed keys and values of the rows' tokens. Those of the source are unchanged."""

        def of_layer(layer: LayerCache) -> LayerCache:
            return dataclasses.replace(layer, keys=change(layer.keys), values=change(layer.values))

        return jax.tree.map(of_layer, self.layers, is_leaf=lambda x: isinstance(x, LayerCache))


def empty_cache(config: ModelConfig, batch_size: int, capacity: int, source_length: int = 0) -> Cache:
    """Returns an empty cache for `batch_size` rows of `capacity` tokens, each with a source if source_length > 0."""

    def zeros(length: int) -> Array:
        stacked = (config.num_layers,) if config.scan_layers else ()
        shape = (*stacked, batch_size, config.num_kv_heads, length, config.head_dim)
        return jnp.zeros(shape, activation_dtype(config))

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
    """Writes the L new keys or values of each row to the slots for their positions. Returns the updated array."""
    k = new_BGLK.shape[0] // cache_BGSK.shape[0]  # the number of rows that share their slots
    rows_B1 = jnp.arange(new_BGLK.shape[0])[:, None]
    entries_BL = positions_BL * k + rows_B1 % k
    return cache_BGSK.at[rows_B1 // k, :, entries_BL].set(jnp.swapaxes(new_BGLK, 1, 2).astype(cache_BGSK.dtype))


def mask_of_groups(mask_BLS: Array, owners_BS: Array, k: int) -> Array:
    """Returns the mask, bool (B / k, k * L, S * k), of the entries that the rows of each group attend to.

    Args:
        mask_BLS: for the tokens of each row, the slots that they attend to.
    """
    B, L, S = mask_BLS.shape
    owned_BSk = owners_BS[:, :, None] == jnp.arange(k)[None, None]
    mask = (mask_BLS[:, :, :, None] & owned_BSk[:, None]).reshape(B // k, k * L, S * k)
    return jax.lax.optimization_barrier(mask)  # otherwise, XLA would recompute the mask in each layer on a CPU


def bias_of_groups(bias_BHLS: Array, rows: int, k: int) -> Array:
    """Returns the bias for the entries of `mask_of_groups`, (B / k, H, k * L, S * k).

    Args:
        bias_BHLS: for the tokens of each row, the bias for each slot; its first dimension is `rows` (B) or 1.
    """
    _, H, L, S = bias_BHLS.shape
    bias_BkHLS = jnp.broadcast_to(bias_BHLS, (rows, H, L, S)).reshape(rows // k, k, H, L, S)
    return jnp.repeat(jnp.swapaxes(bias_BkHLS, 1, 2).reshape(rows // k, H, k * L, S), k, axis=-1)
