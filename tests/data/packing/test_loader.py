"""Rows are a function of (config, step, row), whoever asks, and evaluation scores each target once."""

import dataclasses
import glob
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from lm.config import Config, defaults, source
from lm.data.packing import causal, loader
from lm.errors import UserError
from lm.runs.prepare import prepare

LENGTH, BATCH = 16, 8


def make_config(folder, **sizes):
    values = defaults()
    for name, (size, weight) in sizes.items():
        text = "".join(f"<{name}{i}>" for i in range(size))
        (Path(folder) / f"{name}.txt").write_text(text)
        values.data.train[name] = source(path=str(Path(folder) / f"{name}.txt"), weight=weight)
    values.data.tokenizer.kind = "bytes"
    values.data.holdout = "tail"
    values.data.sequence_length = LENGTH
    values.data.cache_dir = str(Path(folder) / "cache")
    values.train.batch_size = BATCH
    return Config.from_dict(values.to_dict())


def train_rows(folder, **sizes):
    config = make_config(folder, **sizes)
    prepared = prepare(config, Path(folder) / "run")
    return loader.TrainRows(config, prepared, causal.features), prepared


@pytest.fixture
def mixed(tmp_path):
    return train_rows(tmp_path, a=(60, 3.0), b=(200, 1.0))


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_an_epoch_holds_each_row_once_in_a_new_order(tmp_path):
    rows, _ = train_rows(tmp_path, a=(300, 1.0))
    count = rows.rows_per_epoch()["a"]
    places = [place for step in range(3 * count // BATCH + 1) for place in rows.places(step, range(BATCH))]
    orders = []
    for epoch in range(3):
        part = places[epoch * count : (epoch + 1) * count]
        assert [p[1] for p in part] == [epoch] * count
        orders.append([p[2] for p in part])
        assert sorted(orders[-1]) == list(range(count))
    assert orders[0] != orders[1] != orders[2] and orders[0] != list(range(count))


def test_an_epoch_reads_each_token_once_but_for_less_than_a_row(tmp_path):
    rows, prepared = train_rows(tmp_path, a=(300, 1.0))
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
    assert len(offsets) == 3, "each epoch cuts at other places"


def test_windows_are_those_of_the_stream(tmp_path):
    rows, prepared = train_rows(tmp_path, a=(300, 1.0))
    stream = prepared.stores["train"]["a"].tokens
    batch = rows.rows(5, range(BATCH))
    for r, (name, epoch, row) in enumerate(rows.places(5, range(BATCH))):
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
            part = rows.rows(step, ids)
            assert equal(part, jax.tree.map(lambda x, ids=ids: x[list(ids)], whole))
    assert not equal(rows.rows(0, range(BATCH)), rows.rows(1, range(BATCH)))


def test_the_mixture_follows_the_weights(mixed):
    rows, _ = mixed
    names = [place[0] for step in range(100) for place in rows.places(step, range(BATCH))]
    assert abs(names.count("a") / len(names) - 0.75) < 0.01
    assert max(place[1] for place in rows.places(99, range(BATCH)) if place[0] == "a") > 5, "a is repeated"


def test_the_seed_decides(tmp_path):
    rows, prepared = train_rows(tmp_path, a=(300, 1.0))
    other = loader.TrainRows(dataclasses.replace(prepared.config, seed=1), prepared, causal.features)
    again = loader.TrainRows(prepared.config, prepared, causal.features)
    assert equal(rows.rows(3, range(BATCH)), again.rows(3, range(BATCH)))
    assert not equal(rows.rows(3, range(BATCH)), other.rows(3, range(BATCH)))


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_evaluation_scores_every_token_but_the_first_of_each_document_once(tmp_path, stride):
    text = tmp_path / "lines.txt"
    text.write_text("".join(f"{'x' * (i * 7 % 40)} line {i}\n" for i in range(60)))
    values = make_config(tmp_path, a=(30, 1.0)).to_dict()
    values["data"]["valid"] = {"lines": source(path=str(text), document="line").to_dict()}
    values["eval"]["stride"] = stride
    config = Config.from_dict(values)
    prepared = prepare(config, tmp_path / "run")
    rows = loader.eval_rows(config, prepared.stores["valid"], causal.features)["lines"]
    batches = [rows.rows(range(i, i + BATCH)) for i in range(0, rows.num_rows + BATCH, BATCH)]
    scored = np.concatenate([b.targets[b.weights > 0] for b in batches])
    stream = prepared.stores["valid"]["lines"].tokens
    assert scored.tolist() == stream[stream != prepared.tokenizer.bos_id].tolist()
    assert len(scored) == rows.totals["targets"] and rows.totals["bytes"] == text.stat().st_size - 60
    beyond = rows.rows([rows.num_rows, rows.num_rows + 5])
    assert not beyond.weights.any() and not beyond.segments.any() and not beyond.tokens.any()


def test_sources_are_kept_apart_in_evaluation(mixed):
    _, prepared = mixed
    rows = loader.eval_rows(prepared.config, prepared.stores["valid"], causal.features)
    assert list(rows) == ["a", "b"]
    assert rows["a"].totals["targets"] == prepared.stores["valid"]["a"].num_tokens - 1


def make_batch(rows, step):
    if step == 12:
        raise UserError("batch 12 is bad")
    return rows.rows(step, range(BATCH))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_stream_and_its_errors_are_the_same_for_every_number_of_workers(mixed, workers):
    rows, _ = mixed
    with loader.prefetch(partial(make_batch, rows), 3, 15, workers=workers, depth=3) as batches:
        found = [next(batches) for _ in range(9)]
        with pytest.raises(UserError, match="batch 12 is bad"):
            next(batches)
    assert all(equal(batch, make_batch(rows, step)) for step, batch in enumerate(found, start=3))


def test_a_thread_is_ended_by_close():
    results = loader.prefetch(lambda i: i, 0, 10**9, depth=2)
    assert next(results) == 0
    results.close()
    assert not results._thread.is_alive()
    with pytest.raises(StopIteration):
        next(results)


def test_it_computes_no_more_than_asked():
    asked = []
    with loader.prefetch(lambda i: asked.append(i) or i, 0, 100, depth=2) as results:
        next(results)
        time.sleep(0.3)
        assert len(asked) <= 1 + 2 + 1  # taken, waiting, and the one in hand
    assert list(loader.prefetch(lambda i: i, 4, 4)) == []


PARENT = """
import os, sys, time
from lm.data.packing import loader
def worker_pid(i):
    return os.getpid()
if __name__ == "__main__":
    results = loader.prefetch(worker_pid, 0, 10**9, workers=1, depth=4)
    print(next(results), flush=True)
    time.sleep(600)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="reads /proc")
def test_a_killed_parent_leaves_no_workers_and_no_shared_memory(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = str(Path(loader.__file__).parents[3])
    before = set(glob.glob("/dev/shm/*"))
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    try:
        worker = int(parent.stdout.readline())
        assert worker != parent.pid and alive(worker)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(worker)
    time.sleep(0.5)
    assert not [name for name in set(glob.glob("/dev/shm/*")) - before if "psm" in name]
