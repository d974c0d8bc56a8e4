"""Attention on NVIDIA GPUs, computed by cuDNN's flash attention kernel."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array
from lm.models.transformer.scores import Scores
from lm.parallel.mesh import current_mesh

MAX_HEAD_DIM = 128  # the largest head size that cuDNN supports before Hopper
SEGMENT_BITS = 16  # rows have fewer than 2^16 segments
SEGMENT_FEATURES = 2 * SEGMENT_BITS  # features of a head that separate segments; a multiple of 8, as cuDNN requires
APART = 64.0  # scores between different segments are lowered by at least the square of this number
MOST_OFFSETS = 8  # cuDNN's time grows with the largest number of segments; with 32, a mask is faster
HOPPER = 9.0  # the minimum compute capability for offsets


def cudnn(
    q_BLHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    segments_BL: Array,
    key_segments_BS: Array,
    scores: Scores,
    bias_1HLS: Array | None = None,
) -> Array:
    """Computes attention within each segment. Returns (B, L, H, K) in the dtype of q, which must be bfloat16.

    cuDNN skips keys that come after a query or before the query's window. If there is a known, small limit to the
    number of segments per row, `attend_by_offsets` separates the segments. Otherwise, a mask, (B, 1, L, S), does, which
    cuDNN reads as a bias. Given a bias as well, JAX would build the sum of mask and bias for all rows and heads, (B, H,
    L, S). With a bias, the segments are therefore separated by `segment_features`, and all rows share the bias.

    A bias, float32 (1, H, L, S), is rounded to bfloat16. Under a mesh, its heads are split like those of the queries.
    JAX would also accept a bias with all heads on each device, but would then sum its gradient over devices that hold
    different heads.
    """
    assert not scores.softcap, "choose_kernel does not select cudnn for a model with a soft cap"
    assert scores.causal or not scores.window, "choose_kernel does not select cudnn for windows in both directions"
    scale, size, mask = scores.scale or q_BLHK.shape[-1] ** -0.5, q_BLHK.shape[-1], None
    if bias_1HLS is None:
        if can_use_offsets(q_BLHK, k_BSGK, scores):
            return attend_by_offsets(q_BLHK, k_BSGK, v_BSGK, segments_BL, scores, scale)
        mask = (segments_BL[:, :, None] == key_segments_BS[:, None, :])[:, None]
    else:
        # The queries are scaled here, since cuDNN would scale the products of the features as well.
        q_BLHK, scale = q_BLHK * jnp.asarray(scale, q_BLHK.dtype), 1.0
        q_BLHK = _append(q_BLHK, segment_features(segments_BL, of_keys=False))
        k_BSGK = _append(k_BSGK, segment_features(key_segments_BS, of_keys=True))
        v_BSGK = jnp.pad(v_BSGK, ((0, 0), (0, 0), (0, 0), (0, SEGMENT_FEATURES)))
        bias_1HLS = nn.with_logical_constraint(bias_1HLS.astype(q_BLHK.dtype), (None, "heads", None, None))
    y_BLHK = jax.nn.dot_product_attention(
        q_BLHK,
        k_BSGK,
        v_BSGK,
        bias=bias_1HLS,
        mask=mask,
        scale=scale,
        is_causal=scores.causal,
        local_window_size=(scores.window - 1, 0) if scores.window > 0 else None,
        implementation="cudnn",
    )
    return y_BLHK[..., :size]


def can_use_offsets(q_BLHK: Array, k_BSGK: Array, scores: Scores) -> bool:
    """Returns whether `attend_by_offsets` is fast, and supports the model and the GPUs of this process.

    It is only used for self-attention, because no limit is known for the segments of a source. It has not been tried
    with windows, nor with query heads that share a key head, for which the function returns False.
    """
    if not 0 < scores.max_segments <= MOST_OFFSETS or scores.window or q_BLHK.shape != k_BSGK.shape:
        return False
    return jax.default_backend() == "gpu" and float(jax.local_devices()[0].compute_capability) >= HOPPER


def attend_by_offsets(
    q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, segments_BL: Array, scores: Scores, scale: float
) -> Array:
    """Computes self-attention within each segment, skipping all other pairs of tokens.

    With four segments per row, this takes 0.3 to 0.6 times as long as attention with a mask. Padding forms a segment of
    its own, because cuDNN writes nothing to the outputs of tokens outside of all segments. The statistics of the
    softmax take scores.max_segments + 1 times as much memory as without offsets.
    """
    # JAX's public function has no argument for offsets.
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    def on_one_device(q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, segments_BL: Array) -> Array:
        offsets, lengths = segment_offsets(segments_BL, scores.max_segments)
        return dot_product_attention(
            q_BLHK,
            k_BLHK,
            v_BLHK,
            q_seqlen=lengths,
            kv_seqlen=lengths,
            q_offsets=offsets,
            kv_offsets=offsets,
            scale=scale,
            mask_type=MaskType.PADDING_CAUSAL if scores.causal else MaskType.PADDING,
            qkv_layout="BTNH",
        )

    # JAX does not split the offsets like the rows to which they belong, so all are split over the mesh explicitly.
    inputs = q_BLHK, k_BLHK, v_BLHK, segments_BL
    if current_mesh() is None:
        return on_one_device(*inputs)
    axes = nn.logical_to_mesh_axes(("batch", "length", "heads", "head_dim"))
    in_specs = axes, axes, axes, nn.logical_to_mesh_axes(("batch", "length"))
    return jax.shard_map(on_one_device, in_specs=in_specs, out_specs=axes, check_vma=False)(*inputs)


def segment_offsets(segments_BL: Array, count: int) -> tuple[Array, Array]:
    """Returns the offsets, int32 (B, count + 2), and the lengths, int32 (B, count + 1), of the segments of each row.

    They are those of segments 1 to `count` and of the padding at the end, and -1 for segments that a row does not have.
    The last offset is always -1.
    """
    numbers_N = jnp.concatenate([jnp.arange(1, count + 1), jnp.zeros(1, jnp.int32)]).astype(jnp.int32)
    lengths_BN = jnp.sum(segments_BL[:, :, None] == numbers_N[None, None], axis=1, dtype=jnp.int32)
    offsets_BN = jnp.cumsum(lengths_BN, axis=1) - lengths_BN
    offsets_BN, lengths_BN = (jnp.where(lengths_BN > 0, each, -1) for each in (offsets_BN, lengths_BN))
    return jnp.pad(offsets_BN, ((0, 0), (0, 1)), constant_values=-1), lengths_BN


def segment_features(segments_BL: Array, of_keys: bool) -> Array:
    """Returns features, float32 (B, L, SEGMENT_FEATURES), whose dot products separate the segments.

    The dot product of a query's and a key's features is exactly 0 if both are in the same segment. Otherwise, it is
    -APART^2 times the number of binary digits in which the segments differ. All values are 0 or powers of two and thus
    exact in bfloat16.
    """
    bits = (segments_BL[:, :, None] >> jnp.arange(SEGMENT_BITS)[None, None]) & 1
    features = (bits, 1 - bits) if of_keys else (bits - 1, -bits)
    return APART * jnp.concatenate(features, axis=-1).astype(jnp.float32)


def _append(x_BLHK: Array, features_BLI: Array) -> Array:
    shape = (*x_BLHK.shape[:3], features_BLI.shape[-1])
    return jnp.concatenate([x_BLHK, jnp.broadcast_to(features_BLI[:, :, None], shape).astype(x_BLHK.dtype)], axis=-1)
