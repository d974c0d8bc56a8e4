"""Predicted labels and numbers of texts against the right ones, by scikit-learn and SciPy.

Both libraries are slow to import, so they are imported at the first call.

Shape letters: E examples, C labels.
"""

from __future__ import annotations

import math
import warnings

import numpy as np

from lm.evaluation.metric import Metric, names, share

LABEL_METRICS = (
    Metric("accuracy", "accuracy", share, higher_is_better=True, drawn=True, recorded=True),
    Metric("f1_macro", "macro F1", share, higher_is_better=True, drawn=True, recorded=True),
    Metric("f1_micro", "micro F1", share, higher_is_better=True),
    Metric("mcc", "MCC", higher_is_better=True, recorded=True),
    Metric("calibration_error", "calibration error", share),
)
NUMBER_METRICS = (
    Metric("pearson", "Pearson", higher_is_better=True),
    Metric("spearman", "Spearman", higher_is_better=True),
    Metric("mean_squared_error", "mean squared error", "{:.4g}".format),
)

CALIBRATION_BINS = 15


def classification_metrics(gold_E: np.ndarray, probabilities_EC: np.ndarray) -> dict[str, float]:
    """Returns LABEL_METRICS from the indices of the right labels and the probabilities of all labels.

    The prediction is the label of the highest probability, the first of equals. As in scikit-learn:

    `f1_macro` is the mean over the labels that occur among the right or the predicted ones; a label that is never
    predicted rightly has F1 0. `f1_micro` counts over all labels; with one label per example it equals the accuracy.
    `mcc` (-1 to 1; Matthews 1975; Gorodkin 2004 for more than two labels) is 0 if all predictions, or all right labels,
    are the same.

    All are NaN if a probability is not finite, because the model has diverged.
    """
    assert len(gold_E) == len(probabilities_EC) > 0, (gold_E.shape, probabilities_EC.shape)
    if not np.isfinite(probabilities_EC).all():
        return dict.fromkeys(names(LABEL_METRICS), math.nan)
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted_E = probabilities_EC.argmax(axis=1)
    with warnings.catch_warnings(action="ignore"):  # there may be a single label, which the metrics show
        return {
            "accuracy": float(accuracy_score(gold_E, predicted_E)),
            "f1_macro": float(f1_score(gold_E, predicted_E, average="macro", zero_division=0)),
            "f1_micro": float(f1_score(gold_E, predicted_E, average="micro", zero_division=0)),
            "mcc": float(matthews_corrcoef(gold_E, predicted_E)),
            "calibration_error": calibration_error(gold_E == predicted_E, probabilities_EC.max(axis=1)),
        }


def calibration_error(correct_E: np.ndarray, confidence_E: np.ndarray) -> float:
    """Returns the expected calibration error (Naeini 2015) over 15 bins of equal width of the confidence.

    That is the mean over examples of |accuracy in its bin - mean confidence in its bin|. A bin includes its upper bound
    and not its lower one (Guo 2017).
    """
    bins_E = np.clip(np.ceil(confidence_E.astype(np.float64) * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1)
    # The size of a bin cancels: n / E * |correct / n - confidence / n|.
    surplus_E = correct_E.astype(np.float64) - confidence_E
    return float(np.abs(np.bincount(bins_E.astype(np.int64), surplus_E)).sum() / len(correct_E))


def confusion_counts(gold_E: np.ndarray, predicted_E: np.ndarray, num_labels: int) -> np.ndarray:
    """Returns the number of times that label r (row) was predicted as label c (column), int64 (C, C)."""
    from sklearn.metrics import confusion_matrix

    with warnings.catch_warnings(action="ignore"):
        return np.asarray(confusion_matrix(gold_E, predicted_E, labels=np.arange(num_labels)), np.int64)


def regression_metrics(gold_E: np.ndarray, predicted_E: np.ndarray) -> dict[str, float]:
    """Returns NUMBER_METRICS; the correlations are from -1 to 1.

    A correlation is 0 if it is undefined because all predictions or all labels are the same (or there is only one).
    All are NaN if a prediction is not finite.
    """
    assert gold_E.shape == predicted_E.shape and gold_E.ndim == 1 and len(gold_E), (gold_E.shape, predicted_E.shape)
    if not np.isfinite(predicted_E).all():
        return dict.fromkeys(names(NUMBER_METRICS), math.nan)
    gold_E, predicted_E = gold_E.astype(np.float64), predicted_E.astype(np.float64)
    metrics = {"pearson": 0.0, "spearman": 0.0}
    if np.ptp(gold_E) > 0 and np.ptp(predicted_E) > 0:
        from scipy.stats import pearsonr, spearmanr

        with warnings.catch_warnings(action="ignore"):  # values may be nearly constant
            for name, correlation in (("pearson", pearsonr), ("spearman", spearmanr)):
                value = float(correlation(gold_E, predicted_E).statistic)
                metrics[name] = value if math.isfinite(value) else 0.0
    return metrics | {"mean_squared_error": float(np.mean((gold_E - predicted_E) ** 2))}
