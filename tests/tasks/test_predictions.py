"""predictions.jsonl of each task: the content of a line, and that every line is one object."""

import json
import math

import numpy as np
import pytest

from lm.data.reading.readers import Labelled, Question, Tagged
from lm.evaluation.answers import Answer
from lm.tasks.classification import Classified
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
    assert written(Classified(raw, ["neg", "pos"], probabilities)) == [
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
    assert written(TaggedWords(raw, "IOB2", [("O", "B-loc", "O")])) == [
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


def test_nothing_is_written_if_an_example_cannot_be(tmp_path):
    predictions = Regressed([Labelled("a", None, "1"), Labelled("a", None, "2")], np.array([1.0, 1.0]))
    predictions.raw[1] = Labelled("a", None, "no number")
    with pytest.raises(ValueError):
        predictions.write(tmp_path, "predictions")
    assert list(tmp_path.iterdir()) == []
