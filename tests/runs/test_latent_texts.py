"""Points between two latent vectors."""

import numpy as np
import pytest

from lm.runs.latent_texts import WALKS

ONE, OTHER = np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [3.0, 0.0]])


@pytest.mark.parametrize("how", WALKS)
def test_walks_begin_and_end_exactly_at_the_two_vectors(how):
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(WALKS[how](one, other, 0.0).astype(np.float32), one)
    np.testing.assert_array_equal(WALKS[how](one, other, 1.0).astype(np.float32), other)


def test_a_line_is_straight_and_an_arc_keeps_the_length():
    np.testing.assert_allclose(WALKS["linear"](ONE, OTHER, 0.25), 0.75 * ONE + 0.25 * OTHER)
    middle = WALKS["spherical"](ONE, OTHER, 0.5)
    np.testing.assert_allclose(middle, (ONE + OTHER) / np.sqrt(2))
    assert np.linalg.norm(WALKS["spherical"](ONE, OTHER, 0.3)) == pytest.approx(3.0)
    np.testing.assert_allclose(WALKS["spherical"](ONE, 2 * ONE, 0.5), 1.5 * ONE)
