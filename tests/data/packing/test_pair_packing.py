"""The layout of packed rows against a loop over tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.packing.pair_packing import lay_out

BOS = 1


def by_hand(rows, source_length, target_length):
    """(tokens, targets, weights, positions, segments, source tokens, positions, segments), token by token."""
    found = [[] for _ in range(8)]
    for row in rows:
        columns = [[] for _ in range(8)]
        for segment, (source, target) in enumerate(row, start=1):
            for i, token in enumerate(target):
                values = (BOS if i == 0 else target[i - 1], token, 1, i, segment)
                for column, value in zip(columns[:5], values, strict=True):
                    column.append(value)
            for i, token in enumerate(source):
                for column, value in zip(columns[5:], (token, i, segment), strict=True):
                    column.append(value)
        for k, column in enumerate(columns):
            found[k].append(column + [0] * ((target_length if k < 5 else source_length) - len(column)))
    return found


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.lists(st.integers(2, 99), min_size=1, max_size=4),
                st.lists(st.integers(2, 99), min_size=1, max_size=5),
            ),
            max_size=4,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_the_layout_equals_a_loop_over_tokens(rows):
    arrays = [[(np.array(s, np.int32), np.array(t, np.int32)) for s, t in row] for row in rows]
    batch = lay_out(arrays, 17, 21, BOS)
    source = batch.source
    found = [batch.tokens, batch.targets, batch.weights, batch.positions, batch.segments]
    found += [source.tokens, source.positions, source.segments]
    assert [each.tolist() for each in found] == by_hand(rows, 17, 21)
    assert [each.dtype for each in found] == [np.float32 if k == 2 else np.int32 for k in range(8)]
    assert batch.shape == (len(rows), 21) and source.tokens.shape == (len(rows), 17)


def test_examples_that_do_not_fit_a_row_are_never_written_into_the_next():
    piece = np.arange(2, 8, dtype=np.int32)
    with pytest.raises(AssertionError, match="longer"):
        lay_out([[(piece, piece), (piece, piece)], []], 10, 20, BOS)
