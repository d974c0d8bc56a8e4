"""Answers against golden values of the data sets' official scripts, and runs against trying all."""

import itertools
import random

import numpy as np
import pytest

from lm.config import EvalConfig
from lm.evaluation.answers import RULES, _longest_run, answer_metrics, answer_scores, rules_for


def one(prediction, *answers, rules="squad"):
    return tuple(answer_scores([prediction], [answers], rules=rules)[0].tolist())


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
    assert one(prediction, *answers, rules="cmrc") == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("東京都", ["東京"], (0, 0.8)),
        ("「東京」。", ["東京"], (1, 1.0)),
        ("京東", ["東京"], (0, 1.0)),  # F1 is over bags, unlike that of CMRC
        ("東京 タワー", ["東京タワー"], (1, 1.0)),
        ("スーパー", ["スパー"], (0, 6 / 7)),
        ("2008年 the Tower", ["2008年"], (0, 2 / 3)),
        ("กรุงเทพ", ["กรุง"], (0, 2 * 4 / (7 + 4))),
        ("", ["東京"], (0, 0.0)),
    ],
)
def test_scores_by_characters(prediction, answers, expected):
    assert one(prediction, *answers, rules="characters") == pytest.approx(expected)


ENGLISH = ["In the year 1900 the river Lena flooded the town.", "The bridge of stone was lost."]


@pytest.mark.parametrize(
    ("contexts", "rules"),
    [
        (ENGLISH, "squad"),
        ([*ENGLISH, "The word 桥 means bridge."], "squad"),
        (["The word 桥 means bridge."], "squad"),
        (["1900年，勒拿河淹没了这座城市。石桥没了。"], "cmrc"),
        (["1900年，Lena 河淹没了 Yakutsk 城。", "石桥没了 (the bridge)"], "cmrc"),
        (["東京都は日本国の首都である。"], "characters"),
        (["กรุงเทพเป็นเมืองหลวงของประเทศไทย"], "characters"),
        (["서울은 대한민국의 수도이다."], "squad"),
        (["Москва — столица России."], "squad"),
        ([""], "squad"),
    ],
)
def test_rules_follow_most_of_the_text(contexts, rules):
    assert rules_for(contexts) == rules
    assert EvalConfig.__dataclass_fields__["answer_rules"].metadata["choices"] == ("auto", *RULES)


def test_unanswerable_questions_follow_squad_2():
    """SQuAD 2.0: "" is right where there is none, and wrong elsewhere."""
    answers = [(), (), ("the Rhine",), ("Rhine", "The"), ("A",)]
    got = answer_scores(["", "Rhine", "", "the", "an"], answers, may_lack=True)
    assert got.tolist() == [[1, 1], [0, 0], [0, 0], [0, 0], [1, 1]]
    # The same rules hold for a part of the questions in which each has an answer.
    assert answer_scores(["", "the", "an"], answers[2:], may_lack=True).tolist() == got[2:].tolist()
    # Without such a question the rules are those of SQuAD 1.1.
    assert answer_scores(["", "an"], [("Rhine", "The"), ("A",)]).tolist() == [[1, 0], [1, 0]]


def test_unanswerable_chinese_questions():
    answers = [(), (), (), ("长江",), ("长江",)]
    got = answer_scores(["", "。", "长江", "", "长江"], answers, rules="cmrc", may_lack=True)
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
