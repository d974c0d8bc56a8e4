"""The Pallas kernel with T5's relative bias, compared in the interpreter with our own attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import MeshConfig
from lm.models.transformer.attention import attention_mask, dot_product_attention
from lm.models.transformer.relative_attention import relative_attention
from lm.models.transformer.scores import Scores
from lm.models.transformer.splash_attention import splash
from lm.parallel.mesh import make_mesh, on_mesh


def packed(rows, length):
    """Returns segments and positions of rows with a short, a long and a medium document; the first row is padded."""
    cuts = np.array([length // 5, length - 30])
    segments = np.tile(1 + np.searchsorted(cuts, np.arange(length), side="right"), (rows, 1))
    positions = np.arange(length) - np.concatenate([[0], cuts])[segments - 1]
    segments[0, -30:] = 0
    return jnp.asarray(segments, jnp.int32), jnp.asarray(positions, jnp.int32)


def random_inputs(rows, heads, length, kv_heads=None, size=16):
    """Returns queries, keys, values, (B, L, heads, K), and a bias, (H, 2 L - 1)."""
    shapes = [(rows, length, count, size) for count in (heads, kv_heads or heads, kv_heads or heads)]
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
    return [*arrays, jax.random.normal(keys[3], (heads, 2 * length - 1))]


def ours(q, k, v, bias_HD, segments, positions, causal, window):
    length = q.shape[1]
    distance = np.arange(length)[:, None] - np.arange(length)[None] + length - 1
    mask = attention_mask(positions, segments, positions, segments, causal, window)
    k, v = (jnp.swapaxes(x, 1, 2) for x in (k, v))
    return dot_product_attention(q, k, v, mask, None, bias_HD[:, distance][None], 1.0)


def values_and_gradients(function, inputs, segments):
    """Returns outputs, and gradients of their sum with a different weight for each output that is not padding."""

    def scalar(*inputs):
        y = function(*inputs) * (segments > 0)[:, :, None, None]
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)), y

    gradients, y = jax.jit(jax.grad(scalar, argnums=(0, 1, 2, 3), has_aux=True))(*inputs)
    return [y, *gradients]


@pytest.mark.parametrize(
    ("length", "causal", "window"),
    [
        (256, False, 0),  # one block
        pytest.param(384, True, 0, marks=pytest.mark.exhaustive),  # three blocks of 128
        pytest.param(512, False, 0, marks=pytest.mark.exhaustive),  # two blocks of 256
        pytest.param(384, False, 100, marks=pytest.mark.exhaustive),  # the outermost tiles are skipped
        pytest.param(384, True, 150, marks=pytest.mark.exhaustive),
    ],
)
def test_kernel_matches_our_attention(length, causal, window):
    """Values and the gradients of queries, keys, values and the bias agree to 1e-4 of the largest value."""
    segments, positions = packed(2, length)
    inputs = random_inputs(2, 2, length)

    def fused(q, k, v, bias):
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        return jnp.swapaxes(relative_attention(q, k, v, segments, bias, causal, window, interpret=True), 1, 2)

    actual = values_and_gradients(fused, inputs, segments)
    expected = values_and_gradients(
        lambda *arrays: ours(*arrays, segments, positions, causal, window), inputs, segments
    )
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.max(jnp.abs(b))))


def test_kernel_on_a_mesh_sums_the_gradient_of_the_bias_over_rows():
    """Rows and heads are split over eight devices; two query heads share a key head."""
    segments, positions = packed(4, 128)
    inputs = random_inputs(4, 4, 128, kv_heads=2)
    fused = functools.partial(splash, interpret=True)
    scores = Scores(causal=True, scale=1.0)
    with on_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        actual = values_and_gradients(
            lambda q, k, v, bias: fused(q, k, v, segments, segments, scores, bias), inputs, segments
        )
    assert len(actual[0].sharding.device_set) == 8
    expected = values_and_gradients(lambda *arrays: ours(*arrays, segments, positions, True, 0), inputs, segments)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.max(jnp.abs(b))))
