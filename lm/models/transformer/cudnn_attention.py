"""Attention on NVIDIA GPUs, computed by cuDNN's flash attention kernel."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array
from lm.models.transformer.scores import Scores

MAX_HEAD_DIM = 128  # the largest head size that cuDNN supports before Hopper
SEGMENT_BITS = 16  # rows have fewer than 2^16 segments
SEGMENT_FEATURES = 2 * SEGMENT_BITS  # features of a head that separate segments; a multiple of 8, as cuDNN requires
APART = 64.0  # scores between different segments are lowered by at least the square of this number


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

    cuDNN skips keys that come after a query or before the query's window. Without a bias, a mask, (B, 1, L, S),
    separates the segments. A bias, float32 (1, H, L, S), is rounded to bfloat16. Given both, JAX would build the sum of
    mask and bias for all rows and heads, (B, H, L, S). If there is a bias, the segments are therefore separated by
    `segment_features`, and all rows share the bias. Under a mesh, the heads of the bias are split like those of the
    queries. JAX would also accept a bias with all heads on each device, but would then sum its gradient over devices
    that hold different heads.
    """
    assert not scores.softcap, "choose_kernel does not select cudnn for a model with a soft cap"
    assert scores.causal or not scores.window, "choose_kernel does not select cudnn for windows in both directions"
    scale, size, mask = scores.scale or q_BLHK.shape[-1] ** -0.5, q_BLHK.shape[-1], None
    if bias_1HLS is None:
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
