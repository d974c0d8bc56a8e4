"""Baselines for labels, numbers, tags, candidates and texts, against closed forms, other solvers and counts by hand."""

import contextlib
import itertools
import math
import random
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize

from lm.data.reading.readers import Labelled, Pair, Tagged
from lm.evaluation import scripts
from lm.evaluation.baselines import labels as label_baselines
from lm.evaluation.baselines import tags as tag_baselines
from lm.evaluation.baselines.baseline import BaselineSetup, NotComputed, limited
from lm.evaluation.baselines.choices import LongestCandidate, RandomCandidate
from lm.evaluation.baselines.labels import LogisticNgrams, MajorityLabel, MeanNumber, RidgeNgrams
from lm.evaluation.baselines.tags import ConditionalRandomField, MostFrequentTag, features
from lm.evaluation.baselines.texts import Copy, Lead
from lm.tasks import TASKS
from lm.tasks.multiple_choice import Choice
from tests.evaluation.table_model import config_of


def setup_of(task, train, valid, evaluated, references=None, prefixes=None, labels=()):
    """`evaluated` maps data sources to raw examples."""
    config = SimpleNamespace(
        data=SimpleNamespace(labels=labels),
        seed=3,
        eval=SimpleNamespace(
            tag_scheme="IOB2", generation=SimpleNamespace(metrics=("bleu", "rouge"), bleu_tokenize="13a")
        ),
    )
    stores = {name: SimpleNamespace(raw=raw, fingerprint=repr(raw)) for name, raw in evaluated.items()}
    sides = [{"s": SimpleNamespace(raw=raw, fingerprint=repr(raw))} for raw in (train, valid)]
    return BaselineSetup(config, TASKS[task], None, *sides, stores, references or {}, prefixes or {})


def texts(number, seed):
    """Returns random texts whose label depends on which of the words `good` and `bad` occur more often."""
    draw, found = random.Random(seed), []
    for _ in range(number):
        words = draw.choices(["good", "bad", "not", "film", "a", "b"], k=draw.randint(1, 9))
        score = words.count("good") - words.count("bad") + draw.gauss(0, 0.5)
        found.append((" ".join(words), score))
    return found


def labelled(pairs):
    return [Labelled(text, None, "pos" if score > 0 else "neg") for text, score in pairs]


def tf_idf(train, other):
    """Word 1- and 2-grams with sublinear counts, smoothed inverse document frequencies and unit length, (E, F)."""

    def grams(text):
        words = text.split()
        return words + list(itertools.pairwise(words))

    names = sorted({gram for text in train for gram in grams(text)}, key=str)

    def counts(texts):
        return np.array([[grams(text).count(name) for name in names] for text in texts], float)

    df = np.count_nonzero(counts(train), axis=0)
    idf = np.log((1 + len(train)) / (1 + df)) + 1

    def weighted(texts):
        c = counts(texts)
        x = np.where(c > 0, 1 + np.log(np.maximum(c, 1)), 0) * idf
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    return weighted(train), weighted(other)


def test_majority_class_predicts_the_shares_of_the_training_labels():
    train = [Labelled("t", None, label) for label in "aaabbc"]
    evaluated = {"one": [Labelled("x", None, "a"), Labelled("y", None, "b")], "two": [Labelled("z", None, "a")]}
    setup = setup_of("classification", train, [], evaluated, labels=("a", "b", "c"))
    scores = MajorityLabel().score(setup)
    assert scores.metrics["accuracy"] == 2 / 3 and scores.metrics["mcc"] == 0
    assert (scores.metrics["one/accuracy"], scores.metrics["two/accuracy"]) == (1 / 2, 1)
    assert scores.metrics["calibration_error"] == pytest.approx(2 / 3 - 1 / 2)
    assert scores.signatures == {"majority class": "'a', 50.0% of the training examples"}


def test_logistic_regression_equals_another_solver_on_features_by_hand(monkeypatch):
    monkeypatch.setattr(label_baselines, "LOGISTIC", (3.0,))
    train, evaluated = texts(60, 0), texts(40, 1)
    setup = setup_of("classification", labelled(train), [Labelled("x", None, "pos")], {}, labels=("neg", "pos"))
    found, settings = LogisticNgrams().outputs(setup, labelled(train), labelled(evaluated))
    x, z = tf_idf([text for text, _ in train], [text for text, _ in evaluated])
    signs = np.array([1.0 if score > 0 else -1.0 for _, score in train])

    def objective(w):
        return 0.5 * w[:-1] @ w[:-1] + 3.0 * np.logaddexp(0, -signs * (x @ w[:-1] + w[-1])).sum()

    w = minimize(objective, np.zeros(x.shape[1] + 1), method="BFGS", options={"gtol": 1e-6}).x
    np.testing.assert_allclose(found[:, 1], 1 / (1 + np.exp(-(z @ w[:-1] + w[-1]))), atol=1e-3)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert settings == f"tf-idf of {x.shape[1]} word 1- and 2-grams; C=3, chosen on the validation split"


def test_ridge_regression_equals_the_normal_equations(monkeypatch):
    monkeypatch.setattr(label_baselines, "RIDGE", (0.3,))
    train, evaluated = texts(60, 0), texts(40, 1)
    raw, other = ([Labelled(text, None, str(score)) for text, score in each] for each in (train, evaluated))
    found, _ = RidgeNgrams().outputs(setup_of("regression", raw, raw[:3], {}), raw, other)
    x, z = tf_idf([text for text, _ in train], [text for text, _ in evaluated])
    y = np.array([score for _, score in train])
    centred = x - x.mean(axis=0)
    w = np.linalg.solve(centred.T @ centred + 0.3 * np.eye(x.shape[1]), centred.T @ (y - y.mean()))
    np.testing.assert_allclose(found, y.mean() + (z - x.mean(axis=0)) @ w, atol=1e-3)


def test_the_penalty_is_chosen_on_the_validation_split():
    """The strong penalties cannot learn the rare word; the validation split rewards the one that can."""
    train = labelled([("film", 1)] * 30 + [("film rare", -1)] * 4)
    valid = labelled([("film rare", -1)] * 5 + [("film", 1)])
    setup = setup_of("classification", train, valid, {"s": valid}, labels=("neg", "pos"))
    reports = []
    setup = BaselineSetup(**{**vars(setup), "report": lambda *args: reports.append(args)})
    scores = LogisticNgrams().score(setup)
    assert scores.metrics["accuracy"] == 1
    strength = re.search("C=([0-9.]+), chosen on", scores.signatures[LogisticNgrams.name])
    assert float(strength[1]) > min(label_baselines.LOGISTIC)
    assert reports == [(number, 5, "models") for number in range(5)]
    assert scores.signatures[LogisticNgrams.name].endswith(", chosen on the validation split, which is also scored")
    other = setup_of("classification", train, valid, {"s": train}, labels=("neg", "pos"))
    assert LogisticNgrams().score(other).signatures[LogisticNgrams.name].endswith(", chosen on the validation split")


def test_a_solver_that_stops_early_is_named(monkeypatch):
    monkeypatch.setattr(label_baselines, "MOST_ITERATIONS", 2)
    train = labelled(texts(40, 0))
    setup = setup_of("classification", train, train[:20], {"s": train}, labels=("neg", "pos"))
    assert LogisticNgrams().score(setup).signatures[LogisticNgrams.name].endswith("; did not converge")


def test_predictions_that_are_not_numbers_are_no_baseline():
    raw = [Labelled("good film", None, str(number)) for number in (1.0, 2.0)]
    nan = [Labelled("good", None, "nan")]
    with pytest.raises(NotComputed, match="are not finite numbers"):
        RidgeNgrams().score(setup_of("regression", raw, nan, {"s": raw}))


def test_labels_that_do_not_vary_have_no_linear_model():
    raw = [Labelled("x", None, "a")] * 3
    with pytest.raises(NotComputed, match="all training examples have the label 'a'"):
        LogisticNgrams().score(setup_of("classification", raw, raw, {"s": raw}, labels=("a", "b")))


def test_labels_without_training_examples_have_probability_zero():
    raw = labelled(texts(40, 0))
    setup = setup_of("classification", raw, raw, {"s": raw}, labels=("extra", "neg", "pos"))
    found, _ = LogisticNgrams().outputs(setup, raw, raw)
    assert not found[:, 0].any() and np.allclose(found.sum(axis=1), 1)


def test_chinese_is_split_into_characters():
    train = [Labelled(text, None, label) for text, label in [("好看", "pos"), ("难看", "neg")] * 5]
    setup = setup_of("classification", train, train, {"s": train}, labels=("neg", "pos"))
    scores = LogisticNgrams().score(setup)
    assert scores.metrics["accuracy"] == 1 and "tf-idf of 5 word" in scores.signatures[LogisticNgrams.name]


def test_mean_has_the_variance_as_its_squared_error():
    raw = [Labelled("x", None, str(number)) for number in (1.0, 2.0, 6.0)]
    scores = MeanNumber().score(setup_of("regression", raw, [], {"s": raw}))
    assert scores.metrics == {"pearson": 0.0, "spearman": 0.0, "mean_squared_error": pytest.approx(14 / 3)}


def test_most_frequent_tag_by_hand():
    train = [Tagged(("New", "York", "is", "new"), ("B-LOC", "I-LOC", "O", "O")), Tagged(("New", "is"), ("O", "O"))]
    raw = [Tagged(("New", "York", "unseen", "York"), ("B-LOC", "I-LOC", "O", "B-LOC"))]
    setup = setup_of("tagging", train, [], {"s": raw}, labels=("B-LOC", "I-LOC", "O"))
    found, settings = MostFrequentTag().outputs(setup, train, raw)
    assert found == [["B-LOC", "I-LOC", "O", "I-LOC"]], "a tie goes to the first label; unknown words get O"
    assert settings == "unknown words (25.0%) are tagged 'O'"
    assert MostFrequentTag().score(setup).metrics["token_accuracy"] == 3 / 4


def test_features_of_words():
    first, second = features(("In", "NYC"))
    assert first == ["bias", "lower=in", "shape=010", "[-3:]=In", "[-2:]=In", "first", "+1:lower=nyc", "+1:shape=100"]
    assert second[5:] == ["-1:lower=in", "-1:shape=010", "last"]


def test_missing_crf_library_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycrfsuite", None)
    raw = [Tagged(("a",), ("O",))]
    with pytest.raises(NotComputed, match=r"python-crfsuite is not installed; run `pip install -r requirements-"):
        ConditionalRandomField().score(setup_of("tagging", raw, [], {"s": raw}, labels=("O",)))


def test_crf_receives_all_sentences_and_reports_iterations(monkeypatch):
    """A stand-in for python-crfsuite that tags each word with the tag of the same features in training."""
    known, reports = {}, []

    class Trainer:
        def __init__(self, algorithm, params, verbose):
            assert (algorithm, verbose, params) == ("lbfgs", False, tag_baselines.SETTINGS)

        def append(self, items, tags):
            known.update(zip(map(tuple, items), tags, strict=True))

        def train(self, path):
            self.on_iteration("", {"num": 7})

    class Tagger:
        def open(self, path):
            return contextlib.nullcontext()

        def tag(self, items):
            return [known[tuple(item)] for item in items]

    monkeypatch.setitem(sys.modules, "pycrfsuite", SimpleNamespace(Trainer=Trainer, Tagger=Tagger))
    raw = [Tagged(("In", "NYC"), ("O", "B-LOC")), Tagged(("NYC", "sleeps"), ("B-LOC", "O"))]
    setup = setup_of("tagging", raw, [], {"s": raw}, labels=("B-LOC", "O"))
    setup = BaselineSetup(**{**vars(setup), "report": lambda *args: reports.append(args)})
    assert ConditionalRandomField().score(setup).metrics["entity_f1"] == 1
    assert reports == [(7, 100, "iterations")]


def test_crf_learns_a_context():
    """The tag of `x` depends on the word before it, which the most frequent tag cannot express."""
    pytest.importorskip("pycrfsuite")
    raw = [Tagged(("a", "x"), ("O", "B-A")), Tagged(("b", "x"), ("O", "B-B"))] * 10
    setup = setup_of("tagging", raw, [], {"s": raw}, labels=("B-A", "B-B", "O"))
    assert ConditionalRandomField().score(setup).metrics["entity_f1"] == 1
    assert MostFrequentTag().score(setup).metrics["entity_f1"] == 1 / 2


def test_candidates():
    raw = [Choice("q", ("a", "bbb", "cc"), 1), Choice("q", ("aa", "bb"), 0), Choice("q", ("a", "bb"), 0)]
    setup = setup_of("multiple_choice", raw, [], {"s": raw})
    assert LongestCandidate().score(setup).metrics == {"accuracy": 2 / 3}
    many = [Choice("q", ("a", "b"), index % 2) for index in range(2000)]
    scores = RandomCandidate().score(setup_of("multiple_choice", many, [], {"s": many}))
    assert scores.metrics["accuracy"] == pytest.approx(1 / 2, abs=4 * math.sqrt(0.25 / 2000))
    assert scores.signatures == {"random candidate": "expected accuracy 50.00%"}
    assert scores == RandomCandidate().score(setup_of("multiple_choice", many, [], {"s": many}))


def test_copy_and_lead_are_scored_without_the_prefix():
    pairs = [Pair("copy: one two three four. Five six.", ("one two three four.", "x"))]
    setup = setup_of("seq2seq", [], [], {}, {"s": pairs}, {"s": "copy: "})
    found = Lead(1).score(setup)
    assert found.metrics["bleu"] == pytest.approx(100) and found.metrics["rougeL"] == 100
    assert found.signatures["bleu"].startswith("nrefs:2|") and "rouge" in found.signatures
    copied = Copy().score(setup).metrics  # precision 4 of 6, recall 1
    assert copied["rouge1"] == pytest.approx(80) and copied["bleu"] < 100


def test_metrics_choose_the_baselines_of_pairs():
    def names(*metrics):
        config = config_of("classification")
        object.__setattr__(config.eval.generation, "metrics", metrics)
        return [each.name for each in TASKS["seq2seq"].baselines(config)]

    assert names("rouge") == ["lead-1", "lead-3"] and names("bleu", "chrf") == ["copy of the source"]
    assert names("bleu", "rouge") == ["lead-1", "lead-3", "copy of the source"] and names() == []


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ('One. Two? "Three!" Four', ["One.", "Two?", '"Three!"', "Four"]),
        ("A value of 3.5 is high... Really (yes.) ok", ["A value of 3.5 is high...", "Really (yes.)", "ok"]),
        ("第一句。“第二句！”第三句", ["第一句。", "“第二句！”", "第三句"]),
        ("a line\nanother\n\n", ["a line", "another"]),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    assert scripts.sentences(text) == sentences


def test_large_training_data_is_thinned_evenly():
    chosen, note = limited(range(10), lambda _: 3, 12)
    assert (chosen, note) == ([0, 2, 5, 7], "fitted to 4 of 10 training examples")
    assert limited(range(4), lambda _: 3, 12) == ([0, 1, 2, 3], "")
