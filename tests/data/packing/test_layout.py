"""The next-fit plan of rows and the layout of their tokens, each compared with a simple loop."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.examples.example import Example
from lm.data.packing.planning import plan
from lm.data.packing.rows import RowLayout

SOURCE, LENGTH = 17, 21
FIELDS = ("tokens", "targets", "weights", "types", "positions", "segments")


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
def test_rows_are_planned_by_next_fit_and_hold_every_example_once(sizes, source_length, target_length, seed):
    source_sizes, target_sizes = (np.array([size[side] for size in sizes], np.int64) for side in (0, 1))
    order = np.random.default_rng(seed).permutation(len(sizes))
    bounds = plan((source_sizes, target_sizes), order, (source_length, target_length))
    rows = [order[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    assert rows == next_fit(source_sizes, target_sizes, order, source_length, target_length)
    assert [i for row in rows for i in row] == order.tolist()
    for row in rows:
        assert row and source_sizes[row].sum() <= source_length and target_sizes[row].sum() <= target_length


def test_one_capacity_is_planned_as_if_the_other_were_unlimited():
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


def test_an_example_longer_than_a_row_fails_an_assertion():
    with pytest.raises(AssertionError):
        plan((np.array([9]), np.array([2])), np.array([0]), (8, 8))


def make_example(columns, source=(), real=False):
    """Builds an example from a (token, target, weight, type) tuple per token and from its source tokens."""
    tokens, targets, weights, types = zip(*columns, strict=True)
    return Example(
        np.array(tokens, np.int32),
        np.array(targets, np.float32 if real else np.int32),
        np.array(weights, np.float32),
        np.array(types, np.int32),
        np.array(source, np.int32),
    )


def by_hand(rows):
    """Computes all of FIELDS, and the source's tokens, positions and segments, as nested lists."""
    found = {field: [] for field in FIELDS}
    source = [[], [], []]
    for row in rows:
        columns = [(*values, i, s) for s, (example, _) in enumerate(row, start=1) for i, values in enumerate(example)]
        columns += [(0,) * 6] * (LENGTH - len(columns))
        for field, values in zip(FIELDS, zip(*columns, strict=True), strict=True):
            found[field].append(list(values))
        columns = [(token, i, s) for s, (_, side) in enumerate(row, start=1) for i, token in enumerate(side)]
        columns += [(0,) * 3] * (SOURCE - len(columns))
        for whole, values in zip(source, zip(*columns, strict=True), strict=True):
            whole.append(list(values))
    return found, source


columns = st.tuples(st.integers(1, 99), st.integers(0, 99), st.sampled_from([0.0, 0.25, 1.0]), st.integers(0, 1))
an_example = st.tuples(st.lists(columns, min_size=1, max_size=5), st.lists(st.integers(2, 99), min_size=1, max_size=4))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.lists(an_example, max_size=4), min_size=1, max_size=5),
    with_types=st.booleans(),
    real=st.booleans(),
    two_sided=st.booleans(),
)
def test_rows_are_laid_out_as_in_a_loop_over_tokens(rows, with_types, real, two_sided):
    layout = RowLayout(LENGTH, SOURCE * two_sided, with_types=with_types, real_targets=real)
    assert layout.capacities == ((LENGTH, SOURCE) if two_sided else (LENGTH,))
    batch = layout.lay_out([[make_example(*example, real) for example in row] for row in rows])
    wanted, wanted_source = by_hand(rows)
    for field in FIELDS:
        found = getattr(batch, field)
        if field == "types" and not with_types:
            assert found is None
            continue
        real_field = field == "weights" or (field == "targets" and real)
        assert found.tolist() == wanted[field] and found.dtype == (np.float32 if real_field else np.int32), field
    assert batch.shape == (len(rows), LENGTH) and (batch.source is not None) == two_sided
    if two_sided:
        source = [batch.source.tokens, batch.source.positions, batch.source.segments]
        assert [each.tolist() for each in source] == wanted_source
        assert all(each.dtype == np.int32 and each.shape == (len(rows), SOURCE) for each in source)


def test_real_targets_keep_their_values_beside_rows_of_padding():
    example = make_example([(5, -1.37, 1, 0), (6, 0, 0, 0)], real=True)
    layout = RowLayout(3, real_targets=True)
    assert layout.lay_out([[], [example]]).targets.tolist() == [[0, 0, 0], [np.float32(-1.37), 0, 0]]
    assert layout.lay_out([[]]).targets.dtype == np.float32


def test_examples_without_types_have_type_0():
    example = Example(*(np.ones(2, kind) for kind in (np.int32, np.int32, np.float32)))
    assert RowLayout(3, with_types=True).lay_out([[example]]).types.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("layout", [RowLayout(10), RowLayout(20, 10)], ids=["one side", "source"])
def test_examples_that_do_not_fit_a_row_are_never_written_into_the_next(layout):
    example = make_example([(5, 5, 1, 0)] * 6, range(2, 8))
    with pytest.raises(AssertionError, match="longer"):
        layout.lay_out([[example, example], []])


def test_a_row_with_too_many_masked_tokens_fails_an_assertion():
    example = make_example([(5, 5, 1, 0)] * 3)
    layout = RowLayout(10, max_masked=5)
    assert layout.capacities == (10, 5) and layout.lay_out([[example]]).weights.sum() == 3
    with pytest.raises(AssertionError):
        layout.lay_out([[example, example]])


def test_an_example_may_have_several_segments():
    tokens_T = np.arange(5, dtype=np.int32) + 10
    several = Example(tokens_T, tokens_T, np.ones(5, np.float32), segments=(2, 3))
    one = Example(tokens_T[:2], tokens_T[:2], np.ones(2, np.float32))
    batch = RowLayout(8).lay_out([[one, several], [several]])
    assert batch.tokens.tolist() == [[10, 11, 10, 11, 12, 13, 14, 0], [10, 11, 12, 13, 14, 0, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 2, 2, 3, 3, 3, 0], [1, 1, 2, 2, 2, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 0, 1, 2, 0], [0, 1, 0, 1, 2, 0, 0, 0]]
