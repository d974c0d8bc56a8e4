"""Packed rows, random queries, keys and values, and our own attention, with which fused kernels are compared."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.transformer.attention import attention_mask, dot_product_attention

LENGTH = 128


def packed_rows(rows=2, length=LENGTH):
    """Returns segments and positions of rows with documents of various lengths; the first row ends with padding."""
    segments_BL, positions_BL = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        cuts = np.cumsum([17 + 5 * row, 40, 3, 1]) * length // LENGTH
        segments_BL[row] = 1 + np.searchsorted(cuts, np.arange(length), side="right")
        positions_BL[row] = np.arange(length) - np.concatenate([[0], cuts])[segments_BL[row] - 1]
    segments_BL[0, -20:] = 0
    return jnp.asarray(segments_BL), jnp.asarray(positions_BL)


def packed_sources(rows=2, length=2 * LENGTH):
    """Returns segments, (rows, S), of sources for the segments of `packed_rows`; all rows end with padding."""
    cuts = np.array([[30, 90, 160, 170, 200], [2, 40, 80, 190, 250]])[:rows] * length // 256
    segments = 1 + np.stack([np.searchsorted(row, np.arange(length), side="right") for row in cuts])
    return jnp.asarray(np.where(segments > cuts.shape[1], 0, segments), jnp.int32)


def query_key_value(heads, kv_heads, rows=2, size=16, length=LENGTH):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(rows, length, count, size) for count in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def random_bias(heads, length):
    """Returns a bias by distance, (H, 2 L - 1)."""
    return jax.random.normal(jax.random.key(3), (heads, 2 * length - 1))


def ours(q, k, v, segments, positions, window, causal=True, bias_HM=None, **settings):
    """Computes attention without a fused kernel, with a bias by distance if there is one."""
    mask = attention_mask(positions, segments, positions, segments, causal=causal, window=window)
    if bias_HM is not None:
        indices = np.arange(q.shape[1])
        settings["bias_BHLS"] = bias_HM[:, indices[:, None] - indices[None] + len(indices) - 1][None]
    return dot_product_attention(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), mask, **settings)


def values_and_gradients(function, inputs, segments):
    """Returns outputs, and gradients of their sum with a different weight for each output that is not padding."""

    def scalar(*inputs):
        y = function(*inputs) * (segments > 0)[:, :, None, None]
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)), y

    gradients, y = jax.jit(jax.grad(scalar, argnums=tuple(range(len(inputs))), has_aux=True))(*inputs)
    return [y, *gradients]


def assert_same(actual, expected, tolerance=2e-5):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


def assert_close_to_the_largest(actual, expected, tolerance=1e-4):
    """Compares each array to `tolerance` of its largest value."""
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.max(jnp.abs(b))))
