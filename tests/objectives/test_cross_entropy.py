"""The loss of tokens against sums written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch
from lm.config import ObjectiveConfig
from lm.objectives.losses import loss_sums


def random_case(weights: list) -> tuple[np.ndarray, Batch]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5)).astype(np.float32)
    ids = rng.integers(0, 5, (2, 3)).astype(np.int32)
    return logits, Batch(tokens=ids, targets=ids, weights=np.array(weights, np.float32), positions=ids, segments=ids)


def smoothed(target: int, entries: int, smoothing: float, over: str) -> np.ndarray:
    """The probabilities that are learnt in place of 1 for the target."""
    if over == "vocabulary":
        wanted = np.full(entries, smoothing / entries)
        wanted[target] += 1 - smoothing
    else:
        wanted = np.full(entries, smoothing / (entries - 1))
        wanted[target] = 1 - smoothing
    assert wanted.sum() == pytest.approx(1)
    return wanted


@pytest.mark.parametrize("over", ["vocabulary", "others"])
@pytest.mark.parametrize("smoothing, z_loss", [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)])
def test_loss_equals_the_formula(smoothing, z_loss, over):
    weights = [[1, 0, 1], [1, 1, 0.5]]
    logits, batch = random_case(weights)
    config = ObjectiveConfig(label_smoothing=smoothing, label_smoothing_over=over, z_loss=z_loss)
    sums = jax.jit(lambda logits: loss_sums(logits, batch, config))(logits)
    loss = nll = correct = 0.0
    for row in range(2):
        for place in range(3):
            p = np.exp(logits[row, place].astype(np.float64))
            z = p.sum()
            target = batch.targets[row, place]
            wanted = smoothed(target, 5, smoothing, over)
            weight = weights[row][place]
            loss += weight * (-(wanted * np.log(p / z)).sum() + z_loss * np.log(z) ** 2)
            nll += weight * -np.log(p[target] / z)
            correct += weight * (logits[row, place].argmax() == target)
    assert float(sums.loss) == pytest.approx(loss, rel=1e-5)
    assert float(sums.nll) == pytest.approx(nll, rel=1e-5)
    assert float(sums.correct) == correct
    assert float(sums.weight) == 4.5


def test_of_equally_probable_tokens_only_the_first_counts_as_predicted():
    rng = np.random.default_rng(1)
    logits = rng.integers(0, 2, (16, 8, 4)).astype(np.float32)
    targets = rng.integers(0, 4, (16, 8)).astype(np.int32)
    ones = np.ones((16, 8), np.float32)
    batch = Batch(tokens=targets, targets=targets, weights=ones, positions=targets, segments=targets)
    expected = (logits.argmax(axis=-1) == targets).sum()
    are_largest = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] == logits.max(axis=-1)
    assert 0 < expected < are_largest.sum(), "some targets have the same logit as an earlier token"
    assert float(loss_sums(jnp.asarray(logits), batch, ObjectiveConfig()).correct) == expected


@pytest.mark.parametrize("over", ["vocabulary", "others"])
def test_smoothed_loss_of_uniform_logits_is_log_v(over):
    _, batch = random_case([[1, 1, 1], [1, 1, 1]])
    config = ObjectiveConfig(label_smoothing=0.3, label_smoothing_over=over)
    sums = loss_sums(jnp.zeros((2, 3, 5)), batch, config)
    assert float(sums.loss) == pytest.approx(6 * np.log(5), rel=1e-6)


@pytest.mark.parametrize("over", ["vocabulary", "others"])
def test_smoothed_loss_is_least_where_the_smoothed_probabilities_are_given(over):
    """There it is their entropy, and flat."""
    _, batch = random_case([[1, 1, 1], [1, 1, 1]])
    config = ObjectiveConfig(label_smoothing=0.3, label_smoothing_over=over)
    wanted = np.array([[smoothed(target, 5, 0.3, over) for target in row] for row in batch.targets])
    compute = jax.jit(jax.value_and_grad(lambda logits: loss_sums(logits, batch, config).loss))
    loss, gradient = compute(np.log(wanted).astype(np.float32))
    assert float(loss) == pytest.approx(-(wanted * np.log(wanted)).sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_outside_the_vocabulary_gives_no_loss_that_looks_right(target):
    logits, batch = random_case([[1, 1, 1], [1, 1, 1]])
    batch.targets[0, 1] = target
    assert np.isnan(loss_sums(logits, batch, ObjectiveConfig()).loss)
