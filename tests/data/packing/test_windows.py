"""Windows of a token stream match a loop over tokens, and are the same in every process.

Evaluation scores each target once.
"""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import Config, source
from lm.data.packing.rows import EvalRows, RowLayout, TrainRows, WindowExamples, WindowRows
from lm.data.packing.windows import most_segments, next_tokens, windows_of
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


def num_windows(num_tokens, length, stride):
    return 1 + math.ceil(max(0, num_tokens - 1 - length) / stride)


def make_store(lengths):
    """Returns a store in memory with documents of these lengths, in which all tokens differ."""
    tokens = np.arange(1, sum(lengths) + 1, dtype=np.uint16)
    counts = {"documents": len(lengths), "tokens": len(tokens), "bytes": 0, "words": 0, "unknown": 0, "changed": 0}
    return SimpleNamespace(
        tokens=tokens,
        starts=np.cumsum([0, *lengths])[:-1],
        num_tokens=len(tokens),
        num_documents=len(lengths),
        counts=counts,
    )


def documents_of(store):
    return [document.tolist() for document in np.split(store.tokens, store.starts[1:])]


def check_row(batch, row, documents, start, length, *, circular):
    """Compares a row with a loop over tokens; each target is the next token of the same document."""
    tokens, segments, positions = brute_force(documents, start, length + 1, circular)
    same = [a == b != 0 for a, b in itertools.pairwise(segments)]
    assert batch.tokens[row].tolist() == tokens[:-1]
    assert batch.segments[row].tolist() == segments[:-1]
    assert batch.positions[row].tolist() == positions[:-1]
    assert batch.targets[row].tolist() == [token * is_same for token, is_same in zip(tokens[1:], same, strict=True)]
    return same


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    length=st.integers(1, 40),
    epoch=st.integers(0, 3),
)
def test_training_windows_are_cut_as_in_a_loop_over_tokens(lengths, length, epoch):
    store = make_store(lengths)
    length = min(length, store.num_tokens - 1) or 1
    if store.num_tokens <= length:
        store = make_store([*lengths, 2])
    rows = WindowRows("a", store, 0, length)
    batch = rows.batch([(epoch, row) for row in range(rows.num_rows(epoch))], RowLayout(length))
    for row in range(rows.num_rows(epoch)):
        same = check_row(batch, row, documents_of(store), rows._start(epoch, row), length, circular=True)
        assert batch.weights[row].tolist() == same
    arrays = batch.tokens, batch.targets, batch.positions, batch.segments
    assert {each.dtype for each in arrays} == {np.dtype(np.int32)} and batch.weights.dtype == np.float32


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    length=st.integers(1, 40),
    stride=st.integers(1, 40),
)
def test_evaluation_windows_are_cut_as_in_a_loop_over_tokens(lengths, length, stride):
    store, stride = make_store(lengths), min(stride, length)
    rows = EvalRows(WindowExamples(store, length, stride), RowLayout(length))
    assert rows.num_rows == num_windows(store.num_tokens, length, stride)
    batch = rows.rows(range(rows.num_rows + 2))
    for row in range(rows.num_rows):
        same = check_row(batch, row, documents_of(store), row * stride, length, circular=False)
        scored = [each and (row == 0 or column >= length - stride) for column, each in enumerate(same)]
        assert batch.weights[row].tolist() == scored
    assert not any(np.any(each[rows.num_rows :]) for each in jax.tree.leaves(batch)), "rows past the end are padding"


def test_one_document_that_wraps_is_cut_where_it_begins_again():
    rows = WindowRows("a", make_store([3]), 0, 2)
    epoch = next(epoch for epoch in range(20) if rows._start(epoch, 0) == 1)
    other = WindowRows("a", make_store([2, 1]), 0, 2)
    assert [each.batch([(epoch, 0)], RowLayout(2)).segments.tolist() for each in (rows, other)] == [[[1, 1]], [[1, 2]]]
    rows._start = lambda epoch, row: 2
    batch = rows.batch([(epoch, 0)], RowLayout(2))
    assert [batch.tokens.tolist(), batch.segments.tolist(), batch.weights.tolist()] == [[[3, 1]], [[1, 2]], [[0, 1]]]


def test_a_target_is_the_next_token_of_the_same_document():
    store = make_store([4, 3])
    found = [next_tokens(store, *bounds) for bounds in ((0, 4), (0, 3), (4, 7), (6, 7))]
    assert [each.tokens_T.tolist() for each in found] == [[1, 2, 3, 4], [1, 2, 3], [5, 6, 7], [7]]
    assert [each.targets_T.tolist() for each in found] == [[2, 3, 4, 0], [2, 3, 4], [6, 7, 0], [0]]
    assert [each.weights_T.tolist() for each in found] == [[1, 1, 1, 0], [1, 1, 1], [1, 1, 0], [0]]


@pytest.mark.parametrize("num_tokens", [2, 3, 16, 17, 18, 33, 100])
@pytest.mark.parametrize("stride", [1, 3, 8, 16])
def test_every_target_is_scored_once_and_with_the_most_context(num_tokens, stride):
    length = 16
    n = num_windows(num_tokens, length, stride)
    weights = (
        EvalRows(WindowExamples(make_store([num_tokens]), length, stride), RowLayout(length)).rows(range(n)).weights
    )
    count = np.zeros(num_tokens + 2 * length, int)
    for i in range(n):
        for column in range(length):
            count[i * stride + column + 1] += weights[i, column]
            if weights[i, column] and i > 0:
                assert column >= length - stride  # at least this number of tokens precedes it in the window
    assert count[0] == 0
    assert (count[1:num_tokens] == 1).all() and not count[num_tokens:].any()
    assert n == 1 or (n - 2) * stride + length < num_tokens - 1, "the last window is needed"


@settings(max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 15))
def test_the_most_segments_of_a_window(lengths, length):
    store = make_store(lengths)
    starts = np.arange(store.num_tokens)
    if store.num_tokens > length:
        segments = windows_of(store, starts, length)[-1]
        assert most_segments(store, length) == segments.max()
        rows = WindowRows("name", store, 0, length)
        assert rows.max_segments == segments.max()


def test_an_epoch_has_as_many_rows_as_fit_the_stream():
    counts = [WindowRows("a", make_store([num_tokens]), 0, 16).num_rows(0) for num_tokens in (17, 32, 1000)]
    assert counts == [1, 2, 62]


def train_rows(folder, **sizes):
    config = make_config(folder, **sizes)
    prepared = prepare(config, folder / "run")
    return task_of(config).train_rows(config, prepared.tokenizer, prepared.stores["train"]), prepared


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
            start = rows._sources["a"]._start(epoch, row)
            offsets.add(start % LENGTH)
            seen[(start + np.arange(LENGTH)) % len(stream)] += 1
        assert seen.max() == 1 and (seen == 0).sum() < LENGTH
    assert len(offsets) == 3, "each epoch cuts at other tokens"


def test_rows_are_windows_of_the_stream(single):
    rows, prepared = single
    stream = prepared.stores["train"]["a"].tokens
    batch = rows.rows(5, range(BATCH))
    for r, (name, epoch, row) in enumerate(rows.locate(5, range(BATCH))):
        at = (rows._sources[name]._start(epoch, row) + np.arange(LENGTH + 1)) % len(stream)
        assert batch.tokens[r].tolist() == stream[at[:-1]].tolist()
        scored = batch.weights[r] > 0
        assert batch.targets[r][scored].tolist() == stream[at[1:]][scored].tolist()
        assert (scored == (stream[at[1:]] != prepared.tokenizer.bos_id)).all()


def test_batches_of_all_sources_name_the_most_segments_of_any_row(mixed, monkeypatch):
    rows, _ = mixed
    batches = [rows.rows(step, range(BATCH)) for step in range(20)]
    assert {each.max_segments for each in batches} == {rows.max_segments}
    assert max(each.segments.max() for each in batches) <= rows.max_segments
    assert rows.max_segments == max(each.max_segments for each in rows._sources.values())
    monkeypatch.setattr(rows._sources["b"], "max_segments", 0)
    assert TrainRows(mixed[1].config, rows._sources, rows._layout).max_segments == 0


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
    other, again = (
        task_of(config).train_rows(config, prepared.tokenizer, prepared.stores["train"])
        for config in (dataclasses.replace(prepared.config, seed=1), prepared.config)
    )
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
        rows = EvalRows(WindowExamples(store, LENGTH, stride), RowLayout(LENGTH))
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
        assert each.num_rows == num_windows(stores[name].num_tokens, LENGTH, 5) > rows[name].num_rows
