"""predictions.jsonl of each task: the content of a line, and that every line is one object."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from lm.data.reading.readers import Labelled, Question, Tagged
from lm.evaluation.answers import Answer
from lm.tasks.classification import Classified
from lm.tasks.multiple_choice import Choice, Chosen
from lm.tasks.regression import Regressed
from lm.tasks.span_qa import Answered
from lm.tasks.tagging import TaggedWords


@pytest.fixture
def written(tmp_path):
    def call(predictions):
        path, *_ = predictions.write(tmp_path / "eval", "predictions")
        assert path.name == "predictions.jsonl"
        text = path.read_bytes().decode("utf-8")
        assert "\\u" not in text and text.endswith("\n")
        return [json.loads(line) for line in text.removesuffix("\n").split("\n")]

    return call


def test_classification_writes_label_prediction_and_probability(written):
    raw = [Labelled("好\u2028\nx", None, "neg"), Labelled("a", "b", "pos")]
    probabilities = np.array([[0.25, 0.75], [math.nan, math.nan]])
    probabilities[1] = [0.0, math.inf]
    assert written(Classified(raw, probabilities, ["neg", "pos"])) == [
        {"text": "好\u2028\nx", "label": "neg", "prediction": "pos", "score": 0.75},
        {"text": "a", "pair": "b", "label": "pos", "prediction": "pos", "score": None},
    ]


def test_regression_writes_numbers(written):
    raw = [Labelled("a", "b", "2.50"), Labelled("c", None, "3")]
    assert written(Regressed(raw, np.array([1.25, math.inf]))) == [
        {"text": "a", "pair": "b", "label": 2.5, "prediction": 1.25},
        {"text": "c", "label": 3.0, "prediction": None},
    ]


def test_tagging_writes_a_tag_for_each_word(written):
    raw = [Tagged(("in", "São", "Paulo"), ("O", "B-loc", "I-loc"))]
    assert written(TaggedWords(raw, [("O", "B-loc", "O")], "IOB2")) == [
        {"words": ["in", "São", "Paulo"], "tags": ["O", "B-loc", "I-loc"], "prediction": ["O", "B-loc", "O"]}
    ]


def test_question_answering_writes_answers_and_prediction(written):
    one = Question("q1", "T", "Who?", "Ann or Bo.", (("Ann", 0), ("Bo", 7)))
    none = Question("q2", "T", "Why?", "Ann or Bo.", ())
    assert written(
        Answered.scored([one, none], [Answer("Bo", 3.5), Answer("", -math.inf)], "squad", may_lack=True)
    ) == [
        {"id": "q1", "question": "Who?", "answers": ["Ann", "Bo"], "prediction": "Bo", "score": 3.5},
        {"id": "q2", "question": "Why?", "answers": [], "prediction": "", "score": None},
    ]


def config_with(labels):
    evaluation = SimpleNamespace(tag_scheme="auto", answer_rules="auto")
    return SimpleNamespace(data=SimpleNamespace(labels=labels), eval=evaluation)


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [
        (
            Classified(
                [Labelled(f"t{n}", "b" if n else None, "abc"[n % 3]) for n in range(9)],
                np.random.default_rng(0).dirichlet(np.ones(3), 9),
                ["c", "a", "b"],
            ),
            ("c", "a", "b"),
        ),
        (Regressed([Labelled(f"t{n}", None, f"{n}") for n in range(4)], np.array([0.5, 3.0, 1.0, 2.5])), ()),
        (
            TaggedWords(
                [Tagged(("Ann", "met", "Bo"), ("B-P", "O", "B-P")), Tagged(("no",), ("O",))],
                [("B-P", "I-P", "O"), ("O",)],
                "IOB2",
            ),
            ("B-P", "I-P", "O"),
        ),
        (
            Answered.scored(
                [
                    Question("1", "", "Who?", "Ann or Bo", (("Ann", 0),)),
                    Question("2", "", "Who?", "x", ()),
                    Question("3", "", "What?", "a bit", (("bit", 2), ("a bit", 0))),
                ],
                [Answer("Ann or", 1.0, 0), Answer("", -1.0), Answer("the bit", 2.0, 0)],
                rules="squad",
                may_lack=True,
            ),
            (),
        ),
        (
            Chosen(
                [Choice("q", ("a", "b"), 1), Choice("r", ("a", "b", "c"), 0)],
                [np.array([1.0, 2.0]), np.array([1, 3, 2])],
            ),
            (),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("known", [False, True])
def test_metrics_of_written_predictions_equal_those_of_the_evaluation(written, predictions, labels, known):
    """Also on a resample, and whether or not the labels of the run are known."""
    found = type(predictions).read(written(predictions), config_with(labels) if known else None)
    for indices in (slice(None), np.array([1, 1, 0])):
        assert found.metrics(indices) == pytest.approx(predictions.metrics(indices), rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Classified, {"prediction": "new"}),
        (Regressed, {"prediction": "high"}),
        (Regressed, {"text": 3}),
        (TaggedWords, {"prediction": ["O", "O"]}),
        (Answered, {"answers": None}),
        (Chosen, {"scores": "high"}),
    ],
)
def test_lines_of_another_form_are_no_predictions(kind, change):
    line = {
        Classified: {"text": "a", "label": "x", "prediction": "x", "score": 0.9},
        Regressed: {"text": "a", "label": 1.0, "prediction": 2.0},
        TaggedWords: {"words": ["a"], "tags": ["O"], "prediction": ["O"]},
        Answered: {"id": "1", "question": "q", "answers": ["a"], "prediction": "a", "score": 1.0},
        Chosen: {"question": "q", "candidates": ["a", "b"], "label": 0, "prediction": 0, "scores": [1.0, 0.5]},
    }[kind]
    config = config_with(("x", "O"))
    kind.read([line], config)
    with pytest.raises((KeyError, TypeError, ValueError, AssertionError)):
        kind.read([line | change], config)


def test_nothing_is_written_if_an_example_cannot_be(tmp_path):
    predictions = Regressed([Labelled("a", None, "1"), Labelled("a", None, "2")], np.array([1.0, 1.0]))
    predictions.raw[1] = Labelled("a", None, "no number")
    with pytest.raises(ValueError):
        predictions.write(tmp_path, "predictions")
    assert list(tmp_path.iterdir()) == []
