"""Metrics of reconstructions, and the number of latent dimensions that vary over the texts."""

import numpy as np

from lm.evaluation.reconstruction import Restored, active_units, reconstruction_metrics


def test_texts_are_restored_exactly_or_in_part():
    """Tokens count at their position; an output that is too long or too short is not exact."""
    texts = [
        Restored([5, 6, 2], [5, 6, 2]),
        Restored([5, 6, 2], [6, 5, 2]),
        Restored([5, 6, 7, 2], [5, 6]),
        Restored([5, 2], [5, 2, 2]),
    ]
    assert reconstruction_metrics(texts) == {"restored_texts": 0.25, "restored_tokens": (3 + 1 + 2 + 2) / 12}


def test_units_are_active_if_the_variance_of_their_means_exceeds_a_hundredth():
    signs = np.array([1, -1, 1, -1], np.float32)[:, None]
    assert active_units(signs * np.array([0.0, 0.099, 0.101, 3.0], np.float32) + 7) == 2
