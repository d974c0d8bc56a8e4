"""The Pallas kernel with T5's relative bias, compared in the interpreter with our own attention."""

import functools

import jax.numpy as jnp
import pytest

from lm.config import MeshConfig
from lm.models.transformer.relative_attention import relative_attention
from lm.models.transformer.scores import Scores
from lm.models.transformer.splash_attention import splash
from lm.parallel.mesh import make_mesh, on_mesh
from tests.models.packed_attention import (
    assert_close_to_the_largest,
    ours,
    packed_rows,
    query_key_value,
    random_bias,
    values_and_gradients,
)


def exhaustive(*values):
    return pytest.param(*values, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    ("rows", "length", "causal", "window"),
    [
        (2, 384, True, 0),  # three blocks of 128
        exhaustive(2, 256, False, 0),  # one block
        exhaustive(2, 512, False, 0),  # two blocks of 256
        exhaustive(1, 384, False, 0),
        exhaustive(2, 384, False, 100),  # the outermost tiles are skipped
        exhaustive(2, 384, True, 150),
        exhaustive(1, 768, False, 200),  # three blocks of 256
    ],
)
def test_kernel_matches_our_attention(rows, length, causal, window):
    """Values and the gradients of queries, keys, values and the bias agree to 1e-4 of the largest value."""
    segments, positions = packed_rows(rows, length)
    inputs = [*query_key_value(2, 2, rows, length=length), random_bias(2, length)]

    def fused(q, k, v, bias):
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        return jnp.swapaxes(relative_attention(q, k, v, segments, bias, causal, window, interpret=True), 1, 2)

    def plain(q, k, v, bias):
        return ours(q, k, v, segments, positions, window, causal, bias, scale=1.0)

    assert_close_to_the_largest(*(values_and_gradients(each, inputs, segments) for each in (fused, plain)))


def test_kernel_on_a_mesh_sums_the_gradient_of_the_bias_over_rows():
    """Rows and heads are split over eight devices; two query heads share a key head."""
    segments, positions = packed_rows(4)
    inputs = [*query_key_value(4, 2, rows=4), random_bias(4, 128)]
    fused = functools.partial(splash, interpret=True)
    scores = Scores(causal=True, scale=1.0)
    with on_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        actual = values_and_gradients(
            lambda q, k, v, bias: fused(q, k, v, segments, segments, scores, bias), inputs, segments
        )
    assert len(actual[0].sharding.device_set) == 8
    expected = values_and_gradients(
        lambda q, k, v, bias: ours(q, k, v, segments, positions, 0, True, bias, scale=1.0), inputs, segments
    )
    assert_close_to_the_largest(actual, expected)
