"""Applies a function to tasks in worker processes, and yields the results in the order of the tasks.

A worker is a new Python process that imports only the modules that the function needs. For token stores, these include
neither JAX nor the main module. (A fork of a multi-threaded process may hang, and multiprocessing's `spawn` imports the
main module of the command again.) Tasks and results are pickled and sent through pipes. A worker exits when its pipe is
closed, so none outlives its parent.
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
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from lm.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

TASKS_AHEAD = 2  # number of tasks sent to each worker: the current one and the next
PIPE_BYTES = 1 << 20  # requested capacity of a pipe, so that sending a task rarely has to wait for the worker
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # a container's limit: microseconds of CPU time (or "max") per period
# SIGINT and SIGTERM reach the whole process group; the parent handles them.
COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "import sys; sys.path[:] = {path!r}; from lm.data.storing.workers import serve; serve({tasks}, {results}, {parent})"
)
# Each worker uses one thread; Rust's thread pool and BLAS would otherwise use all cores in each worker.
ENVIRONMENT = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
# Makes glibc keep the memory of large arrays for the next chunk, since the system would first have to clear new memory.
KEEP_MEMORY = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(1 << 25))


def available_cores() -> int:
    """Returns the number of cores that this process may use. A fractional limit of a container is rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
    with contextlib.suppress(OSError, ValueError):  # there is no such file, or no quota
        quota, period = map(int, CPU_QUOTA.read_text().split())
        cores = min(cores, -(-quota // period))
    return cores


class WorkerDied(UserError):
    """A worker process was killed, usually because memory ran out. Running the command again may succeed."""


class _Worker:
    """A process, and the pipes to it. `waiting` holds the indices of its tasks, oldest first."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            source, self.tasks = Pipe(duplex=False)
            theirs.enter_context(source)
            ours.enter_context(self.tasks)
            self.results, sink = Pipe(duplex=False)
            theirs.enter_context(sink)
            ours.enter_context(self.results)
            command = COMMAND.format(path=sys.path, tasks=source.fileno(), results=sink.fileno(), parent=os.getpid())
            self.process = subprocess.Popen(
                [sys.executable, "-c", command],
                stdin=subprocess.DEVNULL,
                pass_fds=(source.fileno(), sink.fileno()),
                env=KEEP_MEMORY | dict(os.environ) | ENVIRONMENT,
            )
            ours.pop_all()  # keeps our ends of the pipes open
        for connection in (self.tasks, self.results):
            with contextlib.suppress(OSError, AttributeError):  # only on Linux, and up to a limit per user
                fcntl.fcntl(connection.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.waiting: deque[int] = deque()
        self.is_ready = False  # whether the worker has been set up

    def died(self) -> WorkerDied:
        try:
            status = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            problem = "does not answer"
        else:
            problem = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
            problem += "; memory may have run out" if status == -signal.SIGKILL else ""
        return WorkerDied(
            f"a worker process that tokenises text {problem}. Run the same command again: it reuses the parts that are "
            "already done. Lower config.data.store_workers to use less memory."
        )

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.tasks.close()
        self.results.close()


class Workers(Generic[T, R]):
    """A context manager that starts workers, which all call `function`. The function must be picklable.

    Results must be small, since a worker does not read tasks while it waits for the parent to read its results.
    """

    def __init__(self, function: Callable[[T], R], number: int):
        self._function, self._number = function, number

    def __enter__(self) -> Self:
        """Starts the workers. Raises UserError if the system allows no more processes, files or memory."""
        self._workers: list[_Worker] = []
        with contextlib.ExitStack() as stack:
            try:
                for _ in range(self._number):
                    self._workers.append(_Worker())
                    stack.callback(self._workers[-1].end)
            except OSError as error:
                raise UserError(
                    f"cannot start {self._number} worker processes ({error.strerror or error}); lower "
                    "config.data.store_workers."
                ) from error
            for worker in self._workers:
                self._send(worker, self._function)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()

    def are_ready(self) -> bool:
        """Returns, without waiting, whether all workers have been set up."""
        starting = {worker.results: worker for worker in self._workers if not worker.is_ready}
        for connection in wait([*starting], timeout=0):
            self._receive(starting[connection])  # type: ignore[index]
        return all(worker.is_ready for worker in self._workers)

    def map(self, tasks: Iterator[T]) -> Iterator[R]:
        """Yields function(task) for each task, in order. If a call fails, its error is raised instead.

        Tasks are read only as the workers need them. An error raised by the iterator `tasks` is raised here after the
        earlier results have been yielded. After an error, this method must not be called again.
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
        """Returns the worker with the fewest tasks, or None if every worker has TASKS_AHEAD tasks."""
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
            if not worker.is_ready:
                self._receive(worker)  # raises the error that occurred during set-up
            raise worker.died() from error

    def _receive(self, worker: _Worker) -> Any:
        """Returns the next result of a worker, or the exception that the task raised.

        The first result shows that the worker has been set up. If the set-up failed, raises the exception.
        """
        try:
            result, failure = worker.results.recv()
        except (EOFError, OSError) as error:
            raise worker.died() from error
        if failure is not None and not worker.is_ready:
            raise failure
        worker.is_ready = True
        return result if failure is None else failure


def serve(tasks: int, results: int, parent: int) -> None:
    """Runs a worker, given the file descriptors of its pipes and the ID of its parent process.

    The first message is the function, and every other message is a task. The worker answers each message with a pair
    (result, exception), at least one of which is None. Exceptions that the user can act on are sent unchanged. All
    others are sent as a RuntimeError with their traceback.
    """
    source, sink = Connection(tasks, writable=False), Connection(results, readable=False)
    function: Callable[[Any], Any] | None = None
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent has closed its ends
        while os.getppid() == parent:
            result: Any = None
            failure: Exception | None = None
            try:
                value = source.recv()
                result = None if function is None else function(value)
                function = function or value
            except EOFError:
                raise
            except (UserError, OSError, MemoryError) as error:
                failure = error
            except Exception:
                failure = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
            sink.send((result, failure))
            if function is None:
                return  # the function could not be set up
