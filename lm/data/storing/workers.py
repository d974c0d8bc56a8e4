"""Applies a function to tasks in worker processes; the results come in the order of the tasks.

A worker is a new Python process that imports only what the function needs, never JAX and never the main module. (A fork
of a process with threads may hang, and multiprocessing's `spawn` imports the main module of the command again.) Tasks
and results go through pipes, in pickled form. A worker ends when its pipe is closed, so none outlives its parent.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from lm.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

TASKS_AHEAD = 2  # per worker: the one that it works on, and the next
PIPE_BYTES = 1 << 20  # wanted capacity of a pipe, so that sending a task rarely waits for the worker
COMMAND = (
    "import sys; sys.path[:] = {path!r}; from lm.data.storing.workers import serve; serve({tasks}, {results}, {parent})"
)
# Each worker uses one thread; Rust's thread pool and BLAS would otherwise use all cores in each worker.
ENVIRONMENT = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerDied(UserError):
    """A worker process was killed, usually because memory ran out. Running the command again may succeed."""


class _Worker:
    """A process, and the pipes to it. `waiting` holds the indices of its tasks, oldest first."""

    def __init__(self) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        for descriptor in (ours_out, theirs_out):
            with contextlib.suppress(OSError, AttributeError):  # only on Linux, and up to a limit per user
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        command = COMMAND.format(path=sys.path, tasks=theirs_in, results=theirs_out, parent=os.getpid())
        self.process = subprocess.Popen(
            [sys.executable, "-c", command],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out),
            env=os.environ | ENVIRONMENT,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.tasks, self.results = Connection(ours_out, readable=False), Connection(ours_in, writable=False)
        self.waiting: deque[int] = deque()
        self.is_ready = False  # whether it has been set up

    def died(self) -> WorkerDied:
        try:
            status = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            status = 0
        reason = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return WorkerDied(
            f"a worker process that tokenises text was {reason}"
            f"{'; memory may have run out' if status == -signal.SIGKILL else ''}. Run the same command again: it "
            "continues with the parts that are done. Lower config.data.store_workers to use less memory."
        )

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.tasks.close()
        self.results.close()


class Workers(Generic[T, R]):
    """A context manager that starts workers, each of which calls `function`. A function must be picklable."""

    def __init__(self, function: Callable[[T], R], number: int):
        self._function, self._number = function, number

    def __enter__(self) -> Self:
        self._workers: list[_Worker] = []
        for _ in range(self._number):
            self._workers.append(_Worker())
        for worker in self._workers:
            self._send(worker, self._function)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for worker in self._workers:
            worker.end()

    def are_ready(self) -> bool:
        """Returns, without waiting, whether all workers have been set up."""
        starting = {worker.results: worker for worker in self._workers if not worker.is_ready}
        for connection in wait([*starting], timeout=0):
            self._receive(starting[connection])  # type: ignore[index]
        return all(worker.is_ready for worker in self._workers)

    def map(self, tasks: Iterator[T]) -> Iterator[R]:
        """Yields function(task) for each task, in order. An error is raised instead of the result.

        Tasks are read only as the workers need them. An error of `tasks` is raised after the results before it.
        """
        done: dict[int, R | BaseException] = {}  # results that cannot be yielded yet
        number, yielded, more = 0, 0, True
        while more or yielded < number:
            free = self._least_busy() if more and len(done) < 2 * TASKS_AHEAD * self._number else None
            if free is not None:
                try:
                    task = next(tasks, None)
                except Exception as error:
                    task, done[number], number = None, error, number + 1
                if task is None:
                    more = False
                else:
                    free.waiting.append(number)
                    self._send(free, task)
                    number += 1
            self._collect(done, timeout=None if free is None else 0)
            while yielded in done:
                result = done.pop(yielded)
                if isinstance(result, BaseException):
                    raise result
                yield result
                yielded += 1

    def _least_busy(self) -> _Worker | None:
        """Returns the worker with the fewest tasks, or None if all have enough."""
        found = min(self._workers, key=lambda worker: len(worker.waiting))
        return found if len(found.waiting) < TASKS_AHEAD else None

    def _collect(self, done: dict[int, Any], timeout: float | None) -> None:
        busy = {worker.results: worker for worker in self._workers if worker.waiting or not worker.is_ready}
        for connection in wait([*busy], timeout) if busy else ():
            worker = busy[connection]  # type: ignore[index]
            if not worker.is_ready:
                self._receive(worker)
            else:
                done[worker.waiting[0]] = self._receive(worker)
                worker.waiting.popleft()

    def _send(self, worker: _Worker, value: Any) -> None:
        try:
            worker.tasks.send(value)
        except OSError as error:
            raise worker.died() from error

    def _receive(self, worker: _Worker) -> Any:
        """Returns the next result of a worker, which may be an exception; the first one says that it is set up."""
        try:
            kind, value = worker.results.recv()
        except (EOFError, OSError) as error:
            raise worker.died() from error
        if kind == "bug":
            raise RuntimeError(f"in a worker process:\n{value}")
        worker.is_ready = True
        return UserError(value) if kind == "user error" else value


def serve(tasks: int, results: int, parent: int) -> None:
    """Runs a worker, given the file descriptors of its pipes and the ID of its parent process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole process group; the parent handles them
        signal.signal(number, signal.SIG_IGN)
    source, sink = Connection(tasks, writable=False), Connection(results, readable=False)
    function: Callable[[Any], Any] | None = None
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent has closed its ends
        while os.getppid() == parent:
            try:
                value = source.recv()
                answer = None if function is None else function(value)
                function = function or value
                sink.send(("result", answer))
            except (EOFError, BrokenPipeError):
                raise
            except UserError as error:
                sink.send(("user error", str(error)))
            except Exception:
                sink.send(("bug", traceback.format_exc()))
