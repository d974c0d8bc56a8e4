"""predictions.jsonl of each task: what stands in a line, and that every line is one object."""

import json
import math

import pytest

from lm.data.reading.labelled import Labelled, Question, Tagged
from lm.evaluation.answer_search import Answer
from lm.evaluation.task_predictions import write_answered, write_classified, write_regressed, write_tagged


@pytest.fixture
def written(tmp_path):
    def call(write, results):
        path = tmp_path / "eval" / "predictions.jsonl"
        write(path, results)
        assert [each.name for each in path.parent.iterdir()] == [path.name]
        text = path.read_bytes().decode("utf-8")
        assert "\\u" not in text and text.endswith("\n")
        return [json.loads(line) for line in text.removesuffix("\n").split("\n")]

    return call


def test_classification(written):
    results = [(Labelled("好\u2028\nx", None, "neg"), "pos", 0.75), (Labelled("a", "b", "pos"), "pos", math.nan)]
    assert written(write_classified, iter(results)) == [
        {"text": "好\u2028\nx", "label": "neg", "prediction": "pos", "score": 0.75},
        {"text": "a", "pair": "b", "label": "pos", "prediction": "pos", "score": None},
    ]


def test_regression(written):
    results = [(Labelled("a", "b", "2.50"), 1.25), (Labelled("c", None, "3"), math.inf)]
    assert written(write_regressed, results) == [
        {"text": "a", "pair": "b", "label": 2.5, "prediction": 1.25},
        {"text": "c", "label": 3.0, "prediction": None},
    ]


def test_tagging(written):
    results = [(Tagged(("in", "São", "Paulo"), ("O", "B-loc", "I-loc")), ("O", "B-loc", "O"))]
    assert written(write_tagged, results) == [
        {"words": ["in", "São", "Paulo"], "tags": ["O", "B-loc", "I-loc"], "prediction": ["O", "B-loc", "O"]}
    ]


def test_answers(written):
    one = Question("q1", "T", "Who?", "Ann or Bo.", (("Ann", 0), ("Bo", 7)))
    none = Question("q2", "T", "Why?", "Ann or Bo.", ())
    assert written(write_answered, [(one, Answer("Bo", 3.5)), (none, Answer("", -math.inf))]) == [
        {"id": "q1", "question": "Who?", "answers": ["Ann", "Bo"], "prediction": "Bo", "score": 3.5},
        {"id": "q2", "question": "Why?", "answers": [], "prediction": "", "score": None},
    ]


def test_nothing_is_written_if_one_of_them_fails(tmp_path):
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(ValueError):
        write_regressed(path, [(Labelled("a", None, "1"), 1.0), (Labelled("a", None, "no number"), 1.0)])
    assert list(tmp_path.iterdir()) == []
