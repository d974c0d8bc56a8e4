"""Entities as seqeval's strict mode counts them: by hand, against seqeval itself, and in each scheme."""

import random
import warnings

import numpy as np
import pytest

from lm.evaluation.tagging import entity_counts, tagging_metrics, word_counts
from lm.tasks import TASKS


def metrics_of(gold, predicted, scheme="IOB2"):
    return tagging_metrics(word_counts(gold, predicted), entity_counts(gold, predicted, scheme))


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def counts(gold, predicted, scheme="IOB2"):
    """(correct, predicted, right) of one sentence."""
    return tuple(entity_counts([gold.split()], [predicted.split()], scheme)[0].tolist())


def test_metrics_equal_hand_calculation():
    gold = ["B-per I-per O B-loc".split(), "O B-loc I-loc O".split()]
    predicted = ["B-per I-per O B-per".split(), "B-loc I-loc I-loc O".split()]
    got = metrics_of(gold, predicted)
    assert set(got) == set(TASKS["tagging"].metrics(None)[1:])
    # One of three is right in bounds and type; 2 + 2 of 8 words... of which the first sentence has 3 and the second 2.
    assert got == {
        "entity_f1": pytest.approx(1 / 3),
        "entity_precision": pytest.approx(1 / 3),
        "entity_recall": pytest.approx(1 / 3),
        "token_accuracy": pytest.approx(5 / 8),
    }
    assert word_counts(gold, predicted).tolist() == [[3, 4], [2, 4]]


@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [
        ("B-per I-per O", "I-per I-per O", (0, 0, 1)),  # no beginning: no entity
        ("B-per I-per O", "B-per I-loc O", (0, 1, 1)),  # the I- of another type ends it, and begins none
        ("B-per O I-per", "B-per O I-per", (1, 1, 1)),  # nor does it in the right tags
        ("B-per B-per O", "B-per I-per O", (0, 1, 2)),
        ("O O", "O O", (0, 0, 0)),
        ("O O", "I-per I-per", (0, 0, 0)),
        ("B I O B", "B I O B", (2, 2, 2)),  # tags without a type
    ],
)
def test_tags_that_break_the_scheme_make_no_entity(gold, predicted, expected):
    assert counts(gold, predicted) == expected


@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [
        ("B-loc M-loc E-loc S-per", "B-loc M-loc E-loc S-per", (2, 2, 2)),
        ("B-loc M-loc E-loc S-per", "B-loc E-loc O S-per", (1, 2, 2)),
        ("B-loc E-loc", "B-loc M-loc", (0, 0, 1)),  # no end: no entity
        ("B-loc E-loc", "M-loc E-loc", (0, 0, 1)),
        ("B M E S", "B E S S", (1, 3, 2)),  # words of Chinese, as they are cut: here the last is right
    ],
)
def test_bmes_entities(gold, predicted, expected):
    assert counts(gold, predicted, "BMES") == expected
    renamed = [text.replace("M", "I") for text in (gold, predicted)]
    assert counts(*renamed, "IOBES") == expected
    renamed = [text.replace("E", "L").replace("S", "U") for text in renamed]
    assert counts(*renamed, "BILOU") == expected


def test_tags_without_a_scheme_have_accuracy_only():
    assert tagging_metrics(word_counts([["NOUN", "VERB"]], [["NOUN", "NOUN"]]), None) == {"token_accuracy": 0.5}


def test_iob1_entities_are_adjacent_words_of_a_type():
    got = metrics_of(["O I-a I-a I-b".split()], ["O I-a I-a I-a".split()], "IOB1")
    assert (got["entity_precision"], got["entity_recall"], got["token_accuracy"]) == (0, 0, 0.75)
    assert counts("O I-a I-a O I-b", "O I-a I-a O I-b", "IOB1") == (2, 2, 2)


@pytest.mark.parametrize("scheme", ["IOB2", "BMES"])
def test_metrics_without_any_entity_are_0(scheme):
    got = metrics_of([["O", "O"]], [["O", "O"]], scheme)
    assert got == {"entity_f1": 0, "entity_precision": 0, "entity_recall": 0, "token_accuracy": 1}


@pytest.mark.parametrize(
    ("scheme", "prefixes"), [("IOB2", "BI"), ("IOBES", "BIES"), ("BILOU", "BILU"), ("IOB1", "BI"), ("IOE2", "IE")]
)
def test_metrics_equal_seqeval_to_the_last_digit(scheme, prefixes):
    """On sentences of random tags, most of them broken, against seqeval's strict mode."""
    from seqeval import scheme as schemes
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    draw = random.Random(scheme)
    labels = ["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("x", "y"))]
    gold = [draw.choices(labels, k=draw.randint(1, 12)) for _ in range(150)]
    predicted = [[tag if draw.random() < 0.8 else draw.choice(labels) for tag in tags] for tags in gold]
    got = metrics_of(gold, predicted, scheme)
    strict = {"mode": "strict", "scheme": getattr(schemes, scheme), "zero_division": 0}
    assert 0.1 < got["entity_f1"] < 0.9
    assert got["entity_f1"] == f1_score(gold, predicted, **strict)
    assert got["entity_precision"] == precision_score(gold, predicted, **strict)
    assert got["entity_recall"] == recall_score(gold, predicted, **strict)
    assert got["token_accuracy"] == accuracy_score(gold, predicted)


def test_metrics_follow_from_sums_over_sentences():
    counts_E3 = np.array([[1, 2, 1], [0, 0, 1], [2, 2, 2]])
    got = tagging_metrics(np.array([[1, 2], [2, 2]]), counts_E3)
    scores = {"entity_f1": pytest.approx(6 / 8), "entity_precision": 0.75, "entity_recall": 0.75}
    assert got == {**scores, "token_accuracy": 0.75}


def test_missing_tag_is_an_error():
    with pytest.raises(ValueError):
        metrics_of([["O", "O"]], [["O"]])
