"""What the causal objective makes of a row, written out by hand."""

import numpy as np

from lm.data.packing.causal import features


def test_a_target_is_the_next_token_of_the_same_document():
    tokens = np.array([[1, 7, 8, 2, 1, 9, 0]], np.int32)
    segments = np.array([[1, 1, 1, 1, 2, 2, 0]], np.int32)
    positions = np.array([[0, 1, 2, 3, 0, 1, 0]], np.int32)
    batch = features(tokens, segments, positions)
    np.testing.assert_array_equal(batch.tokens, [[1, 7, 8, 2, 1, 9]])
    np.testing.assert_array_equal(batch.targets, [[7, 8, 2, 0, 9, 0]])
    np.testing.assert_array_equal(batch.weights, [[1, 1, 1, 0, 1, 0]])
    np.testing.assert_array_equal(batch.segments, [[1, 1, 1, 1, 2, 2]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 0, 1]])
