"""Attention with Pallas kernels on TPUs: JAX's splash attention, or our own kernel if there is a relative bias."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from lm.batch import Array
from lm.models.transformer.relative_attention import LANES, relative_attention
from lm.models.transformer.remat import ATTENTION_OUTPUT
from lm.models.transformer.scores import Scores
from lm.parallel.mesh import current_mesh


def splash(
    q_BLHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    segments_BL: Array,
    key_segments_BS: Array,
    scores: Scores,
    bias_HM: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Computes attention within each segment. Returns (B, L, H, K).

    L and S must be multiples of 128. XLA cannot partition a Pallas kernel, so under a mesh, rows and heads are split
    over devices explicitly, according to the current logical axis rules.

    Args:
        bias_HM: the bias of self-attention for each distance, as in `relative_attention`, or None. M is 2 L - 1.
        interpret: whether to use Pallas's interpreter, which runs on any platform; meant for tests.
    """
    heads_per_kv = q_BLHK.shape[2] // k_BSGK.shape[2]
    q_BHLK = jnp.swapaxes(q_BLHK, 1, 2) * jnp.asarray(scores.scale or q_BLHK.shape[-1] ** -0.5, q_BLHK.dtype)
    k_BGSK, v_BGSK = jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGK, 1, 2)

    def on_one_device(
        q_BHLK: Array, k_BGSK: Array, v_BGSK: Array, segments_BL: Array, key_segments_BS: Array, bias_HM: Array | None
    ) -> Array:
        if bias_HM is not None:
            causal, window = scores.causal, scores.window
            return relative_attention(q_BHLK, k_BGSK, v_BGSK, segments_BL, bias_HM, causal, window, interpret)
        kernel = _splash_kernel(q_BHLK.shape[1], q_BHLK.shape[2], k_BGSK.shape[2], scores, interpret)
        with jax.numpy_rank_promotion("allow"):  # the third-party kernel relies on rank promotion
            return jax.vmap(kernel)(q_BHLK, k_BGSK, v_BGSK, splash_kernel.SegmentIds(segments_BL, key_segments_BS))

    is_split = current_mesh() is not None
    q_axes = kv_axes = None
    if is_split:
        q_axes = nn.logical_to_mesh_axes(("batch", "heads", "length", "head_dim"))
        kv_axes = nn.logical_to_mesh_axes(("batch", "kv_heads", "length", "head_dim"))
    if q_axes != kv_axes or bias_HM is not None:
        # If only the query heads were split, a device would pair its query heads with the wrong key heads. Our own
        # kernel does not support groups of query heads that share a key head.
        k_BGSK, v_BGSK = (jnp.repeat(x, heads_per_kv, axis=1) for x in (k_BGSK, v_BGSK))
        kv_axes = q_axes
    inputs = (q_BHLK, k_BGSK, v_BGSK, segments_BL, key_segments_BS, bias_HM)
    if is_split:
        segment_axes, bias_axes = (nn.logical_to_mesh_axes(names) for names in (("batch", "length"), ("heads", None)))
        in_specs = (q_axes, kv_axes, kv_axes, segment_axes, segment_axes, bias_axes)
        y_BHLK = jax.shard_map(on_one_device, in_specs=in_specs, out_specs=q_axes, check_vma=False)(*inputs)
    else:
        y_BHLK = on_one_device(*inputs)
    return jnp.swapaxes(y_BHLK, 1, 2)


def _splash_kernel(
    heads: int, length: int, keys: int, scores: Scores, interpret: bool
) -> splash_kernel.SplashAttentionKernel:
    """Builds the kernel for one device's heads.

    The block sizes are the largest of 512, 256 and 128 that divide L (for queries) and S (for keys).
    """
    shape = (length, keys)
    mask: splash_mask.Mask = splash_mask.FullMask(shape)
    if scores.window:
        distance = scores.window - 1
        mask = splash_mask.LocalMask(shape, (distance, 0 if scores.causal else distance), 0)
    elif scores.causal:
        mask = splash_mask.CausalMask(shape)
    block, block_kv = (next(size for size in (512, 256, LANES) if each % size == 0) for each in shape)
    blocks: dict[str, Any] = dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), block)
    blocks |= dict.fromkeys(("block_kv", "block_kv_dkv", "block_kv_dq"), block_kv)
    return splash_kernel.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_kernel.BlockSizes(**blocks),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=scores.softcap or None,
        residual_checkpoint_name=ATTENTION_OUTPUT,
        interpret=interpret,
    )
