"""Multi-head, grouped-query and multi-query attention with an explicit mask."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.batch import Array, same_segment
from lm.config import ModelConfig
from lm.models.layers import Norm, projection, residual_scale
from lm.models.network import RECORD, SOURCE_WEIGHTS
from lm.models.transformer import attention_kernels
from lm.models.transformer.blocked_attention import blocked, is_worth_blocks
from lm.models.transformer.cache import LayerCache, write_tokens
from lm.models.transformer.positions import Rotation, rotate
from lm.models.transformer.remat import ATTENTION_OUTPUT, ATTENTION_PROJECTIONS
from lm.models.transformer.scores import Scores

WithCache = tuple[Array, LayerCache | None]  # the output of a layer and the layer's updated cache


def attention_mask(
    positions_BL: Array, segments_BL: Array, key_positions_BS: Array, key_segments_BS: Array, causal: bool, window: int
) -> Array:
    """Returns a mask, bool (B, L, S), of the keys that each query may attend to.

    A query attends only to keys of its own segment, and never to padding. If `causal` is true, queries do not attend to
    later positions. If window > 0, queries attend only to positions less than `window` away.
    """
    allowed_BLS = same_segment(segments_BL, key_segments_BS)
    distance_BLS = positions_BL[:, :, None] - key_positions_BS[:, None, :]
    if causal:
        allowed_BLS &= distance_BLS >= 0
    if window > 0:
        allowed_BLS &= (distance_BLS < window) & (distance_BLS > -window)
    return allowed_BLS


@flax.struct.dataclass
class Memory:
    """The output of the encoder, for cross-attention."""

    x: Array | None  # (sources, S, D); None if the cache already holds the keys and values of the sources
    segments: Array  # int32 (B, S)
    mask: Array | None  # bool (B, L, S); None for fused kernels, which use the segments
    kernel: str = flax.struct.field(pytree_node=False)  # the result of `kernel_for_call`


@flax.struct.dataclass
class View:
    """The attention mask and the rotary angles for one kind of layer."""

    mask: Array | None  # bool (B, L, S) for the xla kernel; None for fused kernels, which use only the segments
    rotation: Rotation | None
    skips_first_norm: Array | None = None  # bool (): whether the norm before attention is skipped; None if it never is


@flax.struct.dataclass
class AttentionContext:
    """The inputs that all layers of a tower share."""

    positions: Array  # int32 (B, L): the positions of the queries
    segments: Array  # int32 (B, L): the segments of the queries
    views: tuple[View, ...]  # one view for each kind of layer
    kernel: str = flax.struct.field(pytree_node=False)  # the result of `kernel_for_call` for self-attention
    causal: bool = flax.struct.field(pytree_node=False)  # whether no query attends to later tokens of its row
    window: int = flax.struct.field(pytree_node=False)  # the window of all layers, used only by fused kernels
    train: bool = flax.struct.field(pytree_node=False)
    max_segments: int = flax.struct.field(pytree_node=False)  # of a row; 0 if there is no known limit
    bias: Array | None = None  # float32 (1 or B, H, L, S), added to the scores; (H, 2 L - 1) for splash
    memory: Memory | None = None

    def of_kind(self, number: Array | int) -> AttentionContext:
        """Returns a context that contains only the view for layer kind `number`, which may be a traced index."""
        chosen = self.views[0]
        for other_number, other in enumerate(self.views[1:], start=1):
            chosen = jax.tree.map(lambda a, b, n=other_number: jnp.where(number == n, b, a), chosen, other)
        return dataclasses.replace(self, views=(chosen,))


class Attention(nn.Module):
    """Computes softmax(q k^T / sqrt(K)) v (Vaswani 2017; grouped-query: Ainslie 2023), with the softmax in float32.

    If `cross` is true, queries attend to the output of the encoder. Otherwise, queries attend to the tokens of their
    own row, including cached tokens. With model.qk_norm, queries and keys are normalised before they are rotated.
    """

    config: ModelConfig
    cross: bool = False

    @nn.compact
    def __call__(self, x_BLD: Array, context: AttentionContext, cache: LayerCache | None) -> WithCache:
        config = self.config
        # If the scores are not divided by sqrt(K), the initial query weights compensate for this.
        scale = config.head_dim**-0.5 / config.attention_scale if config.attention_scale else 1.0
        q_BLHK = self._normalized("query", self._project("query", x_BLD, config.num_heads, "heads", scale))
        attend = self._to_source if self.cross else self._to_row
        y_BLHK, cache = attend(q_BLHK, x_BLD, context, cache)
        y_BLHK = nn.with_logical_constraint(y_BLHK, ("batch", "length", "heads", "head_dim"))
        heads, axes = (config.num_heads, config.head_dim), ("heads", "head_dim", "embed")
        y_BLD = projection(config, "out", heads, (config.d_model,), axes, residual_scale(config))(y_BLHK)
        return checkpoint_name(y_BLD, ATTENTION_PROJECTIONS), cache

    def _to_row(self, q_BLHK: Array, x_BLD: Array, context: AttentionContext, cache: LayerCache | None) -> WithCache:
        config, (view,) = self.config, context.views
        k_BLGK, v_BLGK = self._keys_and_values(x_BLD)
        if view.rotation is not None:
            q_BLHK, k_BLGK = (rotate(x, view.rotation, config.rotary_interleaved) for x in (q_BLHK, k_BLGK))
        if (fused := attention_kernels.FUSED.get(context.kernel)) is not None:
            scores = Scores(context.causal, context.window, *self._score_settings(), context.max_segments)
            tensors = (x.astype(config.dtype) for x in (q_BLHK, k_BLGK, v_BLGK))
            return fused(*tensors, context.segments, context.segments, scores, context.bias), cache
        k_BGSK, v_BGSK = jnp.swapaxes(k_BLGK, 1, 2), jnp.swapaxes(v_BLGK, 1, 2)
        if cache is not None:
            k_BGSK = write_tokens(cache.keys, k_BGSK, context.positions)
            v_BGSK = write_tokens(cache.values, v_BGSK, context.positions)
            cache = dataclasses.replace(cache, keys=k_BGSK, values=v_BGSK)
        # Rows that share their slots are treated as one row with more queries, as in cross-attention.
        q = q_BLHK.reshape(k_BGSK.shape[0], -1, *q_BLHK.shape[2:])
        y = self._attend(context.kernel, q, k_BGSK, v_BGSK, view.mask, context.train, context.bias, context.causal)
        return y.reshape(q_BLHK.shape), cache

    def _to_source(self, q_BLHK: Array, x_BLD: Array, context: AttentionContext, cache: LayerCache | None) -> WithCache:
        """Computes cross-attention to the sources, treating rows that share a source as one row with more queries."""
        memory, (B, L, H, K) = context.memory, q_BLHK.shape
        assert memory is not None
        k_BGSK: Array
        v_BGSK: Array
        if memory.x is not None:
            k_BSGK, v_BSGK = self._keys_and_values(memory.x)
            if (fused := attention_kernels.FUSED.get(memory.kernel)) is not None:
                scores = Scores(False, 0, *self._score_settings())
                tensors = (x.astype(self.config.dtype) for x in (q_BLHK, k_BSGK, v_BSGK))
                return fused(*tensors, context.segments, memory.segments, scores), cache
            k_BGSK, v_BGSK = (jnp.swapaxes(x, 1, 2) for x in (k_BSGK, v_BSGK))
            if cache is not None:
                cache = dataclasses.replace(cache, source_keys=k_BGSK, source_values=v_BGSK)
        else:
            assert cache is not None and cache.source_keys is not None
            k_BGSK, v_BGSK = cache.source_keys, cache.source_values
        assert memory.mask is not None
        sources, length = k_BGSK.shape[0], B // k_BGSK.shape[0] * L
        q, mask = q_BLHK.reshape(sources, length, H, K), memory.mask.reshape(sources, length, -1)
        if self.is_mutable_collection(RECORD):
            weights_BGRLS = attention_weights(q, k_BGSK, mask, None, *self._score_settings())
            self.sow(RECORD, SOURCE_WEIGHTS, jnp.mean(weights_BGRLS, axis=(1, 2)).reshape(B, L, -1))
        return self._attend(memory.kernel, q, k_BGSK, v_BGSK, mask, context.train).reshape(B, L, H, K), cache

    def _attend(
        self,
        kernel: str,
        q_BLHK: Array,
        k_BGSK: Array,
        v_BGSK: Array,
        mask_BLS: Array | None,
        train: bool,
        bias_BHLS: Array | None = None,
        causal: bool = False,
    ) -> Array:
        """Returns the result of `dot_product_attention`, (B, L, H, K), computed by the kernel "xla" or "blocked".

        Like the fused kernels, "blocked" rounds queries, keys and values to the compute dtype.
        """
        assert mask_BLS is not None
        dropout = nn.Dropout(self.config.attention_dropout, deterministic=not train)
        scale, softcap = self._score_settings()
        if kernel == "blocked" and is_worth_blocks(q_BLHK, k_BGSK):
            q, k, v = (x.astype(self.config.dtype) for x in (scaled(q_BLHK, scale), k_BGSK, v_BGSK))
            return blocked(q, k, v, mask_BLS, bias_BHLS, causal, softcap)
        y_BLHK = dot_product_attention(q_BLHK, k_BGSK, v_BGSK, mask_BLS, bias_BHLS, dropout, scale, softcap)
        return checkpoint_name(y_BLHK, ATTENTION_OUTPUT)

    def _project(self, name: str, x_BLD: Array, num_heads: int, axis: str, scale: float = 1.0) -> Array:
        config = self.config
        heads, axes = (num_heads, config.head_dim), ("embed", axis, "head_dim")
        y_BLHK = projection(config, name, (config.d_model,), heads, axes, scale)(x_BLD)
        y_BLHK = nn.with_logical_constraint(y_BLHK, ("batch", "length", axis, "head_dim"))
        # The name is attached before the norm and the rotation: the norm's backward pass needs the norm's input.
        return checkpoint_name(y_BLHK, ATTENTION_PROJECTIONS)

    def _keys_and_values(self, x_BSD: Array) -> tuple[Array, Array]:
        """Returns keys and values, both (B, S, G, K)."""
        groups = self.config.num_kv_heads
        k_BSGK = self._normalized("key", self._project("key", x_BSD, groups, "kv_heads"))
        return k_BSGK, self._project("value", x_BSD, groups, "kv_heads")

    def _normalized(self, name: str, x_BLHK: Array) -> Array:
        """Normalises queries or keys over each head or over all heads together, as specified by model.qk_norm."""
        if self.config.qk_norm == "none":
            return x_BLHK
        whole = (*x_BLHK.shape[:2], -1) if self.config.qk_norm == "width" else x_BLHK.shape
        return Norm(self.config, name=f"{name}_norm")(x_BLHK.reshape(whole)).reshape(x_BLHK.shape)

    def _score_settings(self) -> tuple[float, float]:
        return self.config.attention_scale, self.config.attention_softcap


def dot_product_attention(
    q_BLHK: Array,
    k_BGSK: Array,
    v_BGSK: Array,
    mask_BLS: Array,
    bias_BHLS: Array | None = None,
    dropout: nn.Dropout | None = None,
    scale: float = 0.0,
    softcap: float = 0.0,
) -> Array:
    """Computes dot-product attention. Returns (B, L, H, K). Query head h uses key/value head h // (H / G).

    The output is not NaN even if all keys of a query are masked. `attention_weights` explains the other arguments.
    """
    weights_BGRLS = attention_weights(q_BLHK, k_BGSK, mask_BLS, bias_BHLS, scale, softcap).astype(v_BGSK.dtype)
    if dropout is not None:
        weights_BGRLS = dropout(weights_BGRLS)
    y_BGRLK = jnp.einsum("BGRLS,BGSK->BGRLK", weights_BGRLS, v_BGSK)
    B, L, H, K = q_BLHK.shape
    return jnp.swapaxes(y_BGRLK.reshape(B, H, L, K), 1, 2)


def attention_weights(
    q_BLHK: Array, k_BGSK: Array, mask_BLS: Array, bias_BHLS: Array | None, scale: float, softcap: float
) -> Array:
    """Returns the softmax of the scores, float32 (B, G, R, L, S), where R = H / G.

    Args:
        bias_BHLS: a bias that is added to the scores; its first dimension is B or 1.
        scale: the factor by which q k^T is multiplied; if 0, the scores are divided by sqrt(K) instead.
        softcap: if this value c is positive, each score s becomes c tanh(s / c), before the bias is added (Gemma 2,
        2024).
    """
    B, L, H, K = q_BLHK.shape
    G = k_BGSK.shape[1]
    q_BGRLK = scaled(jnp.swapaxes(q_BLHK, 1, 2).reshape(B, G, H // G, L, K), scale)
    scores_BGRLS = jnp.einsum("BGRLK,BGSK->BGRLS", q_BGRLK, k_BGSK, preferred_element_type=jnp.float32)
    if softcap:
        scores_BGRLS = softcap * jnp.tanh(scores_BGRLS / softcap)
    if bias_BHLS is not None:
        scores_BGRLS = scores_BGRLS + bias_BHLS.reshape(-1, *scores_BGRLS.shape[1:])
    scores_BGRLS = jnp.where(mask_BLS[:, None, None], scores_BGRLS, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores_BGRLS, axis=-1)


def scaled(q: Array, scale: float) -> Array:
    """Returns the queries, (..., K), multiplied by `scale`, or divided by sqrt(K) if `scale` is 0."""
    return q if scale == 1.0 else q * jnp.asarray(scale or q.shape[-1] ** -0.5, q.dtype)
