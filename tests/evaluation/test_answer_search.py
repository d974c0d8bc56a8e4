"""The best answer of all windows against trying every pair of tokens."""

import math

import numpy as np
import pytest

from lm.evaluation.answers import Answer, Window, best_answer, best_span

CONTEXT = "In 1889 the tower was  built by Eiffel & Cie."


def window(start, end, offsets, most=None):
    most = np.ones(len(start), bool) if most is None else np.array(most)
    return Window(np.array(start, np.float32), np.array(end, np.float32), np.array(offsets, np.int64), most)


def drawn(draw, size):
    """A window of few different scores, so that many answers are equal, with a question before its context."""
    scores = draw.integers(-2, 3, size=(2, size)).astype(np.float32)
    question = draw.integers(1, size)
    offsets = np.stack([np.arange(size), np.arange(size) + 1], axis=1)
    offsets[:question] = offsets[size - draw.integers(0, 2) :] = -1
    return Window(scores[0], scores[1], offsets, draw.random(size) < 0.6)


def by_trying(window, longest):
    best = (-math.inf, 0, 0)
    for first in range(len(window.start_T)):
        for last in range(first, min(first + longest, len(window.start_T))):
            inside = window.offsets_T2[first, 0] >= 0 and window.offsets_T2[last, 0] >= 0
            if inside and window.most_context_T[first]:
                score = float(window.start_T[first]) + float(window.end_T[last])
                best = max(best, (score, -first, -last))
    return best[0], -best[1], -best[2]


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_best_answer_equals_trying_every_pair(longest):
    draw = np.random.default_rng(longest)
    for _ in range(150):
        each = drawn(draw, int(draw.integers(2, 16)))
        score, first, last = by_trying(each, longest)
        got = best_span(each, longest)
        assert got[0] == score and (score == -math.inf or got == (score, first, last))


def test_best_answer_of_long_window_equals_trying_every_pair():
    draw = np.random.default_rng(0)
    each = drawn(draw, 512)
    each = Window(*draw.normal(size=(2, 512)).astype(np.float32), each.offsets_T2, each.most_context_T)
    assert best_span(each, 30) == by_trying(each, 30)


OFFSETS = [(-1, -1), (0, 2), (2, 7), (7, 11), (11, 17), (17, 21), (-1, -1)]  # [CLS] In 1889 the tower was [SEP]


def test_text_is_taken_from_the_context():
    each = window([9, 0, 0, 3, 0, 0, 0], [9, 5, 0, 0, 4, 0, 9], OFFSETS)
    # The white space before `the` belongs to its token and not to the answer.
    assert best_answer(CONTEXT, [each]) == Answer("the tower", 7.0)
    assert best_answer(CONTEXT, [each], max_answer_tokens=1) == Answer("In", 5.0)


def test_an_answer_begins_where_its_token_has_most_context():
    start, end = [0, 0, 0, 5, 0, 0, 0], [0, 0, 0, 0, 5, 0, 0]
    left = window(start, end, OFFSETS, most=[True, True, True, False, False, False, False])
    right = window([0, 2, 0, 0], [0, 0, 3, 0], [(-1, -1), (7, 11), (11, 17), (-1, -1)])
    assert best_answer(CONTEXT, [left]) == Answer("In 1889 the tower", 5.0)  # it may end elsewhere
    assert best_answer(CONTEXT, [right, left]) == Answer("the tower", 5.0)
    assert best_answer(CONTEXT, [left, right]) == Answer("In 1889 the tower", 5.0)  # of equal ones the first


def test_no_answer_wins_unless_another_scores_more():
    """The window where the first token scores least counts: one that does not show the answer finds none."""
    one = window([1, 0, 2, 0], [1, 0, 0, 2], [(-1, -1), (0, 2), (2, 7), (7, 11)])
    other = window([5, 0], [5, 0], [(-1, -1), (11, 17)])
    assert best_answer(CONTEXT, [one, other], may_lack=True) == Answer("1889 the", 4.0)
    same = window([2, 0, 2, 0], [2, 0, 0, 2], [(-1, -1), (0, 2), (2, 7), (7, 11)])
    assert best_answer(CONTEXT, [same, other], may_lack=True) == Answer("", 4.0)
    assert best_answer(CONTEXT, [same, other]) == Answer("1889 the", 4.0)


def test_window_without_possible_answer():
    nowhere = window([1, 2], [1, 2], [(-1, -1), (-1, -1)])
    assert best_answer(CONTEXT, [nowhere]) == Answer("", -math.inf)
    assert best_answer(CONTEXT, [nowhere], may_lack=True) == Answer("", 2.0)


def test_nan_scores_give_no_answer():
    """As a model that has diverged gives them."""
    broken = window([np.nan] * 2, [np.nan] * 2, [(0, 2), (2, 7)])
    got = best_answer(CONTEXT, [broken])
    assert got.text == "" and not math.isfinite(got.score)
