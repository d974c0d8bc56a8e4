"""Batches computed ahead of the training step, in a thread or in worker processes."""

from __future__ import annotations

import abc
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypeVar

import grain
import jax
from absl import flags

T = TypeVar("T")

SECONDS_AFTER_SIGTERM = 20.0


class Prefetch(abc.ABC, Generic[T]):
    """Iterator over make(start), ..., make(stop - 1), computed ahead. Close it, or use it in `with`.

    An error in `make` is raised by the call of `next` that would have returned its result.
    """

    def __iter__(self) -> Iterator[T]:
        return self

    @abc.abstractmethod
    def __next__(self) -> T: ...

    @abc.abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch(make: Callable[[int], T], start: int, stop: int, workers: int = 0, depth: int = 4) -> Prefetch[T]:
    """Computes `depth` results ahead, in a thread or in `workers` processes, for which `make` must be picklable.

    The results and their order do not depend on the number of workers.
    """
    if workers == 0 or stop <= start:
        return _ThreadPrefetch(make, start, stop, depth)
    return _ProcessPrefetch(make, start, stop, workers, depth)


class _ThreadPrefetch(Prefetch[T]):
    def __init__(self, make: Callable[[int], T], start: int, stop: int, depth: int):
        self._results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._left = stop - start
        self._thread = threading.Thread(target=self._fill, args=(make, start, stop), name="prefetch", daemon=True)
        self._thread.start()

    def _fill(self, make: Callable[[int], T], start: int, stop: int) -> None:
        for i in range(start, stop):
            try:
                result: tuple[T | None, BaseException | None] = (make(i), None)
            except BaseException as error:
                result = (None, error)
            while not self._closed.is_set():
                try:
                    self._results.put(result, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._closed.is_set() or result[1] is not None:
                return

    def __next__(self) -> T:
        if self._left <= 0 or self._closed.is_set():
            raise StopIteration
        result, error = self._results.get()
        self._left -= 1
        if error is not None:
            self._left = 0
            raise error
        return result  # type: ignore[return-value]

    def close(self) -> None:
        self._closed.set()
        self._thread.join()


class _ProcessPrefetch(Prefetch[T]):
    def __init__(self, make: Callable[[int], T], start: int, stop: int, workers: int, depth: int):
        if not flags.FLAGS.is_parsed():  # Grain reads its flags in each worker
            flags.FLAGS.mark_as_parsed()
        ds = grain.MapDataset.range(start, stop).map(make)
        iterable = ds.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=1))
        # Results go through pipes: a process that is killed would leave shared memory behind.
        iterable = grain.experimental.WithOptionsIterDataset(
            iterable, grain.experimental.DatasetOptions(min_shm_size=1 << 62)
        )
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=-(-depth // workers))
        self._iterator = iter(iterable.mp_prefetch(options, worker_init_fn=partial(_begin_worker, os.getpid())))

    def __next__(self) -> T:
        return next(self._iterator)

    def close(self) -> None:
        self._iterator.close()


def _begin_worker(parent: int, index: int, count: int) -> None:
    """Runs first in a worker, so that it uses no accelerator and ends exactly when its parent does."""
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides

    def after_sigterm(*_: object) -> None:
        # SIGTERM may too, and the parent needs batches until its step is done.
        timer = threading.Timer(SECONDS_AFTER_SIGTERM, os._exit, args=(0,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, after_sigterm)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
