"""Multi-head, grouped and multi-query attention under a mask that is data."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.batch import Array
from lm.config import ModelConfig
from lm.models.transformer import attention_kernels
from lm.models.transformer.cache import LayerCache, write_tokens
from lm.models.transformer.layers import Dense, adapter, compute_dtype, initial_std, residual_scale
from lm.models.transformer.positions import Rotation, rotate


def attention_mask(
    query_positions_BL: Array,
    query_segments_BL: Array,
    key_positions_BS: Array,
    key_segments_BS: Array,
    *,
    causal: bool,
    window: int,
) -> Array:
    """bool (B, L, S): which key each query may attend to.

    Its own segment only, never padding (segment 0); if causal, no later position; with a window > 0,
    only the last `window` positions, itself included.
    """
    allowed_BLS = query_segments_BL[:, :, None] == key_segments_BS[:, None, :]
    allowed_BLS &= key_segments_BS[:, None, :] > 0
    distance_BLS = query_positions_BL[:, :, None] - key_positions_BS[:, None, :]
    if causal:
        allowed_BLS &= distance_BLS >= 0
    if window > 0:
        allowed_BLS &= (distance_BLS < window) & (distance_BLS > -window)
    return allowed_BLS


@flax.struct.dataclass
class Memory:
    """What the decoder attends to besides itself."""

    x: Array | None  # (sources, S, D): output of the encoder; None where the cache has its keys and values
    mask: Array  # bool (B, L, S)


@flax.struct.dataclass
class AttentionContext:
    """What all layers share: made once by the model, handed down to each."""

    positions: Array  # int32 (B, L), of the queries
    segments: Array  # int32 (B, L), of the queries
    mask: Array | None  # bool (B, L, S) for the kernel xla; None for those that work from the segments alone
    rotation: Rotation | None
    bias: Array | None = None  # float32 (1 or B, H, L, S), added to the scores
    memory: Memory | None = None
    local: tuple[Array | None, Rotation | None] | None = None  # mask and rotation of layers with a window

    def of_layer(self, is_global: Array | bool) -> AttentionContext:
        """The context with the mask and the rotation of one layer."""
        if self.local is None or is_global is True:
            return dataclasses.replace(self, local=None)
        whole = (self.mask, self.rotation)
        chosen = jax.tree.map(lambda far, near: jnp.where(is_global, far, near), whole, self.local)
        return dataclasses.replace(self, mask=chosen[0], rotation=chosen[1], local=None)


class Attention(nn.Module):
    """Attention (Vaswani 2017; grouped: Ainslie 2023). softmax(q k^T / sqrt(K)) v, softmax in float32.

    To the row itself or, with `cross`, to the encoder's output, which has no positions of its own here.
    """

    config: ModelConfig
    kernel: str  # xla, or without a cache cudnn or splash
    train: bool
    cross: bool = False

    @nn.compact
    def __call__(
        self, x_BLD: Array, context: AttentionContext, cache: LayerCache | None
    ) -> tuple[Array, LayerCache | None]:
        config, dtype = self.config, compute_dtype(self.config)
        size = (config.head_dim,)
        width, query_heads, kv_heads = (config.d_model,), (config.num_heads, *size), (config.num_kv_heads, *size)

        def project(name: str, x_BLD: Array, heads: tuple[int, int], axis: str, scale: float = 1.0) -> Array:
            axes, std = ("embed", axis, "head_dim"), initial_std(config, width, scale)
            y = Dense(width, heads, axes, config.use_bias, dtype, std, *adapter(config, name), name=name)(x_BLD)
            return nn.with_logical_constraint(y, ("batch", "length", axis, "head_dim"))

        # Where the scores are not scaled, the queries begin smaller by as much.
        q_BLHK = project("query", x_BLD, query_heads, "heads", 1.0 if config.scale_attention else size[0] ** -0.5)
        dropout = nn.Dropout(config.attention_dropout, deterministic=not self.train)

        def keys_and_values(x_BSD: Array) -> tuple[Array, Array]:
            return project("key", x_BSD, kv_heads, "kv_heads"), project("value", x_BSD, kv_heads, "kv_heads")

        k_BGSK: Array
        v_BGSK: Array
        if self.cross:
            memory = context.memory
            assert memory is not None
            if memory.x is not None:
                k_BGSK, v_BGSK = (jnp.swapaxes(x, 1, 2) for x in keys_and_values(memory.x))
                if cache is not None:
                    cache = dataclasses.replace(cache, source_keys=k_BGSK, source_values=v_BGSK)
            else:
                assert cache is not None and cache.source_keys is not None
                k_BGSK, v_BGSK = cache.source_keys, cache.source_values
            y_BLHK = _shared_sources(q_BLHK, k_BGSK, v_BGSK, memory.mask, dropout, config.scale_attention)
        else:
            k_BLGK, v_BLGK = keys_and_values(x_BLD)
            if context.rotation is not None:
                q_BLHK = rotate(q_BLHK, context.rotation, config.rotary_interleaved)
                k_BLGK = rotate(k_BLGK, context.rotation, config.rotary_interleaved)
            if self.kernel == "xla":
                k_BGSK, v_BGSK = jnp.swapaxes(k_BLGK, 1, 2), jnp.swapaxes(v_BLGK, 1, 2)
                if cache is not None:
                    cache = dataclasses.replace(
                        cache,
                        keys=write_tokens(cache.keys, k_BGSK, context.positions),
                        values=write_tokens(cache.values, v_BGSK, context.positions),
                    )
                    k_BGSK, v_BGSK = cache.keys, cache.values
                y_BLHK = dot_product_attention(
                    q_BLHK, k_BGSK, v_BGSK, context.mask, dropout, context.bias, config.scale_attention
                )
            else:
                fused = attention_kernels.cudnn if self.kernel == "cudnn" else attention_kernels.splash
                y_BLHK = fused(q_BLHK, k_BLGK, v_BLGK, context.segments, config.window)
        y_BLHK = nn.with_logical_constraint(y_BLHK, ("batch", "length", "heads", "head_dim"))
        axes, std = ("heads", "head_dim", "embed"), initial_std(config, query_heads, residual_scale(config))
        common = config.use_bias, dtype, std, *adapter(config, "out")
        return Dense(query_heads, width, axes, *common, name="out")(y_BLHK), cache


def _shared_sources(
    q_BLHK: Array, k_BGSK: Array, v_BGSK: Array, mask_BLS: Array, dropout: nn.Dropout | None, scaled: bool
) -> Array:
    """Attention of B rows to fewer sources, each shared by as many rows in a row: they count as more queries."""
    B, L, H, K = q_BLHK.shape
    sources, length = k_BGSK.shape[0], B // k_BGSK.shape[0] * L
    q, mask = q_BLHK.reshape(sources, length, H, K), mask_BLS.reshape(sources, length, -1)
    return dot_product_attention(q, k_BGSK, v_BGSK, mask, dropout, scaled=scaled).reshape(B, L, H, K)


def dot_product_attention(
    q_BLHK: Array,
    k_BGSK: Array,
    v_BGSK: Array,
    mask_BLS: Array,
    dropout: nn.Dropout | None = None,
    bias_BHLS: Array | None = None,
    scaled: bool = True,
) -> Array:
    """(B, L, H, K). Query head h uses key/value head h // (H / G). A query with no key at all gets no NaN.

    The bias has B rows or 1. `scaled`: divide the scores by sqrt(K).
    """
    B, L, H, K = q_BLHK.shape
    G = k_BGSK.shape[1]
    q_BGRLK = jnp.swapaxes(q_BLHK, 1, 2).reshape(B, G, H // G, L, K)
    if scaled:
        q_BGRLK = q_BGRLK * jnp.asarray(K**-0.5, q_BLHK.dtype)
    scores_BGRLS = jnp.einsum("BGRLK,BGSK->BGRLS", q_BGRLK, k_BGSK, preferred_element_type=jnp.float32)
    if bias_BHLS is not None:
        scores_BGRLS = scores_BGRLS + bias_BHLS.reshape(-1, *scores_BGRLS.shape[1:])
    scores_BGRLS = jnp.where(mask_BLS[:, None, None], scores_BGRLS, jnp.finfo(jnp.float32).min)
    weights_BGRLS = jax.nn.softmax(scores_BGRLS, axis=-1).astype(v_BGSK.dtype)
    if dropout is not None:
        weights_BGRLS = dropout(weights_BGRLS)
    y_BGRLK = jnp.einsum("BGRLS,BGSK->BGRLK", weights_BGRLS, v_BGSK)
    return jnp.swapaxes(y_BGRLK.reshape(B, H, L, K), 1, 2)
