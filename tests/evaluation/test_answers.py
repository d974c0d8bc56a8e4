"""Answers against golden values of the data sets' official scripts, and runs against trying all."""

import itertools
import random

import numpy as np
import pytest

from lm.evaluation.answers import _longest_run, answer_metrics, answer_scores


def one(prediction, *answers, chinese=False):
    return tuple(answer_scores([prediction], [answers], chinese=chinese)[0].tolist())


# What the official script of SQuAD 1.1 gives for these.
@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the Denver Broncos", ["Denver Broncos"], (1, 1.0)),
        ("Broncos.", ["Denver Broncos", "The Broncos"], (1, 1.0)),
        ("Carolina Panthers' defense", ["Carolina Panthers", "Panthers defense"], (0, 0.8)),
        ("1,000 km", ["1000 km", "about 1,000km"], (1, 1.0)),
        ("Jean-Luc  “Picard”", ["jeanluc picard"], (0, 0.5)),
        ("the then and an apple", ["then apple apple"], (0, 2 / 3)),
        ("so so good", ["so good so"], (0, 1.0)),
        ("", ["the"], (1, 0.0)),
        ("a the an", ["the"], (1, 0.0)),
    ],
)
def test_squad_scores_equal_hand_calculation(prediction, answers, expected):
    assert one(prediction, *answers) == expected


# What the official script of CMRC 2018 gives for these.
@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("北京市", ["北京", "中国北京市"], (0, 0.8)),
        ("《红楼梦》。", ["红楼梦"], (1, 1.0)),
        ("1998年，在北京", ["1998年在北京"], (1, 1.0)),
        ("在2008年 Summer Games 举行", ["2008年summer games"], (0, 0.7272727272727273)),
        ("京北", ["北京"], (0, 0.5)),
        ("18.5 km。", ["18.5km"], (0, 0.0)),
        ("‘甲’", ["甲"], (0, 2 / 3)),
        ("甲…", ["甲"], (0, 2 / 3)),
        ("，", ["。"], (1, 0.0)),
        ("上海浦东机场", ["上海虹桥机场", "浦东的机场"], (0, 0.3636363636363636)),
        ("don't (x)", ["do n't x"], (0, 0.5)),
    ],
)
def test_cmrc_scores_equal_hand_calculation(prediction, answers, expected):
    assert one(prediction, *answers, chinese=True) == expected


def test_unanswerable_questions_follow_squad_2():
    """SQuAD 2.0: "" is right where there is none, and wrong elsewhere."""
    answers = [(), (), ("the Rhine",), ("Rhine", "The"), ("A",)]
    got = answer_scores(["", "Rhine", "", "the", "an"], answers)
    assert got.tolist() == [[1, 1], [0, 0], [0, 0], [0, 0], [1, 1]]
    # Without such a question the rules are those of SQuAD 1.1.
    assert answer_scores(["", "an"], [("Rhine", "The"), ("A",)]).tolist() == [[1, 0], [1, 0]]


def test_unanswerable_chinese_questions():
    got = answer_scores(["", "。", "长江", "", "长江"], [(), (), (), ("长江",), ("长江",)], chinese=True)
    assert got.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0], [1, 1]]


def test_metrics_are_means_in_percent():
    got = answer_metrics(answer_scores(["x", "b c", "q"], [("x",), ("d b",), ("r",)]))
    assert got == {"exact_match": pytest.approx(100 / 3), "f1": pytest.approx(100 * 1.5 / 3)}
    # Added one by one, not in pairs: the last digit of the official results depends on it.
    scores_E2 = np.random.default_rng(0).random((1000, 2))
    total = 0.0
    for each in scores_E2[:, 1].tolist():
        total += each
    assert answer_metrics(scores_E2)["f1"] == 100.0 * total / 1000


def test_longest_run_equals_brute_force():
    draw = random.Random(0)
    for _ in range(200):
        first, second = (draw.choices("abc", k=draw.randrange(9)) for _ in range(2))
        runs = [
            end - start
            for start, end in itertools.combinations(range(len(first) + 1), 2)
            if any(
                first[start:end] == second[start_of_second : start_of_second + end - start]
                for start_of_second in range(len(second))
            )
        ]
        assert _longest_run(first, second) == max(runs, default=0), (first, second)
