"""Baselines for labels and numbers: the most frequent label, the mean number, and linear models on word n-grams.

C is the number of labels, E is the number of examples, and F is the number of features.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lm.data.reading.readers import Labelled
from lm.evaluation import scripts
from lm.evaluation.baselines.baseline import BaselineSetup, LabelBaseline, NotComputed, limited, raw_examples

# Bounds on the cost. With scikit-learn's solver, 2^22 coefficients need about 1 GB of memory.
MOST_CHARACTERS = 1 << 26  # of training text
MOST_COEFFICIENTS = 1 << 22  # features times labels; the most frequent n-grams are kept
LOGISTIC = (0.3, 1.0, 3.0, 10.0, 30.0)  # inverse strengths of the L2 penalty
MOST_ITERATIONS = 1000  # of scikit-learn's solver for logistic regression
RIDGE = (0.1, 0.3, 1.0, 3.0, 10.0)  # strengths of the L2 penalty


class MajorityLabel(LabelBaseline):
    """Predicts each label with a probability equal to its share of the training examples."""

    name = "majority class"

    def outputs(
        self, setup: BaselineSetup, train: Sequence[Labelled], raw: Sequence[Labelled]
    ) -> tuple[np.ndarray, str]:
        counts = Counter(example.label for example in train)
        shares_C = np.array([counts[label] / len(train) for label in setup.config.data.labels])
        label = setup.config.data.labels[int(shares_C.argmax())]
        return np.tile(shares_C, (len(raw), 1)), f"{label!r}, {shares_C.max():.1%} of the training examples"


class MeanNumber(LabelBaseline):
    name = "mean"

    def outputs(
        self, setup: BaselineSetup, train: Sequence[Labelled], raw: Sequence[Labelled]
    ) -> tuple[np.ndarray, str]:
        mean = float(np.mean([float(example.label) for example in train]))
        return np.full(len(raw), mean), f"{mean:.4g}, the mean of the training examples"


class LogisticNgrams(LabelBaseline):
    """Logistic regression on the tf-idf of word unigrams and bigrams. The penalty is chosen on the validation split."""

    name = "n-grams, logistic regression"
    needs_valid = True

    def outputs(
        self, setup: BaselineSetup, train: Sequence[Labelled], raw: Sequence[Labelled]
    ) -> tuple[np.ndarray, str]:
        from sklearn.linear_model import LogisticRegression

        labels = setup.config.data.labels
        train, note = limited(train, _size, MOST_CHARACTERS)
        gold = [example.label for example in train]
        if len(set(gold)) < 2:
            raise NotComputed(f"all training examples have the label {gold[0]!r}")
        vectorizer = _vectorizer(len(labels))
        features_EF = vectorizer.fit_transform(map(_text, train))

        def fit(strength: float) -> Any:
            with warnings.catch_warnings(action="ignore"):  # the description says so if the solver did not converge
                return LogisticRegression(C=strength, max_iter=MOST_ITERATIONS).fit(features_EF, gold)

        def accuracy(model: Any, features: Any, valid: Sequence[Labelled]) -> float:
            return float(np.mean(model.predict(features) == np.array([example.label for example in valid])))

        model, strength = _best(setup, vectorizer, LOGISTIC, fit, accuracy)
        probabilities_EC = np.zeros((len(raw), len(labels)))
        columns = [labels.index(label) for label in model.classes_.tolist()]
        probabilities_EC[:, columns] = model.predict_proba(vectorizer.transform(map(_text, raw)))
        stopped = "did not converge" if max(model.n_iter_) >= MOST_ITERATIONS else ""
        return probabilities_EC, _describe(setup, features_EF.shape[1], f"C={strength:g}", stopped, note)


class RidgeNgrams(LabelBaseline):
    """Ridge regression on the tf-idf of word unigrams and bigrams. The penalty is chosen on the validation split."""

    name = "n-grams, ridge regression"
    needs_valid = True

    def outputs(
        self, setup: BaselineSetup, train: Sequence[Labelled], raw: Sequence[Labelled]
    ) -> tuple[np.ndarray, str]:
        from sklearn.linear_model import Ridge

        train, note = limited(train, _size, MOST_CHARACTERS)
        gold_E = np.array([float(example.label) for example in train])
        vectorizer = _vectorizer(1)
        features_EF = vectorizer.fit_transform(map(_text, train))

        def fit(strength: float) -> Any:
            return Ridge(alpha=strength, solver="sparse_cg").fit(features_EF, gold_E)

        def closeness(model: Any, features: Any, valid: Sequence[Labelled]) -> float:
            return -float(np.mean((model.predict(features) - [float(example.label) for example in valid]) ** 2))

        model, strength = _best(setup, vectorizer, RIDGE, fit, closeness)
        predicted_E = model.predict(vectorizer.transform(map(_text, raw)))
        return predicted_E, _describe(setup, features_EF.shape[1], f"alpha={strength:g}", note)


def _text(example: Labelled) -> str:
    """Joins the texts of an example. In scripts without spaces, each character is a word."""
    return scripts.spaced(" ".join(example.texts))


def _size(example: Labelled) -> int:
    return sum(map(len, example.texts))


def _vectorizer(num_outputs: int) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    most = MOST_COEFFICIENTS // max(1, num_outputs)
    return TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True, max_features=most)


def _best(
    setup: BaselineSetup,
    vectorizer: Any,
    strengths: Sequence[float],
    fit: Callable[[float], Any],
    quality: Callable[[Any, Any, Sequence[Labelled]], float],
) -> tuple[Any, float]:
    """Fits a model with each penalty strength. Returns the best model on the validation split, and its strength.

    Raises NotComputed if no model has a finite quality.
    """
    valid = raw_examples(setup.valid)
    features = vectorizer.transform(map(_text, valid))
    found: tuple[float, Any, float] | None = None
    for number, strength in enumerate(strengths):
        if setup.report is not None:
            setup.report(number, len(strengths), "models")
        model = fit(strength)
        if (value := quality(model, features, valid)) > (found[0] if found else -np.inf):
            found = value, model, strength
    if found is None:
        raise NotComputed("the models' predictions for the validation split are not finite numbers")
    return found[1], found[2]


def _describe(setup: BaselineSetup, num_features: int, strength: str, *notes: str) -> str:
    features = f"tf-idf of {num_features:,} word 1- and 2-grams"
    chosen = f"{strength}, chosen on the validation split"
    # The data sources of a split may be scored separately, so stores are compared one by one.
    of_valid = {store.fingerprint for store in setup.valid.values()}
    if any(store.fingerprint in of_valid for store in setup.stores.values()):
        chosen += ", which is also scored"
    return "; ".join(filter(None, [features, chosen, *notes]))
