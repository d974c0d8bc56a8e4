"""Sinusoidal, rotary and relative positions. (`tower.py` implements learned positions as an embedding table.)"""

from __future__ import annotations

import bisect

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np

from lm.batch import Array
from lm.config import ModelConfig
from lm.models.layers import embedding_width, parameter
from lm.models.transformer.rope_scaling import ROPE_SCALINGS


def sinusoidal_positions(config: ModelConfig, positions_BL: Array) -> Array:
    """Returns the sinusoidal position embeddings of a model, float32 (B, L, E)."""
    ends_at_longest = config.sinusoid_variant == "half_minus_one"
    return sinusoidal(positions_BL + config.sinusoid_offset, embedding_width(config), ends_at_longest)


def sinusoidal(positions_BL: Array, width: int, ends_at_longest: bool = False) -> Array:
    """Returns sinusoidal embeddings, float32 (B, L, D): sines in the first half of the width, cosines in the second.

    The wavelengths are those of the paper (Vaswani 2017, section 3.5). There, sines and cosines alternate, so the
    paper's embeddings hold the same values in a different order. If `ends_at_longest` is true, the last wavelength is
    exactly 10,000 times the first, as in tensor2tensor and fairseq; in the paper, it is one step shorter.
    """
    steps = width // 2 - 1 if ends_at_longest else width // 2
    rates = np.exp(-np.log(10_000.0) * np.arange(width // 2) / steps).astype(np.float32)
    angles_BLK = positions_BL[..., None].astype(jnp.float32) * rates[None, None, :]
    return jnp.concatenate([jnp.sin(angles_BLK), jnp.cos(angles_BLK)], axis=-1)


@flax.struct.dataclass
class Rotation:
    """Cosines and sines of the rotary angles, both float32 (B, L, 1, K/2), shared by all layers of one kind."""

    cos: Array
    sin: Array


def rotary(positions_BL: Array, head_dim: int, theta: float, scaled_by: ModelConfig | None = None) -> Rotation:
    """Returns the rotation of pair i of every head by the angle p * theta^(-2i/K) at position p (RoFormer, Su 2021).

    If `scaled_by` is given, the frequencies theta^(-2i/K) are changed as specified by `scaled_by.rope_scaling`.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    rates, factor = theta**-exponents, 1.0
    if scaled_by is not None:
        rates, factor = ROPE_SCALINGS[scaled_by.rope_scaling].rescale(scaled_by, theta, rates)
    angles_BLK = positions_BL[..., None].astype(jnp.float32) * rates.astype(np.float32)[None, None, :]
    cos, sin = (function(angles_BLK)[:, :, None, :] for function in (jnp.cos, jnp.sin))
    return Rotation(cos, sin) if factor == 1.0 else Rotation(cos * factor, sin * factor)


def no_rotation(positions_BL: Array, head_dim: int) -> Rotation:
    """Returns rotations by an angle of 0, for layers without rotary positions."""
    zeros = jnp.zeros((*positions_BL.shape, 1, head_dim // 2), jnp.float32)
    return Rotation(cos=zeros + 1.0, sin=zeros)


def rotate(x_BLHK: Array, rotation: Rotation, interleaved: bool) -> Array:
    """Rotates each pair of dimensions in every head by that pair's angle.

    If `interleaved` is true, the pairs are (2i, 2i + 1), as in the paper and in llama2.c. Otherwise, the pairs are (i,
    i + K/2), as in Hugging Face's Llama. The rotation is computed in float32. The result has the dtype of x.
    """
    x = x_BLHK.astype(jnp.float32)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else jnp.split(x, 2, axis=-1)
    turned = (first * rotation.cos - second * rotation.sin, second * rotation.cos + first * rotation.sin)
    y = jnp.stack(turned, axis=-1).reshape(x.shape) if interleaved else jnp.concatenate(turned, axis=-1)
    return y.astype(x_BLHK.dtype)


def distance_buckets(num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns the bucket of each distance from 0 to max_distance, int32 (max_distance + 1,).

    Distances beyond max_distance share the last bucket. The first half of the buckets (`exact` of them) hold one
    distance each. The other `growing` buckets widen exponentially up to max_distance (Raffel 2020, section 2.1, and the
    T5 code): bucket exact + k starts at exact * (max_distance / exact)^(k / growing). These bounds are compared as
    integers, because the bucket of a distance such as 64 would otherwise depend on the last bit of a logarithm.
    """
    exact, growing = num_buckets // 2, num_buckets - num_buckets // 2
    starts = [max_distance**k * exact ** (growing - k) for k in range(1, growing)]  # raised to the power `growing`
    buckets = [d if d < exact else exact + bisect.bisect_right(starts, d**growing) for d in range(max_distance + 1)]
    return np.array(buckets, np.int32)


class RelativeBias(nn.Module):
    """T5's relative position bias: one value per head and distance bucket, added to the scores of all layers."""

    config: ModelConfig
    causal: bool  # if True, later keys are masked, so all buckets are for earlier keys

    @nn.compact
    def __call__(self, query_positions_BL: Array, key_positions_BS: Array) -> Array:
        """Returns the bias, float32 (B, H, L, S). If positions are NumPy arrays, buckets are computed at trace time."""
        config = self.config
        shape, init = (config.relative_buckets, config.num_heads), nn.initializers.normal(config.d_model**-0.5)
        table_EH = parameter(self, "embedding", init, ("positions", "heads"), shape)
        behind_BLS = query_positions_BL[:, :, None] - key_positions_BS[:, None, :]
        one_sided = config.relative_buckets if self.causal else config.relative_buckets // 2
        buckets = distance_buckets(one_sided, config.relative_max_distance)
        use = np if isinstance(behind_BLS, np.ndarray) else jnp
        distance_BLS = use.maximum(behind_BLS, 0) if self.causal else use.abs(behind_BLS)
        bucket_BLS = use.take(buckets, use.minimum(distance_BLS, config.relative_max_distance))
        if not self.causal:
            bucket_BLS = bucket_BLS + use.where(behind_BLS < 0, one_sided, 0)
        return jnp.moveaxis(jnp.take(table_EH, bucket_BLS, axis=0), -1, 1)
