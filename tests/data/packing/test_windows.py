"""Packing against a loop over tokens, and evaluation windows against a count."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.packing import windows as packing


def brute_force(documents, start, length, circular):
    stream = [(token, d, i) for d, document in enumerate(documents) for i, token in enumerate(document)]
    tokens, segments, positions = [], [], []
    segment, position = 0, 0
    for k in range(length):
        place = start + k
        if circular:
            place %= len(stream)
        if place >= len(stream):
            tokens.append(0), segments.append(0), positions.append(0)
            continue
        token, _, i = stream[place]
        if k == 0 or i == 0:
            segment, position = segment + 1, 0
        tokens.append(token), segments.append(segment), positions.append(position)
        position += 1
    return tokens, segments, positions


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    starts=st.lists(st.integers(0, 120), min_size=1, max_size=5),
    length=st.integers(1, 40),
    circular=st.booleans(),
)
def test_rows_equal_a_loop_over_tokens(lengths, starts, length, circular):
    counter = iter(range(1, 1000))
    documents = [[next(counter) for _ in range(n)] for n in lengths]
    tokens = np.array([t for d in documents for t in d], np.uint16)
    offsets = np.cumsum([0, *lengths])[:-1]
    rows = packing.cut_rows(tokens, offsets, np.array(starts), length, circular=circular)
    for r, start in enumerate(starts):
        want = brute_force(documents, start, length, circular)
        assert rows.tokens_RM[r].tolist() == want[0]
        assert rows.segments_RM[r].tolist() == want[1]
        assert rows.positions_RM[r].tolist() == want[2]
    assert {a.dtype for a in (rows.tokens_RM, rows.segments_RM, rows.positions_RM)} == {np.dtype(np.int32)}


def test_one_document_that_wraps_is_cut_where_it_begins_again():
    rows = packing.cut_rows(np.array([7, 8, 9]), np.array([0]), np.array([1]), 5, circular=True)
    assert rows.tokens_RM.tolist() == [[8, 9, 7, 8, 9]]
    assert rows.segments_RM.tolist() == [[1, 1, 2, 2, 2]]
    assert rows.positions_RM.tolist() == [[0, 1, 0, 1, 2]]


@pytest.mark.parametrize("num_tokens", [2, 3, 16, 17, 18, 33, 100])
@pytest.mark.parametrize("stride", [1, 3, 8, 16])
def test_every_target_is_scored_once_and_after_the_most_context(num_tokens, stride):
    length = 16
    n = packing.num_evaluation_rows(num_tokens, length, stride)
    ids = np.arange(n)
    scored = packing.scored_targets(ids, length, stride)
    count = np.zeros(num_tokens + 2 * length, int)
    for i in ids:
        for column in range(length):
            count[i * stride + column + 1] += scored[i, column]
            if scored[i, column] and i > 0:
                assert column >= length - stride  # so many tokens of the window come before it
    assert count[0] == 0
    assert (count[1:num_tokens] == 1).all()
    assert n == 1 or (n - 2) * stride + length < num_tokens - 1, "the last window is needed"


def test_training_rows_an_epoch():
    assert packing.num_training_rows(17, 16) == 1
    assert packing.num_training_rows(32, 16) == 2
    assert packing.num_training_rows(1000, 16) == 62
