"""Multi-head, grouped-query and multi-query attention under a mask that is data."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.batch import Array
from lm.config import ModelConfig
from lm.models.layers import projection, residual_scale
from lm.models.transformer import attention_kernels
from lm.models.transformer.cache import LayerCache, write_tokens
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
    """Returns, as bool (B, L, S), which keys each query may attend to.

    A query attends to its own segment only and never to padding (segment 0). If causal, it attends to no later
    position. With a window > 0, it attends only to the last `window` positions, its own included.
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
    """The output of the encoder, for cross-attention."""

    x: Array | None  # (sources, S, D); None where the cache has its keys and values
    mask: Array  # bool (B, L, S)


@flax.struct.dataclass
class View:
    """What the queries of one kind of layer see."""

    mask: Array | None  # bool (B, L, S) for the kernel xla; None for fused kernels, which use the segments alone
    rotation: Rotation | None


@flax.struct.dataclass
class AttentionContext:
    """What the layers share. The tower makes it once and passes it to each of them."""

    positions: Array  # int32 (B, L), of the queries
    segments: Array  # int32 (B, L), of the queries
    views: tuple[View, ...]  # one for each kind of layer
    kernel: str = flax.struct.field(pytree_node=False)  # xla, or without a cache cudnn or splash
    window: int = flax.struct.field(pytree_node=False)  # of all layers, for fused kernels
    train: bool = flax.struct.field(pytree_node=False)
    bias: Array | None = None  # float32 (1 or B, H, L, S), added to the scores
    memory: Memory | None = None

    @property
    def view(self) -> View:
        (view,) = self.views
        return view

    def of_kind(self, number: Array | int) -> AttentionContext:
        """Returns the context with the view of one kind of layer; `number` may be traced."""
        chosen = self.views[0]
        for other_number, other in enumerate(self.views[1:], start=1):
            chosen = jax.tree.map(lambda a, b, n=other_number: jnp.where(number == n, b, a), chosen, other)
        return dataclasses.replace(self, views=(chosen,))


class Attention(nn.Module):
    """softmax(q k^T / sqrt(K)) v (Vaswani 2017; grouped: Ainslie 2023), softmax in float32.

    Subclasses say where keys and values come from.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BLD: Array, context: AttentionContext, cache: LayerCache | None
    ) -> tuple[Array, LayerCache | None]:
        config = self.config
        # Where the scores are not scaled, the initial queries are smaller by the same factor.
        scale = 1.0 if config.scale_attention else config.head_dim**-0.5
        q_BLHK = self._project("query", x_BLD, config.num_heads, "heads", scale)
        y_BLHK, cache = self.attend(q_BLHK, x_BLD, context, cache)
        y_BLHK = nn.with_logical_constraint(y_BLHK, ("batch", "length", "heads", "head_dim"))
        heads, axes = (config.num_heads, config.head_dim), ("heads", "head_dim", "embed")
        return projection(config, "out", heads, (config.d_model,), axes, residual_scale(config))(y_BLHK), cache

    def attend(
        self, q_BLHK: Array, x_BLD: Array, context: AttentionContext, cache: LayerCache | None
    ) -> tuple[Array, LayerCache | None]:
        """Returns the attended values (B, L, H, K) and the cache."""
        raise NotImplementedError

    def _project(self, name: str, x_BLD: Array, num_heads: int, axis: str, scale: float = 1.0) -> Array:
        config = self.config
        heads, axes = (num_heads, config.head_dim), ("embed", axis, "head_dim")
        y_BLHK = projection(config, name, (config.d_model,), heads, axes, scale)(x_BLD)
        return nn.with_logical_constraint(y_BLHK, ("batch", "length", axis, "head_dim"))

    def _keys_and_values(self, x_BSD: Array) -> tuple[Array, Array]:
        """Returns both as (B, S, G, K)."""
        groups = self.config.num_kv_heads
        return self._project("key", x_BSD, groups, "kv_heads"), self._project("value", x_BSD, groups, "kv_heads")

    def _dropout(self, context: AttentionContext) -> nn.Dropout:
        return nn.Dropout(self.config.attention_dropout, deterministic=not context.train)


class SelfAttention(Attention):
    """Attention to the row itself and, with a cache, to its earlier tokens."""

    def attend(
        self, q_BLHK: Array, x_BLD: Array, context: AttentionContext, cache: LayerCache | None
    ) -> tuple[Array, LayerCache | None]:
        config, dropout, view = self.config, self._dropout(context), context.view
        k_BLGK, v_BLGK = self._keys_and_values(x_BLD)
        if view.rotation is not None:
            q_BLHK = rotate(q_BLHK, view.rotation, config.rotary_interleaved)
            k_BLGK = rotate(k_BLGK, view.rotation, config.rotary_interleaved)
        if context.kernel != "xla":
            fused = attention_kernels.FUSED[context.kernel]
            return fused(q_BLHK, k_BLGK, v_BLGK, context.segments, context.window), cache
        k_BGSK, v_BGSK = jnp.swapaxes(k_BLGK, 1, 2), jnp.swapaxes(v_BLGK, 1, 2)
        if cache is not None:
            cache = dataclasses.replace(
                cache,
                keys=write_tokens(cache.keys, k_BGSK, context.positions),
                values=write_tokens(cache.values, v_BGSK, context.positions),
            )
            k_BGSK, v_BGSK = cache.keys, cache.values
        y_BLHK = dot_product_attention(q_BLHK, k_BGSK, v_BGSK, view.mask, dropout, context.bias, config.scale_attention)
        return y_BLHK, cache


class CrossAttention(Attention):
    """Attention to the output of the encoder, which has no positions of its own here."""

    def attend(
        self, q_BLHK: Array, x_BLD: Array, context: AttentionContext, cache: LayerCache | None
    ) -> tuple[Array, LayerCache | None]:
        memory, dropout = context.memory, self._dropout(context)
        assert memory is not None
        k_BGSK: Array
        v_BGSK: Array
        if memory.x is not None:
            k_BGSK, v_BGSK = (jnp.swapaxes(x, 1, 2) for x in self._keys_and_values(memory.x))
            if cache is not None:
                cache = dataclasses.replace(cache, source_keys=k_BGSK, source_values=v_BGSK)
        else:
            assert cache is not None and cache.source_keys is not None
            k_BGSK, v_BGSK = cache.source_keys, cache.source_values
        scaled = self.config.scale_attention
        return _shared_sources(q_BLHK, k_BGSK, v_BGSK, memory.mask, dropout, scaled), cache


def _shared_sources(
    q_BLHK: Array, k_BGSK: Array, v_BGSK: Array, mask_BLS: Array, dropout: nn.Dropout | None, scaled: bool
) -> Array:
    """Returns the attention of B rows to fewer sources, each shared by B / sources rows in a row.

    The rows that share a source count as one row with more queries.
    """
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
    """Returns (B, L, H, K). Query head h uses key/value head h // (H / G). A query without any key gives no NaN.

    Args:
        bias_BHLS: has B rows or 1.
        scaled: divide the scores by sqrt(K).
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
