"""Figures of labels and numbers against what is worked out by hand and counted one by one."""

import itertools
import math
import warnings

import numpy as np
import pytest

from lm.evaluation.classification import (
    calibration_error,
    classification_metrics,
    confusion_counts,
    regression_metrics,
)
from lm.tasks import TASKS


def certain(predicted, num_labels):
    return np.eye(num_labels)[np.array(predicted)]


def metrics(gold, predicted, num_labels):
    return classification_metrics(np.array(gold), certain(predicted, num_labels))


@pytest.fixture(autouse=True)
def nothing_on_the_screen(capfd):
    """Neither a warning nor a print."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert capfd.readouterr() == ("", "")


def test_metrics_equal_hand_calculation():
    """Two labels: 3 true positives, 1 false one, 2 false negatives, 4 true negatives."""
    gold, predicted = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    got = metrics(gold, predicted, 2)
    assert set(got) == set(TASKS["classification"].metrics(None)[1:])
    assert got["accuracy"] == got["f1_micro"] == pytest.approx(0.7)
    assert got["f1_macro"] == pytest.approx((6 / 9 + 8 / 11) / 2)
    assert got["mcc"] == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))
    assert got["calibration_error"] == pytest.approx(0.3)  # always certain, and wrong three times of ten
    assert confusion_counts(np.array(gold), np.array(predicted), 3).tolist() == [[4, 1, 0], [2, 3, 0], [0, 0, 0]]


def by_counting(gold, predicted):
    """Macro F1 over the labels that occur, and the correlation of the one-hot forms (Gorodkin 2004)."""
    scores = []
    for label in sorted({*gold, *predicted}):
        hits = sum(a == b == label for a, b in zip(gold, predicted, strict=True))
        wrong = sum((a == label) != (b == label) for a, b in zip(gold, predicted, strict=True))
        scores.append(2 * hits / (2 * hits + wrong))
    size = max(*gold, *predicted) + 1
    first, second = (
        np.eye(size)[np.array(each)] - np.eye(size)[np.array(each)].mean(axis=0) for each in (gold, predicted)
    )
    spread = math.sqrt((first**2).sum() * (second**2).sum())
    return sum(scores) / len(scores), (first * second).sum() / spread if spread else 0.0


def test_metrics_equal_counting_one_by_one():
    draw = np.random.default_rng(0)
    for _ in range(30):
        num_labels, size = draw.integers(2, 5), draw.integers(1, 12)
        gold, predicted = draw.integers(num_labels, size=(2, size)).tolist()
        got = metrics(gold, predicted, num_labels)
        f1_macro, mcc = by_counting(gold, predicted)
        assert got["f1_macro"] == pytest.approx(f1_macro) and got["mcc"] == pytest.approx(mcc), (gold, predicted)
        assert got["accuracy"] == pytest.approx(np.mean(np.equal(gold, predicted)))


def test_absent_labels_do_not_count_in_macro_f1():
    # Label 3 occurs nowhere and does not count; 1 is never predicted and 2 never right: both have 0.
    assert metrics([0, 0, 1], [0, 0, 2], 4)["f1_macro"] == pytest.approx((1 + 0 + 0) / 3)


def test_constant_predictions_and_single_examples_have_mcc_0():
    got = metrics([0, 1, 1, 0], [1, 1, 1, 1], 2)
    assert (got["accuracy"], got["mcc"]) == (0.5, 0) and got["f1_macro"] == pytest.approx((0 + 2 / 3) / 2)
    assert metrics([2], [2], 3) == {"accuracy": 1, "f1_macro": 1, "f1_micro": 1, "mcc": 0, "calibration_error": 0}
    assert metrics([2], [1], 3) == {"accuracy": 0, "f1_macro": 0, "f1_micro": 0, "mcc": 0, "calibration_error": 1}


def test_first_label_wins_ties():
    got = classification_metrics(np.array([0, 1]), np.array([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]], np.float32))
    assert got["accuracy"] == 1 and got["calibration_error"] == pytest.approx(0.6)


def test_metrics_of_diverged_model_are_nan():
    got = classification_metrics(np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, np.nan]]))
    assert set(got) == set(TASKS["classification"].metrics(None)[1:]) and all(map(math.isnan, got.values()))
    got = regression_metrics(np.array([0.0, 1.0]), np.array([0.0, np.inf]))
    assert set(got) == set(TASKS["regression"].metrics(None)[1:]) and all(map(math.isnan, got.values()))


def test_calibration_error_bin_by_bin():
    draw = np.random.default_rng(1)
    confidence = np.concatenate([draw.uniform(0.2, 1, 300), np.arange(1, 16) / 15, [1.0]])
    correct = draw.random(len(confidence)) < confidence**2
    expected, bounds = 0.0, [i / 15 for i in range(16)]
    for low, high in itertools.pairwise(bounds):
        inside = [i for i, each in enumerate(confidence) if low < each <= high]
        if inside:
            gap = abs(np.mean(correct[inside]) - np.mean(confidence[inside]))
            expected += len(inside) / len(confidence) * gap
    assert calibration_error(correct, confidence) == pytest.approx(expected, rel=1e-9)


def test_calibration_error_of_perfect_and_overconfident_predictions():
    correct = np.arange(100) % 4 != 0
    assert calibration_error(correct, np.full(100, 0.75, np.float32)) == pytest.approx(0)
    assert calibration_error(correct, np.full(100, 0.99)) == pytest.approx(0.24)
    # A softmax in float32 may give a hair more than 1.
    assert calibration_error(np.array([True]), np.array([1.0000001])) == pytest.approx(0, abs=1e-6)


def test_regression_metrics_equal_hand_calculation():
    gold, predicted = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 9.0], np.float32)
    got = regression_metrics(gold, predicted)
    assert got["mean_squared_error"] == pytest.approx((0 + 1 + 1 + 25) / 4)
    assert got["spearman"] == pytest.approx(1 - 6 * (0 + 1 + 1 + 0) / (4 * 15))
    deviations = (gold - 2.5, predicted - 3.75)
    expected = (deviations[0] @ deviations[1]) / math.sqrt((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum())
    assert got["pearson"] == pytest.approx(expected)


def test_line_has_full_correlation_and_curve_full_rank_correlation():
    gold = np.linspace(0, 3, 20)
    got = regression_metrics(gold, 5 - 2 * gold)
    assert got["pearson"] == pytest.approx(-1) and got["spearman"] == pytest.approx(-1)
    got = regression_metrics(gold, np.exp(3 * gold))
    assert got["spearman"] == pytest.approx(1) and got["pearson"] < 0.9


@pytest.mark.parametrize(("gold", "predicted"), [([1, 2, 3], [2, 2, 2]), ([2, 2], [1, 3]), ([1], [3])])
def test_correlation_of_constant_values_is_0(gold, predicted):
    got = regression_metrics(np.array(gold, float), np.array(predicted, float))
    assert got["pearson"] == got["spearman"] == 0
    assert got["mean_squared_error"] == pytest.approx(np.mean((np.array(gold) - np.array(predicted)) ** 2))


def test_nearly_constant_predictions_give_no_warning():
    assert -1 <= regression_metrics(np.arange(3.0), np.array([5.0, 5.0, 5.0 + 1e-15]))["pearson"] <= 1
