"""Packed rows are a function of (config, step, row) in every process; evaluation has each example once."""

import dataclasses
import math
import pickle
from collections import Counter
from functools import partial

import jax
import numpy as np
import pytest

from lm.config import Config, defaults, source
from lm.data.examples.example import Example, Examples
from lm.data.packing.prefetch import prefetch
from lm.data.packing.rows import EvalRows, PackedRows, RowLayout, TrainRows

BATCH, SOURCE, LENGTH = 8, 24, 20
ONE_SIDED, TWO_SIDED = RowLayout(LENGTH, with_types=True), RowLayout(LENGTH, SOURCE)


class Numbered(Examples):
    """Examples whose tokens are all 100 + their index; the epoch determines their sizes.

    A number of tokens at the start, also drawn by epoch, has weight 1.
    """

    def __init__(self, count, seed=0):
        self.count, self.seed = count, seed

    text = property(lambda self: {"documents": self.count + 7, "bytes": 0, "words": 0, "unknown": 3})

    def __len__(self):
        return self.count

    def sizes(self, epoch):
        return self._both(epoch)

    def _both(self, epoch):
        rng = np.random.default_rng([self.seed, epoch])
        return rng.integers(2, 9, self.count), rng.integers(2, 12, self.count)

    def make(self, epoch, index):
        size, source_size = (int(each[index]) for each in self._both(epoch))
        scored = int(np.random.default_rng([epoch, index]).integers(0, size))
        tokens, source_tokens = (np.full(each, 100 + index, np.int32) for each in (size, source_size))
        weights = (np.arange(size) < scored).astype(np.float32)
        return Example(tokens, tokens + 1, weights, np.arange(size, dtype=np.int32) % 2, source_tokens)


class OneSided(Numbered):
    """The same for rows without a source side."""

    def sizes(self, epoch):
        return self._both(epoch)[:1]


KINDS = {"one side": (OneSided, ONE_SIDED), "two sides": (Numbered, TWO_SIDED)}


def make_config(**weights):
    values = defaults()
    for name, weight in weights.items():
        values.data.train[name] = source(path="unread.txt", weight=weight, document="line", target_path="unread.too")
    values.objective.name = "seq2seq"
    values.model.family = "encoder_decoder"
    values.data.update(sequence_length=LENGTH, source_length=SOURCE)
    values.train.batch_size = BATCH
    return Config.from_dict(values.to_dict())


def train_rows(config, examples, layout):
    return TrainRows(
        config, {name: PackedRows(name, each, config.seed, layout) for name, each in examples.items()}, layout
    )


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def rows(kind):
    examples, layout = kind
    return train_rows(make_config(a=1.0), {"a": examples(150)}, layout)


@pytest.fixture
def mixed():
    return train_rows(make_config(a=3.0, b=1.0), {"a": Numbered(40), "b": Numbered(150, seed=1)}, TWO_SIDED)


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def examples_of(batch, row):
    """Returns (index, first column) of each example of a row, in order; both sides must have the same examples."""
    found = []
    sides = [batch] if batch.source is None else [batch, batch.source]
    for side in sides:
        examples = []
        for segment in range(1, side.segments[row].max() + 1):
            inside = np.flatnonzero(side.segments[row] == segment)
            assert len(set(side.tokens[row][inside].tolist())) == 1, "a segment is of one example"
            assert np.ptp(inside) == len(inside) - 1
            examples.append((int(side.tokens[row][inside[0]]) - 100, int(inside[0])))
        found.append(examples)
    numbers = [[number for number, _ in side] for side in found]
    assert numbers[0] == numbers[-1], "segment i of the source belongs to segment i of the target"
    return found[0]


def numbers_of(batch, row):
    return [number for number, _ in examples_of(batch, row)]


def test_an_epoch_holds_each_example_once_in_a_new_order(rows, kind):
    wanted, epochs, step = 4, {}, 0
    sizes = kind[0](150).sizes
    while len(epochs) <= wanted:
        batch = rows.rows(step, range(BATCH))
        for row, (name, epoch, number) in enumerate(rows.locate(step, range(BATCH))):
            found = epochs.setdefault(epoch, [])
            assert name == "a" and number == len(found), "rows of an epoch come in turn, and epochs in turn"
            found.append(numbers_of(batch, row))
            assert (batch.segments[row] > 0).sum() == sum(sizes(epoch)[0][found[-1]]) <= LENGTH
        if batch.types is not None:
            assert np.array_equal(batch.types, np.where(batch.segments > 0, batch.positions % 2, 0))
        step += 1
    orders = [[i for row in epochs[epoch] for i in row] for epoch in range(wanted)]
    for order in orders:
        assert sorted(order) == list(range(150))
    assert len({tuple(order) for order in orders}) == wanted and orders[0] != list(range(150))
    counts = [len(epochs[epoch]) for epoch in range(wanted)]
    assert len(set(counts)) > 1, "the test needs epochs with different numbers of rows"
    assert rows.rows_per_epoch() == {"a": counts[0]}


def test_a_row_is_the_same_whoever_asks_and_in_whatever_order(rows, mixed):
    for each in (rows, mixed):
        wholes = {step: each.rows(step, range(BATCH)) for step in (0, 7, 60)}
        fresh = pickle.loads(pickle.dumps(each))
        for step in (60, 0, 7):  # alternates between epochs
            for ids in ([3], [6, 1], range(4, 8)):  # as other processes would request their rows
                some = jax.tree.map(lambda x, ids=ids: x[list(ids)], wholes[step])
                assert equal(each.rows(step, ids), some) and equal(fresh.rows(step, ids), some)
        assert not equal(wholes[0], wholes[7])


def test_sources_are_mixed_by_weight_and_each_repeats_for_itself(mixed):
    located = [each for step in range(100) for each in mixed.locate(step, range(BATCH))]
    names = Counter(name for name, _, _ in located)
    assert abs(names["a"] / len(located) - 0.75) < 0.01
    for name in "ab":
        mine = [each[1:] for each in located if each[0] == name]
        assert mine == sorted(mine) and len(set(mine)) == len(mine)
    assert max(epoch for name, epoch, _ in located if name == "a") > 5
    batch = mixed.rows(11, range(BATCH))
    for row, (name, epoch, _) in enumerate(mixed.locate(11, range(BATCH))):
        sizes = Numbered(40 if name == "a" else 150, seed=int(name == "b")).sizes(epoch)
        assert (batch.segments[row] > 0).sum() == sum(int(sizes[0][i]) for i in numbers_of(batch, row))


def test_the_seed_decides():
    config = make_config(a=1.0)
    one, same, other = (
        train_rows(dataclasses.replace(config, seed=seed), {"a": Numbered(150)}, TWO_SIDED) for seed in (0, 0, 1)
    )
    assert equal(one.rows(3, range(BATCH)), same.rows(3, range(BATCH)))
    assert not equal(one.rows(3, range(BATCH)), other.rows(3, range(BATCH)))


def make_batch(rows, step):
    return rows.rows(step, range(BATCH))


@pytest.mark.exhaustive
def test_a_worker_process_makes_the_same_rows(mixed):
    with prefetch(partial(make_batch, mixed), 30, 36, workers=1) as batches:
        found = list(batches)
    assert len(found) == 6
    assert all(equal(batch, make_batch(mixed, step)) for step, batch in enumerate(found, start=30))


def test_one_small_example_is_a_whole_epoch():
    rows = train_rows(make_config(a=1.0), {"a": Numbered(1)}, TWO_SIDED)
    assert rows.locate(2, range(BATCH)) == [("a", 16 + r, 0) for r in range(BATCH)]


def test_only_the_plans_of_the_last_epochs_are_kept_and_none_is_sent_to_workers(rows):
    rows.rows(50, range(BATCH))
    assert len(rows._sources["a"]._kept._values) <= 2 < len(rows._sources["a"]._ends)
    assert len(pickle.dumps(rows)) < 3000


def test_evaluation_has_each_example_of_epoch_0_once_and_then_padding(kind):
    examples, layout = kind[0](100), kind[1]
    rows = EvalRows(examples, layout)
    batches = [rows.rows(np.arange(i, i + BATCH)) for i in range(0, rows.num_rows + BATCH, BATCH)]
    found = [examples_of(batch, row) for batch in batches for row in range(BATCH)]
    assert [index for row in found for index, _ in row] == list(range(100))
    assert [rows.starts(row) for row in range(len(found))] == found, "and nothing in rows past the end"
    assert rows.num_rows < len(found) and not found[rows.num_rows]
    weights = sum(batch.weights.sum() for batch in batches)
    assert weights == rows.totals["targets"] == sum(examples.make(0, i).weights_T.sum() for i in range(100))
    assert rows.totals == {"targets": weights, **examples.text}
    least = max(math.ceil(sizes.sum() / each) for sizes, each in zip(examples.sizes(0), layout.capacities, strict=True))
    assert least <= rows.num_rows < 100
    beyond = rows.rows([rows.num_rows, rows.num_rows + 7])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(beyond)) and beyond.shape == (2, LENGTH)
    assert (rows.rows([0]).types is not None) == layout.with_types
