"""Next-fit and the layout of packed rows against loops over examples and tokens."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.pair_packing import lay_out, plan

BOS = 1


def next_fit(source_sizes, target_sizes, order, source_length, target_length):
    rows, source, target = [], 0, 0
    for i in order:
        if not rows or source + source_sizes[i] > source_length or target + target_sizes[i] > target_length:
            rows.append([])
            source = target = 0
        rows[-1].append(int(i))
        source, target = source + source_sizes[i], target + target_sizes[i]
    return rows


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 14)), min_size=0, max_size=40),
    source_length=st.integers(9, 30),
    target_length=st.integers(14, 30),
    seed=st.integers(0, 5),
)
def test_the_plan_is_next_fit_and_has_every_example_once(sizes, source_length, target_length, seed):
    source_sizes, target_sizes = (np.array([size[side] for size in sizes], np.int64) for side in (0, 1))
    order = np.random.default_rng(seed).permutation(len(sizes))
    bounds = plan(source_sizes, target_sizes, order, source_length, target_length)
    rows = [order[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    assert rows == next_fit(source_sizes, target_sizes, order, source_length, target_length)
    assert [i for row in rows for i in row] == order.tolist()
    for row in rows:
        assert row and source_sizes[row].sum() <= source_length and target_sizes[row].sum() <= target_length


def test_an_order_may_leave_examples_out():
    sizes = np.array([4, 4, 4, 4])
    assert plan(sizes, sizes, np.array([3, 1, 0]), 8, 8).tolist() == [0, 2, 3]


def test_rows_of_short_pairs_are_nearly_full():
    generator = np.random.default_rng(0)
    source_sizes = generator.integers(4, 25, 20_000)
    target_sizes = np.clip(source_sizes + generator.integers(-3, 4, 20_000), 2, 30)
    bounds = plan(source_sizes, target_sizes, generator.permutation(20_000), 256, 256)
    assert source_sizes.sum() / ((len(bounds) - 1) * 256) > 0.9


def test_an_example_longer_than_a_row_is_a_bug_of_ours():
    with pytest.raises(AssertionError):
        plan(np.array([9]), np.array([2]), np.array([0]), 8, 8)


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
