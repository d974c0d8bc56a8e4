"""Next-fit against a loop over examples."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.packing.next_fit import plan


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
    bounds = plan((source_sizes, target_sizes), order, (source_length, target_length))
    rows = [order[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    assert rows == next_fit(source_sizes, target_sizes, order, source_length, target_length)
    assert [i for row in rows for i in row] == order.tolist()
    for row in rows:
        assert row and source_sizes[row].sum() <= source_length and target_sizes[row].sum() <= target_length


def test_one_sided_examples_are_planned_as_if_the_other_side_had_all_the_room_it_needs():
    generator = np.random.default_rng(1)
    sizes, order = generator.integers(1, 12, 500), generator.permutation(500)
    bounds = plan((sizes,), order, (20,))
    assert [order[a:b].tolist() for a, b in itertools.pairwise(bounds)] == next_fit(sizes, 0 * sizes, order, 20, 0)


def test_an_order_may_leave_examples_out():
    sizes = np.array([4, 4, 4, 4])
    assert plan((sizes, sizes), np.array([3, 1, 0]), (8, 8)).tolist() == [0, 2, 3]


def test_rows_of_short_pairs_are_nearly_full():
    generator = np.random.default_rng(0)
    source_sizes = generator.integers(4, 25, 20_000)
    target_sizes = np.clip(source_sizes + generator.integers(-3, 4, 20_000), 2, 30)
    bounds = plan((source_sizes, target_sizes), generator.permutation(20_000), (256, 256))
    assert source_sizes.sum() / ((len(bounds) - 1) * 256) > 0.9


def test_an_example_longer_than_a_row_is_a_bug_of_ours():
    with pytest.raises(AssertionError):
        plan((np.array([9]), np.array([2])), np.array([0]), (8, 8))
