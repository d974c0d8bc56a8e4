"""Windows of a token stream against a loop over tokens; rows of windows are the same whoever asks.

Evaluation scores each target once.
"""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import Config, source
from lm.data.packing.windows import (
    WindowEvalRows,
    Windows,
    WindowTrainRows,
    cut_windows,
    next_token_batch,
    num_evaluation_rows,
    num_training_rows,
    scored_targets,
)
from lm.runs.prepare import prepare
from lm.tasks import task_of
from tests.data.packing.texts import BATCH, LENGTH, equal, make_config


def brute_force(documents, start, length, circular):
    stream = [(token, i) for document in documents for i, token in enumerate(document)]
    tokens, segments, positions = [], [], []
    segment, position = 0, 0
    for k in range(length):
        index = start + k
        if circular:
            index %= len(stream)
        if index >= len(stream):
            tokens.append(0), segments.append(0), positions.append(0)
            continue
        token, i = stream[index]
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
def test_windows_are_cut_as_in_a_loop_over_tokens(lengths, starts, length, circular):
    counter = iter(range(1, 1000))
    documents = [[next(counter) for _ in range(n)] for n in lengths]
    tokens = np.array([t for d in documents for t in d], np.uint16)
    offsets = np.cumsum([0, *lengths])[:-1]
    rows = cut_windows(tokens, offsets, np.array(starts), length, circular=circular)
    for r, start in enumerate(starts):
        want = brute_force(documents, start, length, circular)
        assert rows.tokens_RM[r].tolist() == want[0]
        assert rows.segments_RM[r].tolist() == want[1]
        assert rows.positions_RM[r].tolist() == want[2]
    assert {a.dtype for a in (rows.tokens_RM, rows.segments_RM, rows.positions_RM)} == {np.dtype(np.int32)}


def test_one_document_that_wraps_is_cut_where_it_begins_again():
    rows = cut_windows(np.array([7, 8, 9]), np.array([0]), np.array([1]), 5, circular=True)
    assert rows.tokens_RM.tolist() == [[8, 9, 7, 8, 9]]
    assert rows.segments_RM.tolist() == [[1, 1, 2, 2, 2]]
    assert rows.positions_RM.tolist() == [[0, 1, 0, 1, 2]]


def test_a_target_is_the_next_token_of_the_same_document():
    tokens = np.array([[1, 7, 8, 2, 1, 9, 0]], np.int32)
    segments = np.array([[1, 1, 1, 1, 2, 2, 0]], np.int32)
    positions = np.array([[0, 1, 2, 3, 0, 1, 0]], np.int32)
    batch = next_token_batch(Windows(tokens, segments, positions))
    np.testing.assert_array_equal(batch.tokens, [[1, 7, 8, 2, 1, 9]])
    np.testing.assert_array_equal(batch.targets, [[7, 8, 2, 0, 9, 0]])
    np.testing.assert_array_equal(batch.weights, [[1, 1, 1, 0, 1, 0]])
    np.testing.assert_array_equal(batch.segments, [[1, 1, 1, 1, 2, 2]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 0, 1]])


@pytest.mark.parametrize("num_tokens", [2, 3, 16, 17, 18, 33, 100])
@pytest.mark.parametrize("stride", [1, 3, 8, 16])
def test_every_target_is_scored_once_and_with_the_most_context(num_tokens, stride):
    length = 16
    n = num_evaluation_rows(num_tokens, length, stride)
    ids = np.arange(n)
    scored = scored_targets(ids, length, stride)
    count = np.zeros(num_tokens + 2 * length, int)
    for i in ids:
        for column in range(length):
            count[i * stride + column + 1] += scored[i, column]
            if scored[i, column] and i > 0:
                assert column >= length - stride  # at least this many tokens of the window come before it
    assert count[0] == 0
    assert (count[1:num_tokens] == 1).all()
    assert n == 1 or (n - 2) * stride + length < num_tokens - 1, "the last window is needed"


def test_an_epoch_has_as_many_rows_as_fit_the_stream():
    assert num_training_rows(17, 16) == 1
    assert num_training_rows(32, 16) == 2
    assert num_training_rows(1000, 16) == 62


def train_rows(folder, **sizes):
    config = make_config(folder, **sizes)
    prepared = prepare(config, folder / "run")
    return WindowTrainRows(config, prepared.stores["train"]), prepared


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return train_rows(tmp_path_factory.mktemp("single"), a=(300, 1.0))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return train_rows(tmp_path_factory.mktemp("mixed"), a=(60, 3.0), b=(200, 1.0))


def test_an_epoch_holds_each_row_once_in_a_new_order(single):
    rows, _ = single
    count = rows.rows_per_epoch()["a"]
    located = [each for step in range(3 * count // BATCH + 1) for each in rows.locate(step, range(BATCH))]
    orders = []
    for epoch in range(3):
        found = located[epoch * count : (epoch + 1) * count]
        assert [each[1] for each in found] == [epoch] * count
        orders.append([each[2] for each in found])
        assert sorted(orders[-1]) == list(range(count))
    assert orders[0] != orders[1] != orders[2] and orders[0] != list(range(count))


def test_an_epoch_reads_each_token_once_except_for_less_than_a_row(single):
    rows, prepared = single
    stream = prepared.stores["train"]["a"].tokens
    count = rows.rows_per_epoch()["a"]
    offsets = set()
    for epoch in range(3):
        seen = np.zeros(len(stream), int)
        for row in range(count):
            start = rows._start("a", epoch, row)
            offsets.add(start % LENGTH)
            seen[(start + np.arange(LENGTH)) % len(stream)] += 1
        assert seen.max() == 1 and (seen == 0).sum() < LENGTH
    assert len(offsets) == 3, "each epoch cuts at other tokens"


def test_rows_are_windows_of_the_stream(single):
    rows, prepared = single
    stream = prepared.stores["train"]["a"].tokens
    batch = rows.rows(5, range(BATCH))
    for r, (name, epoch, row) in enumerate(rows.locate(5, range(BATCH))):
        at = (rows._start(name, epoch, row) + np.arange(LENGTH + 1)) % len(stream)
        assert batch.tokens[r].tolist() == stream[at[:-1]].tolist()
        scored = batch.weights[r] > 0
        assert batch.targets[r][scored].tolist() == stream[at[1:]][scored].tolist()
        assert (scored == (stream[at[1:]] != prepared.tokenizer.bos_id)).all()


def test_a_row_is_the_same_whoever_asks(mixed):
    rows, _ = mixed
    for step in (0, 7, 10_000):
        whole = rows.rows(step, range(BATCH))
        for ids in ([3], [6, 1], range(4, 8)):
            some = rows.rows(step, ids)
            assert equal(some, jax.tree.map(lambda x, ids=ids: x[list(ids)], whole))
    assert not equal(rows.rows(0, range(BATCH)), rows.rows(1, range(BATCH)))


def test_the_mixture_follows_the_weights(mixed):
    rows, _ = mixed
    names = [each[0] for step in range(100) for each in rows.locate(step, range(BATCH))]
    assert abs(names.count("a") / len(names) - 0.75) < 0.01
    assert max(each[1] for each in rows.locate(99, range(BATCH)) if each[0] == "a") > 5, "a is repeated"


def test_the_seed_decides(single):
    rows, prepared = single
    stores = prepared.stores["train"]
    other = WindowTrainRows(dataclasses.replace(prepared.config, seed=1), stores)
    again = WindowTrainRows(prepared.config, stores)
    assert equal(rows.rows(3, range(BATCH)), again.rows(3, range(BATCH)))
    assert not equal(rows.rows(3, range(BATCH)), other.rows(3, range(BATCH)))


def test_evaluation_scores_every_token_except_the_first_of_each_document_once(tmp_path):
    text = tmp_path / "lines.txt"
    text.write_text("".join(f"{'x' * (i * 7 % 40)} line {i}\n" for i in range(60)))
    values = make_config(tmp_path, a=(30, 1.0)).to_dict()
    values["data"]["valid"] = {"lines": source(path=str(text), document="line").to_dict()}
    prepared = prepare(Config.from_dict(values), tmp_path / "run")
    store = prepared.stores["valid"]["lines"]
    for stride in (1, 5, 16):
        rows = WindowEvalRows(store, LENGTH, stride)
        batches = [rows.rows(range(i, i + BATCH)) for i in range(0, rows.num_rows + BATCH, BATCH)]
        scored = np.concatenate([b.targets[b.weights > 0] for b in batches])
        assert scored.tolist() == store.tokens[store.tokens != prepared.tokenizer.bos_id].tolist()
        assert len(scored) == rows.totals["targets"] and rows.totals["bytes"] == text.stat().st_size - 60
        beyond = rows.rows([rows.num_rows, rows.num_rows + 5])
        assert not beyond.weights.any() and not beyond.segments.any() and not beyond.tokens.any()


def test_sources_are_kept_apart_in_evaluation_and_the_stride_is_that_of_the_config(mixed):
    _, prepared = mixed
    config, stores = prepared.config, prepared.stores["valid"]
    rows = task_of(config).eval_rows(config, prepared.tokenizer, stores)
    assert list(rows) == ["a", "b"]
    assert rows["a"].totals["targets"] == stores["a"].num_tokens - 1
    short = dataclasses.replace(config, eval=dataclasses.replace(config.eval, stride=5))
    for name, each in task_of(short).eval_rows(short, prepared.tokenizer, stores).items():
        assert each.num_rows == num_evaluation_rows(stores[name].num_tokens, LENGTH, 5) > rows[name].num_rows
