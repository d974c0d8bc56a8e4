import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import ModelConfig
from lm.models.transformer.positions import rotary, rotate, sinusoidal

CONFIG = ModelConfig(head_dim=8, rotary_theta=100.0)


def test_sinusoidal_follows_the_paper_with_sines_first():
    positions = np.array([[0, 1, 7, 500]])
    table = np.asarray(sinusoidal(jnp.asarray(positions), 6))
    for n, position in enumerate(positions[0]):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            assert table[0, n, i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[0, n, 3 + i] == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_each_pair_like_a_complex_number(interleaved):
    positions = np.array([[0, 3, 64, 129]])
    x = np.random.default_rng(0).normal(size=(1, 4, 2, 8)).astype(np.float32)
    y = np.asarray(
        rotate(jnp.asarray(x), rotary(jnp.asarray(positions), CONFIG.head_dim, CONFIG.rotary_theta), interleaved)
    )
    for n, position in enumerate(positions[0]):
        for i in range(4):
            first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + 4)
            turned = (x[0, n, :, first] + 1j * x[0, n, :, second]) * np.exp(1j * position * 100.0 ** (-2 * i / 8))
            np.testing.assert_allclose(y[0, n, :, first] + 1j * y[0, n, :, second], turned, atol=2e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_scores_depend_only_on_the_distance(interleaved):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def score(query_position, key_position):
        turn = [rotary(jnp.array([[p]]), CONFIG.head_dim, CONFIG.rotary_theta) for p in (query_position, key_position)]
        return float(jnp.vdot(rotate(q, turn[0], interleaved), rotate(k, turn[1], interleaved)))

    assert score(75, 70) == pytest.approx(score(5, 0), abs=1e-4)
    assert score(70, 75) == pytest.approx(score(0, 5), abs=1e-4)
    assert abs(score(5, 0) - score(0, 5)) > 1e-2
    assert score(0, 0) == pytest.approx(float(jnp.vdot(q, k)), abs=1e-5)


def test_rotary_angles_stay_exact_at_long_positions_and_in_bfloat16():
    """Angles are float32 for any dtype of x, since bfloat16 cannot distinguish positions beyond 256."""
    config = dataclasses.replace(CONFIG, rotary_theta=500_000.0)
    positions = jnp.array([[8190, 8191]])
    rotation = rotary(positions, config.head_dim, config.rotary_theta)
    np.testing.assert_allclose(rotation.cos[0, :, 0, 0], np.cos([8190.0, 8191.0]), atol=1e-3)
    x = jnp.ones((1, 2, 1, 8), jnp.bfloat16)
    y = rotate(x, rotation, False)
    assert y.dtype == jnp.bfloat16
    expected = rotate(x.astype(jnp.float32), rotation, False)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=1e-2)
