"""Predicted answers of packed rows: windows of a context, rules of each data source, and limited rows."""

import math

import numpy as np
import pytest

from lm.data.reading.readers import Question
from lm.errors import UserError
from tests.evaluation.table_model import answer_table, config_of, evaluation, questions, read


@pytest.mark.parametrize("devices", [1, 8])
def test_answers_in_contexts_of_several_windows(tmp_path, devices):
    raw = questions()
    each = evaluation(config_of("span_qa", length=32), raw, devices=devices)
    parts = each._rows["s"].examples
    assert np.bincount(parts.example_of).max() > 2
    found = each.evaluate({"table": answer_table()}, 0)
    predicted = [
        f"[{number} é]" if number % 6 else "" for number in range(len(raw))
    ]  # to the character, and "" for no answer
    right = [number for number in range(len(raw)) if number % 4 != 3]
    assert found["valid/exact_match"] == pytest.approx(100 * len(right) / len(raw))
    assert found["valid/f1"] == pytest.approx(100 * len(right) / len(raw))
    (path,) = each.write(tmp_path, "predictions")
    lines = read(path)
    assert [(line["id"], line["prediction"]) for line in lines] == [
        (question.id, answer) for question, answer in zip(raw, predicted, strict=True)
    ]
    assert [line["answers"] for line in lines] == [[text for text, _ in each.answers] for each in raw]
    assert each.whole.preview(1) == {"question": "who?", "predicted": predicted[1], "answer": predicted[1]}
    assert each.whole.preview(0) == {"question": "who?", "predicted": "no answer", "answer": "no answer"}


def test_each_source_of_questions_has_its_own_rules():
    """A Chinese answer that is right in part: F1 by characters there, beside English questions scored by words."""
    english = [Question("e", "", "who?", "x [1 é] y", (("[1 é]", 2),))]
    chinese = [Question("c", "", "谁？", "甲[乙丙]丁", (("[乙丙丁", 1),))]
    each = evaluation(config_of("span_qa", length=40), {"c": chinese, "e": english})
    found = each.evaluate({"table": answer_table()}, 0)
    assert found["valid/e/f1"] == 100 and found["valid/c/exact_match"] == 0
    assert 0 < found["valid/c/f1"] < 100, "in words it would be 0"
    assert found["valid/f1"] == (found["valid/e/f1"] + found["valid/c/f1"]) / 2


def test_loss_of_nothing_is_nan():
    raw = [Question("1", "", "who?", "x y", (("elsewhere", 0),))]
    found = evaluation(config_of("span_qa", length=32), raw).evaluate({"table": answer_table()}, 0)
    assert math.isnan(found["valid/loss"]) and found["valid/f1"] == 0


def test_limit_without_any_whole_example_is_refused():
    raw = [Question(str(i), "", "who?", "abc " * 20, ()) for i in range(4)]
    with pytest.raises(
        UserError, match=r"eval\.max_rows: no example of s lies entirely within its 3 scored rows \(of \d+\)"
    ):
        evaluation(config_of("span_qa", length=32), raw, max_rows=3)
    assert evaluation(config_of("span_qa", length=32), raw, max_rows=99).num_rows > 3
