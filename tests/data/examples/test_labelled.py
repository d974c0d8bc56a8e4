"""Examples of labelled texts, token by token: cuts, label positions, weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.examples.labelled import Ragged, TextExamples
from lm.data.reading.readers import Labelled
from lm.errors import UserError
from tests.data.examples.labelled import BOS, BYTES, EOS, check, make_config, make_store, weighted


def text_examples(raw, train=True, objective="classification", counts=None, **options):
    return TextExamples(make_store(raw, counts=counts), make_config(objective, **options), BYTES, train)


@pytest.mark.parametrize(("pooling", "indices"), [("first", [0, 0, 0]), ("mean", [0, 0, 0]), ("last", [6, 1, 7])])
def test_a_label_is_the_target_of_one_token(pooling, indices):
    raw = [Labelled("short", None, "b"), Labelled("", None, "a"), Labelled("too long a text", None, "b")]
    examples = text_examples(raw, pooling=pooling, length=8)
    check(examples, 8)
    made = [examples.make(0, i) for i in range(3)]
    assert [BYTES.decode(each.tokens_T) for each in made] == ["short", "", "too lo"]
    assert [weighted(each) for each in made] == [[(indices[0], 1, 1.0)], [(indices[1], 0, 1.0)], [(indices[2], 1, 1.0)]]
    assert [examples.label_index(i) for i in range(3)] == indices
    assert examples.notes == ["1 of 3 texts are truncated (data.sequence_length=8)"]


def cut_one_by_one(first, second, capacity):
    """Follows the published procedure: the longer text loses its last token until both fit."""
    first, second = list(first), list(second)
    while len(first) + len(second) > capacity:
        (first if len(first) > len(second) else second).pop()
    return "".join(first), "".join(second)


@settings(max_examples=100, deadline=None)
@given(first=st.integers(0, 20), second=st.integers(0, 20), length=st.integers(8, 24))
def test_the_longer_text_of_a_pair_is_cut(first, second, length):
    a, b = "a" * first, "b" * second
    examples = text_examples([Labelled(a, b, "a")], length=length)
    check(examples, length)
    want = cut_one_by_one(a, b, length - 3)
    tokens = [BOS, *BYTES.encode(want[0]), EOS, *BYTES.encode(want[1]), EOS]
    assert examples.make(0, 0).tokens_T.tolist() == tokens


def test_regression_learns_numbers():
    examples = text_examples(
        [Labelled("x", "y", "3.25"), Labelled("x", "y", "-1e2")], objective="regression", labels=()
    )
    check(examples, 16)
    assert examples.make(0, 0).targets_T.dtype == np.float32
    assert [weighted(examples.make(0, i)) for i in (0, 1)] == [[(0, 3.25, 1.0)], [(0, -100.0, 1.0)]]


def test_labels_have_the_given_weights_only_in_training():
    raw = [Labelled("x", None, label) for label in "abba"]
    counts, labels = {"a": 2, "b": 6}, ("b", "a", "none")

    def weights(train, **options):
        examples = text_examples(raw, train, counts=counts, labels=labels, **options)
        return [weighted(examples.make(0, i))[0][2] for i in range(4)]

    assert weights(True) == [1.0] * 4
    assert weights(True, class_weights=[0.5, 2.0, 9.0]) == [2.0, 0.5, 0.5, 2.0]
    a, b = 8 / (3 * 2), 8 / (3 * 6)
    assert weights(True, balance_classes=True) == pytest.approx([a, b, b, a])
    assert weights(False, balance_classes=True) == weights(False, class_weights=[0.5, 2.0, 9.0]) == [1.0] * 4


def test_rows_too_short_for_a_task_are_refused():
    with pytest.raises(UserError, match=r"sequence_length: 7 is too short for objective\.name='classification'"):
        text_examples([Labelled("x", None, "a")], length=7)


def test_ragged_rows_come_back():
    rows = [[1, 2], [], [3], []]
    ragged = Ragged.of(rows)
    assert [row.tolist() for row in map(ragged.__getitem__, range(4))] == rows
    assert ragged.lengths.tolist() == [2, 0, 1, 0] and len(ragged) == 4
    assert len(Ragged.of([])) == 0 and Ragged.of([[]])[0].tolist() == []
