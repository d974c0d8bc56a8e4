"""Worker processes return results in order, and what goes wrong in them is reported in one line."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from lm.data.storing import workers as workers_module
from lm.data.storing.workers import COMMAND, WorkerDied, Workers, available_cores
from lm.errors import UserError
from tests.data.storing.documents import Unusable, squared


def test_results_come_in_order_and_errors_in_their_place():
    with Workers(squared, 2) as workers:
        assert list(workers.map(iter(range(40)))) == [number**2 for number in range(40)]
        found = workers.map(iter([3, "slow", -1, 5]))
        assert [next(found), next(found)] == [9, "slow"]
        with pytest.raises(UserError, match="-1 is negative"):
            next(found)
    with Workers(squared, 1) as workers:
        found = workers.map(iter([2, []]))
        assert next(found) == 4
        with pytest.raises(RuntimeError, match=r"in a worker process:(.|\n)*TypeError"):
            next(found)

    def unreadable():
        yield 2
        raise UserError("line 2 is bad")

    with Workers(squared, 1) as workers:
        found = workers.map(unreadable())
        assert next(found) == 4
        with pytest.raises(UserError, match="line 2 is bad"):
            next(found)
    with Workers(squared, 1) as workers:
        (imported,) = workers.map(iter(["imported"]))
        assert "numpy" in imported and not {"jax", "grain", "tensorflow_datasets", "pyarrow"} & set(imported)
        found = workers.map(iter([1, "kill", 2]))
        assert next(found) == 1
        with pytest.raises(WorkerDied, match=r"was killed by SIGKILL; memory may have run out\. Run the same command"):
            list(found)


def test_errors_of_the_machine_arrive_as_they_are():
    with Workers(squared, 1) as workers, pytest.raises(OSError, match="No space left on device: 'part'") as caught:
        list(workers.map(iter([1, "full"])))
    assert caught.value.errno == errno.ENOSPC
    with Workers(squared, 1) as workers, pytest.raises(MemoryError, match="a part"):
        list(workers.map(iter(["large"])))


def test_an_error_while_a_worker_is_set_up_is_reported():
    with Workers(Unusable(), 1) as workers, pytest.raises(UserError, match="the tokenizer is not usable"):
        list(workers.map(iter(["x" * (1 << 22)] * 3)))  # the worker ends without reading a task
    with Workers(Unusable(), 1) as workers, pytest.raises(UserError, match="the tokenizer is not usable"):
        while not workers.are_ready():
            pass


def test_a_start_that_fails_half_way_leaves_nothing(monkeypatch):
    started = []

    def start(*arguments, popen=subprocess.Popen, **options):
        if len(started) == 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UserError) as caught, Workers(squared, 4):
        pass
    assert str(caught.value) == (
        "cannot start 4 worker processes (Resource temporarily unavailable); lower config.data.store_workers."
    )
    assert os.listdir("/proc/self/fd") == before
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def test_a_worker_ignores_ctrl_c_from_its_start(tmp_path):
    module = tmp_path / "lm" / "data" / "storing" / "workers.py"
    module.parent.mkdir(parents=True)
    for folder in list(module.parents)[:3]:
        (folder / "__init__.py").touch()
    module.write_text("import time\nprint('importing', flush=True)\ntime.sleep(0.3)\ndef serve(*_): print('served')\n")
    command = COMMAND.format(path=[str(tmp_path), *sys.path], tasks=0, results=0, parent=0)
    worker = subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert worker.stdout.readline() == "importing\n"
    worker.send_signal(signal.SIGINT)
    assert worker.communicate(timeout=60) == ("served\n", "") and worker.returncode == 0


def test_a_worker_that_does_not_answer_is_not_said_to_have_ended():
    with Workers(squared, 1) as workers:
        (worker,) = workers._workers
        assert "text does not answer. Run the same command again" in str(worker.died())


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("250000 100000", 3), ("5000 100000", 1), (None, 8)])
def test_cores_are_limited_by_the_quota_of_a_container(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(workers_module, "CPU_QUOTA", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert available_cores() == cores
