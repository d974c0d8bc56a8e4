"""Losses of tasks against loops over texts and closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from lm.batch import Batch, Output
from lm.config import ObjectiveConfig
from lm.objectives.losses import contrastive_loss, span_loss
from lm.tasks import TASKS

SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 2, 2, 2]], np.int32)
TEXTS = ((0, 0, 3), (0, 3, 7), (1, 0, 5), (1, 5, 8))  # row, first, end


def loss_of(output, batch, config):
    return TASKS[config.name].loss(output, batch, config)


def weight_of(batch, config):
    return TASKS[config.name].total_weight(batch)


def batch_with(targets: np.ndarray, weights: np.ndarray) -> Batch:
    positions = np.zeros_like(SEGMENTS)
    for row, first, end in TEXTS:
        positions[row, first:end] = np.arange(end - first)
    return Batch(np.zeros_like(SEGMENTS), targets, weights.astype(np.float32), positions, SEGMENTS)


def test_spans_are_scored_within_their_segment():
    logits = np.random.default_rng(0).normal(size=(2, 8, 2)).astype(np.float32)
    answers = [(0, 0), (4, 6), (2, 2), None]  # at the first token (no answer), over three, of one token, none known
    targets = np.zeros((2, 8), np.int32)
    for (row, _, _), answer in zip(TEXTS, answers, strict=True):
        if answer is not None:
            targets[row, answer[0]] |= 1
            targets[row, answer[1]] |= 2
    batch = batch_with(targets, targets > 0)
    expected = correct = 0.0
    for (row, first, end), answer in zip(TEXTS, answers, strict=True):
        for side in (0, 1):
            if answer is not None:
                scores = logits[row, first:end, side]
                expected -= 0.5 * log_softmax(scores)[answer[side] - first]
                correct += 0.5 * (scores.argmax() == answer[side] - first)
    sums = span_loss(jnp.asarray(logits), batch)
    assert float(sums.loss) == pytest.approx(expected, rel=1e-5)
    assert float(sums.correct) == pytest.approx(correct) and float(sums.weight) == 3.0
    assert float(weight_of(batch, ObjectiveConfig(name="span_qa"))) == 3.0


def test_numbers_cost_their_squared_error():
    targets, weights = np.zeros((2, 8), np.float32), np.zeros((2, 8))
    logits = np.random.default_rng(1).normal(size=(2, 8, 1)).astype(np.float32)
    expected = 0.0
    for row, first, _ in TEXTS:
        targets[row, first], weights[row, first] = row + 0.25 * first, 1
        expected += (logits[row, first, 0] - targets[row, first]) ** 2
    batch = batch_with(targets, weights)
    sums = loss_of(Output(jnp.asarray(logits)), batch, ObjectiveConfig(name="regression"))
    assert float(sums.loss) == pytest.approx(expected, rel=1e-5) and float(sums.weight) == 4.0


def test_pairs_of_texts_are_scored_at_their_first_token():
    rng = np.random.default_rng(2)
    next_sentence_logits = rng.normal(size=(2, 8, 2)).astype(np.float32)
    labels = (1, 0, 0, 1)
    targets = rng.integers(2, 9, (2, 8)).astype(np.int32)
    for (row, first, _), label in zip(TEXTS, labels, strict=True):
        targets[row, first] = label
    weights = np.zeros((2, 8))
    weights[0, 1] = weights[1, 2] = 1
    logits = rng.normal(size=(2, 8, 9)).astype(np.float32)
    batch, config = batch_with(targets, weights), ObjectiveConfig(name="masked", next_sentence=True)
    sums = loss_of(Output(jnp.asarray(logits), next_sentence_logits=jnp.asarray(next_sentence_logits)), batch, config)
    chosen = [(next_sentence_logits[row, first], label) for (row, first, _), label in zip(TEXTS, labels, strict=True)]
    assert float(sums.pair_nll) == pytest.approx(-sum(log_softmax(s)[label] for s, label in chosen), rel=1e-5)
    assert float(sums.pair_correct) == sum(s.argmax() == label for s, label in chosen) and float(sums.pairs) == 4
    expected = -log_softmax(logits[0, 1])[targets[0, 1]] - log_softmax(logits[1, 2])[targets[1, 2]]
    assert float(sums.loss) == pytest.approx(expected, rel=1e-5) and float(sums.weight) == 2


def test_partners_are_told_from_all_others_of_the_batch():
    rng = np.random.default_rng(3)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 4, 6)))
    segments = np.array([[1, 1]] * 3 + [[0, 0]], np.int32)  # the last row is padding
    zeros = np.zeros_like(segments)
    batch = Batch(zeros, zeros, zeros.astype(np.float32), zeros, segments)
    scores = a[:3] @ b[:3].T / 0.1
    one_way, other_way = -np.diag(log_softmax(scores, axis=1)), -np.diag(log_softmax(scores, axis=0))
    sums = contrastive_loss(jnp.asarray(a), jnp.asarray(b), batch, 0.1)
    assert float(sums.loss) == pytest.approx((one_way + other_way).sum() / 2, rel=1e-5)
    correct = (scores.argmax(1) == np.arange(3)).sum() + (scores.argmax(0) == np.arange(3)).sum()
    assert float(sums.correct) == correct / 2 and float(sums.weight) == 3.0
    assert float(weight_of(batch, ObjectiveConfig(name="contrastive"))) == 3.0


def test_class_weights_weigh_the_loss():
    targets, weights = np.zeros((2, 8), np.int32), np.zeros((2, 8))
    for number, (row, first, _) in enumerate(TEXTS):
        targets[row, first], weights[row, first] = number % 3, (0.5, 2.0, 1.0)[number % 3]
    logits = np.random.default_rng(4).normal(size=(2, 8, 3)).astype(np.float32)
    batch, config = batch_with(targets, weights), ObjectiveConfig(name="classification")
    sums = loss_of(Output(jnp.asarray(logits)), batch, config)
    expected = -sum(weights[r, f] * log_softmax(logits[r, f])[targets[r, f]] for r, f, _ in TEXTS)
    assert float(sums.loss) == pytest.approx(expected, rel=1e-5)
    assert float(sums.weight) == float(weight_of(batch, config)) == weights.sum()
    alike = loss_of(Output(jnp.asarray(logits)), dataclasses.replace(batch, weights=batch.weights * 2), config)
    assert float(alike.loss / alike.weight) == pytest.approx(float(sums.loss / sums.weight))


def perfect(name: str) -> tuple[Output, Batch]:
    """A batch and what a model gives that knows all of it."""
    rng = np.random.default_rng(5)
    targets = rng.integers(0, 4, (2, 8)).astype(np.int32)
    if name == "contrastive":
        batch = batch_with(targets, np.ones((2, 8)))
        return Output(embedding=jnp.eye(2), paired_embedding=jnp.eye(2)), batch
    if name == "regression":
        batch = batch_with(targets / np.float32(3), (SEGMENTS > 0) * 0.5)
        return Output(jnp.asarray(batch.targets)[..., None]), batch
    if name == "span_qa":
        targets[:] = 0
        for row, first, end in TEXTS:
            targets[row, first + 1], targets[row, end - 1] = 1, 2 + (end - first == 2)
        batch = batch_with(targets, targets > 0)
        return Output(jnp.asarray(np.stack([targets & 1, targets >> 1], axis=-1) * 50.0, jnp.float32)), batch
    for row, first, _ in TEXTS:
        targets[row, first] = row
    batch = batch_with(targets, rng.random((2, 8)) * (SEGMENTS > 0))
    next_sentence_logits = (
        None if name != "masked" else jnp.asarray(np.eye(2, dtype=np.float32)[np.minimum(targets, 1)] * 50)
    )
    return Output(
        jnp.asarray(np.eye(4, dtype=np.float32)[targets] * 50), next_sentence_logits=next_sentence_logits
    ), batch


@pytest.mark.parametrize("name", ["classification", "tagging", "masked", "regression", "span_qa", "contrastive"])
def test_what_is_right_costs_nothing(name):
    """And all of it is counted as right; padding, whatever stands there, counts nowhere."""
    output, batch = perfect(name)
    config = ObjectiveConfig(name=name)
    sums = loss_of(output, batch, config)
    assert float(sums.loss) == pytest.approx(0, abs=1e-6) and float(sums.pair_nll) == pytest.approx(0, abs=1e-6)
    assert float(sums.weight) == pytest.approx(float(weight_of(batch, config))) and float(sums.weight) > 1.5
    if name != "regression":  # of which nothing is quite right
        assert float(sums.correct) == pytest.approx(float(sums.weight))
    assert float(sums.pair_correct) == float(sums.pairs) == (4 if name == "masked" else 0)


@pytest.mark.parametrize("name", ["classification", "masked", "regression", "span_qa", "contrastive"])
def test_a_batch_of_padding_alone_has_no_loss_and_no_gradient(name):
    output, batch = perfect(name)
    zeros = np.zeros_like(SEGMENTS)
    batch = dataclasses.replace(batch, weights=zeros.astype(np.float32), segments=zeros)
    config = ObjectiveConfig(name=name)

    def loss(output: Output) -> jax.Array:
        sums = loss_of(output, batch, config)
        return (sums.loss + sums.pair_nll) / weight_of(batch, config)

    value, gradient = jax.jit(jax.value_and_grad(loss))(output)
    assert float(value) == 0
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), gradient)
