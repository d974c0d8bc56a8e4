"""Packed rows are a function of (config, step, row), whoever asks; evaluation has each example once."""

import dataclasses
import math
import pickle
from collections import Counter
from functools import partial

import jax
import numpy as np
import pytest

from lm.config import Config, defaults, source
from lm.data.packing import loader
from lm.data.packing.packed_rows import PackedTrainRows
from lm.data.packing.pair_rows import PairEvalRows, PairLayout

BATCH, SOURCE, LENGTH, BOS = 8, 24, 20, 1
LAYOUT = PairLayout(SOURCE, LENGTH, BOS)


class Numbered:
    """Examples that carry their number: source and target of a drawn size, filled with 100 + number."""

    missing = "made up"

    def __init__(self, count, seed=0, constant=False):
        self.count, self.seed, self.constant = count, seed, constant

    text = property(lambda self: {"documents": self.count, "bytes": 0, "words": 0, "unknown": 0})

    def __len__(self):
        return self.count

    def sizes(self, epoch):
        rng = np.random.default_rng([self.seed, 0 if self.constant else epoch])
        return rng.integers(2, 12, self.count), rng.integers(2, 9, self.count)

    def make(self, epoch, index):
        sizes = [int(size[index]) for size in self.sizes(epoch)]
        return tuple(np.full(size, 100 + index, np.int32) for size in sizes)


def make_config(**weights):
    values = defaults()
    for name, weight in weights.items():
        values.data.train[name] = source(path="unread.txt", weight=weight, document="line", target_path="unread.too")
    values.objective.name = "seq2seq"
    values.model.family = "encoder_decoder"
    values.data.update(sequence_length=LENGTH, source_length=SOURCE)
    values.train.batch_size = BATCH
    return Config.from_dict(values.to_dict())


@pytest.fixture
def rows():
    return PackedTrainRows(make_config(a=1.0), {"a": Numbered(150)}, LAYOUT)


@pytest.fixture
def mixed():
    return PackedTrainRows(make_config(a=3.0, b=1.0), {"a": Numbered(40), "b": Numbered(150, seed=1)}, LAYOUT)


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def examples_of(batch, row):
    """Numbers of the examples of a row, in order, read from both sides."""
    found = []
    for segments, tokens in ((batch.segments, batch.targets), (batch.source.segments, batch.source.tokens)):
        numbers = []
        for segment in range(1, segments[row].max() + 1):
            inside = tokens[row][segments[row] == segment]
            assert len(set(inside.tolist())) == 1, "a segment is of one example"
            numbers.append(int(inside[0]) - 100)
        found.append(numbers)
    assert found[0] == found[1], "segment i of the source belongs to segment i of the target"
    return found[0]


def test_an_epoch_holds_each_example_once_in_a_new_order(rows):
    wanted, epochs, step = 4, {}, 0
    while len(epochs) <= wanted:
        batch = rows.rows(step, range(BATCH))
        for row, (name, epoch, number) in enumerate(rows.places(step, range(BATCH))):
            part = epochs.setdefault(epoch, [])
            assert name == "a" and number == len(part), "rows of an epoch come in turn, and epochs in turn"
            part.append(examples_of(batch, row))
        step += 1
    orders = [[i for row in epochs[epoch] for i in row] for epoch in range(wanted)]
    for order in orders:
        assert sorted(order) == list(range(150))
    assert len({tuple(order) for order in orders}) == wanted and orders[0] != list(range(150))
    counts = [len(epochs[epoch]) for epoch in range(wanted)]
    assert len(set(counts)) > 1, "the test means epochs of different numbers of rows"
    assert rows.rows_per_epoch() == {"a": counts[0]}


def test_a_row_is_the_same_whoever_asks_and_in_whatever_order(rows, mixed):
    for each in (rows, mixed):
        wholes = {step: each.rows(step, range(BATCH)) for step in (0, 7, 60)}
        fresh = pickle.loads(pickle.dumps(each))
        for step in (60, 0, 7):  # back and forth between epochs
            for ids in ([3], [6, 1], range(4, 8)):
                part = jax.tree.map(lambda x, ids=ids: x[list(ids)], wholes[step])
                assert equal(each.rows(step, ids), part) and equal(fresh.rows(step, ids), part)
        assert not equal(wholes[0], wholes[7])


def test_sources_are_mixed_by_weight_and_each_repeats_for_itself(mixed):
    places = [place for step in range(100) for place in mixed.places(step, range(BATCH))]
    names = Counter(place[0] for place in places)
    assert abs(names["a"] / len(places) - 0.75) < 0.01
    for name in "ab":
        mine = [place[1:] for place in places if place[0] == name]
        assert mine == sorted(mine) and len(set(mine)) == len(mine)
    assert max(place[1] for place in places if place[0] == "a") > 5
    batch = mixed.rows(11, range(BATCH))
    for row, (name, epoch, _) in enumerate(mixed.places(11, range(BATCH))):
        sizes = Numbered(40 if name == "a" else 150, seed=int(name == "b")).sizes(epoch)
        assert (batch.segments[row] > 0).sum() == sum(int(sizes[1][i]) for i in examples_of(batch, row))


def test_the_seed_decides():
    config = make_config(a=1.0)
    one, same, other = (
        PackedTrainRows(dataclasses.replace(config, seed=seed), {"a": Numbered(150)}, LAYOUT) for seed in (0, 0, 1)
    )
    assert equal(one.rows(3, range(BATCH)), same.rows(3, range(BATCH)))
    assert not equal(one.rows(3, range(BATCH)), other.rows(3, range(BATCH)))


def make_batch(rows, step):
    return rows.rows(step, range(BATCH))


def test_a_worker_process_makes_the_same(mixed):
    with loader.prefetch(partial(make_batch, mixed), 30, 36, workers=1) as batches:
        found = list(batches)
    assert len(found) == 6
    assert all(equal(batch, make_batch(mixed, step)) for step, batch in enumerate(found, start=30))


def test_one_small_example_is_a_whole_epoch():
    rows = PackedTrainRows(make_config(a=1.0), {"a": Numbered(1)}, LAYOUT)
    assert rows.places(2, range(BATCH)) == [("a", 16 + r, 0) for r in range(BATCH)]


def test_only_the_plans_of_the_last_epochs_are_kept_and_none_is_sent_to_workers(rows):
    rows.rows(50, range(BATCH))
    assert len(rows._sources["a"]._kept) <= 2 < len(rows._sources["a"]._ends)
    assert len(pickle.dumps(rows)) < 3000


def test_evaluation_has_each_example_once_and_padding_after():
    examples = Numbered(100)
    rows = PairEvalRows(examples, LAYOUT)
    batches = [rows.rows(np.arange(i, i + BATCH)) for i in range(0, rows.num_rows, BATCH)]
    assert [i for batch in batches for row in range(BATCH) for i in examples_of(batch, row)] == list(range(100))
    assert sum(batch.weights.sum() for batch in batches) == rows.totals["targets"] == examples.sizes(0)[1].sum()
    assert rows.totals == {"targets": rows.totals["targets"], **examples.text} and rows.missing == "made up"
    least = math.ceil(max(examples.sizes(0)[0].sum() / SOURCE, examples.sizes(0)[1].sum() / LENGTH))
    assert least <= rows.num_rows < 100
    beyond = rows.rows([rows.num_rows, rows.num_rows + 7])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(beyond)) and beyond.shape == (2, LENGTH)
