"""Telling order: sinusoidal and rotary positions (learned ones are an embedding table)."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
import numpy as np

from lm.batch import Array
from lm.config import ModelConfig


def sinusoidal(positions_BL: Array, width: int) -> Array:
    """(B, L, D) float32: sines in the first half of the width, cosines in the second.

    The wave lengths of Vaswani 2017, section 3.5, there interleaved; a fixed permutation of the width.
    """
    rates = np.exp(-np.log(10_000.0) * np.arange(width // 2) / (width // 2)).astype(np.float32)
    angles_BLK = positions_BL[..., None].astype(jnp.float32) * rates[None, None, :]
    return jnp.concatenate([jnp.sin(angles_BLK), jnp.cos(angles_BLK)], axis=-1)


@flax.struct.dataclass
class Rotation:
    """Cosines and sines of the rotary angles, (B, L, 1, K/2) float32 each; made once, used by every layer."""

    cos: Array
    sin: Array


def rotary(positions_BL: Array, config: ModelConfig) -> Rotation:
    """Angle of pair i of a head at position p: p * theta^(-2i/K) (Su 2021, RoFormer)."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    rates = (config.rotary_theta**-exponents).astype(np.float32)
    angles_BLK = positions_BL[..., None].astype(jnp.float32) * rates[None, None, :]
    return Rotation(cos=jnp.cos(angles_BLK)[:, :, None, :], sin=jnp.sin(angles_BLK)[:, :, None, :])


def rotate(x_BLHK: Array, rotation: Rotation, interleaved: bool) -> Array:
    """Turns each pair of every head by its angle.

    Pairs are (i, i + K/2), as in Hugging Face's Llama, or, interleaved, (2i, 2i + 1), as in the
    paper and llama.c. Computed in float32, returned in the dtype of x.
    """
    x = x_BLHK.astype(jnp.float32)
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = jnp.split(x, 2, axis=-1)
    turned = (first * rotation.cos - second * rotation.sin, second * rotation.cos + first * rotation.sin)
    if interleaved:
        y = jnp.stack(turned, axis=-1).reshape(x.shape)
    else:
        y = jnp.concatenate(turned, axis=-1)
    return y.astype(x_BLHK.dtype)
