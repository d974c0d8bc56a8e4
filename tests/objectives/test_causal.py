"""The causal objective against sums written out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch
from lm.config import ObjectiveConfig
from lm.objectives.causal import features
from lm.objectives.cross_entropy import loss_sums


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


def random_case(weights: list) -> tuple[np.ndarray, Batch]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5)).astype(np.float32)
    ids = rng.integers(0, 5, (2, 3)).astype(np.int32)
    return logits, Batch(tokens=ids, targets=ids, weights=np.array(weights, np.float32), positions=ids, segments=ids)


@pytest.mark.parametrize("smoothing, z_loss", [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)])
def test_loss_equals_the_formula(smoothing, z_loss):
    weights = [[1, 0, 1], [1, 1, 0.5]]
    logits, batch = random_case(weights)
    sums = loss_sums(jnp.asarray(logits), batch, ObjectiveConfig(label_smoothing=smoothing, z_loss=z_loss))
    loss = nll = correct = 0.0
    for row in range(2):
        for place in range(3):
            p = np.exp(logits[row, place].astype(np.float64))
            z = p.sum()
            target = batch.targets[row, place]
            wanted = np.full(5, smoothing / 5)
            wanted[target] += 1 - smoothing
            weight = weights[row][place]
            loss += weight * (-(wanted * np.log(p / z)).sum() + z_loss * np.log(z) ** 2)
            nll += weight * -np.log(p[target] / z)
            correct += weight * (logits[row, place].argmax() == target)
    assert float(sums.loss) == pytest.approx(loss, rel=1e-5)
    assert float(sums.nll) == pytest.approx(nll, rel=1e-5)
    assert float(sums.correct) == correct
    assert float(sums.weight) == 4.5


def test_smoothed_loss_of_uniform_logits_is_log_v():
    _, batch = random_case([[1, 1, 1], [1, 1, 1]])
    sums = loss_sums(jnp.zeros((2, 3, 5)), batch, ObjectiveConfig(label_smoothing=0.3))
    assert float(sums.loss) == pytest.approx(6 * np.log(5), rel=1e-6)
