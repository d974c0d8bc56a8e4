"""Prefetched batches, from a thread or from processes, are the same and in order; nothing is left behind."""

import glob
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from lm.data.packing.prefetch import prefetch
from lm.errors import UserError
from lm.runs.prepare import prepare
from lm.tasks import task_of
from tests.data.packing.texts import BATCH, equal, make_config


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    config = make_config(folder, a=(60, 3.0), b=(200, 1.0))
    prepared = prepare(config, folder / "run")
    return task_of(config).train_rows(config, prepared.tokenizer, prepared.stores["train"])


def make_batch(rows, step):
    if step == 12:
        raise UserError("batch 12 is bad")
    return rows.rows(step, range(BATCH))


@pytest.mark.parametrize("workers", [0, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 2))])
def test_the_stream_and_its_errors_are_the_same_for_every_number_of_workers(rows, workers):
    with prefetch(partial(make_batch, rows), 3, 15, workers=workers, depth=3) as batches:
        found = [next(batches) for _ in range(9)]
        with pytest.raises(UserError, match="batch 12 is bad"):
            next(batches)
    assert all(equal(batch, make_batch(rows, step)) for step, batch in enumerate(found, start=3))


def test_close_ends_the_thread():
    before = set(threading.enumerate())
    with prefetch(lambda i: i, 0, 10**9, depth=2) as results:
        assert next(results) == 0
        assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) <= before
    with pytest.raises(ValueError, match="closed"):
        next(results)


def test_no_more_results_are_computed_than_the_depth_allows():
    asked = []
    with prefetch(lambda i: asked.append(i) or i, 0, 100, depth=2) as results:
        next(results)
        time.sleep(0.3)
        assert len(asked) <= 1 + 2 + 1  # one taken, two waiting, one being computed
    with prefetch(lambda i: i, 4, 4) as results:
        assert list(results) == []


PARENT = """
import os, sys, time
from lm.data.packing.prefetch import prefetch
def worker_pid(i):
    return os.getpid()
if __name__ == "__main__":
    with prefetch(worker_pid, 0, 10**9, workers=1, depth=4) as results:
        print(next(results), flush=True)
        time.sleep(600)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="reads /proc")
@pytest.mark.exhaustive
def test_a_killed_parent_leaves_no_workers_and_no_shared_memory(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = str(Path(__file__).parents[3])
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
