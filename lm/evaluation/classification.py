"""Metrics for predicted labels and numbers, such as F1 and the Matthews correlation coefficient (MCC).

They are computed with scikit-learn and SciPy, which are slow to import and are therefore imported on first use.

E is the number of examples, and C is the number of labels.
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
    """Computes LABEL_METRICS from the indices of the true labels and the predicted probabilities of all labels.

    The prediction is the most probable label; ties go to the first label. The definitions follow scikit-learn.

    `f1_macro` is the mean F1 over all labels that occur as a true or predicted label; the F1 of a label that
    is never predicted correctly is 0. `f1_micro` pools the counts of all labels and equals the accuracy. `mcc` is the
    Matthews correlation coefficient, from -1 to 1 (Matthews 1975; Gorodkin 2004 for more than two labels). MCC is 0 if
    all predictions, or all true labels, are the same. All metrics are NaN if a probability is not finite.
    """
    assert len(gold_E) == len(probabilities_EC) > 0, (gold_E.shape, probabilities_EC.shape)
    if not np.isfinite(probabilities_EC).all():
        return dict.fromkeys(names(LABEL_METRICS), math.nan)
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted_E = probabilities_EC.argmax(axis=1)
    with warnings.catch_warnings(action="ignore"):  # scikit-learn warns if only one label occurs
        return {
            "accuracy": float(accuracy_score(gold_E, predicted_E)),
            "f1_macro": float(f1_score(gold_E, predicted_E, average="macro", zero_division=0)),
            "f1_micro": float(f1_score(gold_E, predicted_E, average="micro", zero_division=0)),
            "mcc": float(matthews_corrcoef(gold_E, predicted_E)),
            "calibration_error": calibration_error(gold_E == predicted_E, probabilities_EC.max(axis=1)),
        }


def calibration_error(correct_E: np.ndarray, confidence_E: np.ndarray) -> float:
    """Computes the expected calibration error (Naeini 2015) with 15 confidence bins of equal width.

    The error is the mean of |accuracy - mean confidence| over the bins, weighted by the number of examples in each bin.
    A bin includes its upper bound but not its lower bound (Guo 2017).
    """
    bins_E = np.clip(np.ceil(confidence_E.astype(np.float64) * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1)
    # The number n of examples in a bin cancels out: n / E * |correct / n - confidence / n|.
    surplus_E = correct_E.astype(np.float64) - confidence_E
    return float(np.abs(np.bincount(bins_E.astype(np.int64), surplus_E)).sum() / len(correct_E))


def confusion_counts(gold_E: np.ndarray, predicted_E: np.ndarray, num_labels: int) -> np.ndarray:
    """Returns the confusion matrix, int64 (C, C). Entry [r, c] is how often label r was predicted as label c."""
    return np.bincount(gold_E * num_labels + predicted_E, minlength=num_labels**2).reshape(num_labels, num_labels)


def regression_metrics(gold_E: np.ndarray, predicted_E: np.ndarray) -> dict[str, float]:
    """Computes NUMBER_METRICS. All metrics are NaN if a prediction is not finite.

    The correlations, from -1 to 1, are 0 if all predictions or all labels are the same.
    """
    assert gold_E.shape == predicted_E.shape and gold_E.ndim == 1 and len(gold_E), (gold_E.shape, predicted_E.shape)
    if not np.isfinite(predicted_E).all():
        return dict.fromkeys(names(NUMBER_METRICS), math.nan)
    gold_E, predicted_E = gold_E.astype(np.float64), predicted_E.astype(np.float64)
    metrics = {"pearson": 0.0, "spearman": 0.0}
    if np.ptp(gold_E) > 0 and np.ptp(predicted_E) > 0:
        from scipy.stats import pearsonr, spearmanr

        with warnings.catch_warnings(action="ignore"):  # SciPy warns if values are nearly constant
            for name, correlation in (("pearson", pearsonr), ("spearman", spearmanr)):
                value = float(correlation(gold_E, predicted_E).statistic)
                metrics[name] = value if math.isfinite(value) else 0.0
    return metrics | {"mean_squared_error": float(np.mean((gold_E - predicted_E) ** 2))}
