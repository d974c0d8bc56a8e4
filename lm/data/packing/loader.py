"""Rows by number: `batch = f(config, step)`, whichever process asks and however many workers help.

Training order is a `grain.MapDataset`: each source's rows are shuffled anew each epoch, repeated, and
mixed by weight; element i depends on (seed, i) alone. Row r of the global batch of step s is element
s * batch_size + r, so a host computes just its own rows, and there is no iterator state to save.

Shape letters: R rows asked for, L sequence length, M = L + 1.
"""

from __future__ import annotations

import abc
import dataclasses
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import grain
import jax
import numpy as np
from absl import flags

from lm.batch import Batch
from lm.config import Config
from lm.data import order
from lm.data.packing import windows as packing
from lm.data.packing.windows import Rows
from lm.data.storing.prepare import Prepared
from lm.data.storing.token_store import TokenStore

T = TypeVar("T")
# An objective's: tokens, segments and positions, each (R, M), -> Batch of NumPy arrays (R, L).
Features = Callable[[np.ndarray, np.ndarray, np.ndarray], Batch]

SECONDS_AFTER_SIGTERM = 20.0


class TrainRows:
    """Rows of training batches, endless. Picklable, so worker processes can make them too."""

    def __init__(self, config: Config, prepared: Prepared, features: Features):
        self._seed = config.seed
        self._length = config.data.sequence_length
        self._batch_size = config.train.batch_size
        self._stores = prepared.stores["train"]
        self._weights = {name: config.data.train[name].weight for name in self._stores}
        self._features = features

    def rows_per_epoch(self) -> dict[str, int]:
        """By source."""
        return {name: packing.num_training_rows(s.num_tokens, self._length) for name, s in self._stores.items()}

    @cached_property
    def _order(self) -> grain.MapDataset:
        """Element i is (source name, epoch, row of the epoch)."""
        orders = {}
        for name, count in self.rows_per_epoch().items():
            number_rows = partial(_number_row, name, count)
            seed = order.number("shuffle", self._seed, name, below=2**32)
            # Numbered before the shuffle: there the index still counts on over the epochs.
            rows = grain.MapDataset.range(count).map_with_index(number_rows)
            orders[name] = rows.shuffle(seed=seed).repeat()
        return order.mix(orders, self._weights)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_order"}

    def places(self, step: int, row_ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """(source name, epoch, row of the epoch) of rows of the global batch of `step`."""
        assert all(0 <= r < self._batch_size for r in row_ids), (row_ids, self._batch_size)
        return [self._order[step * self._batch_size + int(r)] for r in row_ids]

    def rows(self, step: int, row_ids: Sequence[int]) -> Batch:
        """Rows `row_ids` of the global batch of `step`, in that order: NumPy arrays (R, L)."""
        rows = self.windows(step, row_ids)
        return self._features(rows.tokens_RM, rows.segments_RM, rows.positions_RM)

    def windows(self, step: int, row_ids: Sequence[int]) -> Rows:
        """The same rows before the objective: (R, M)."""
        places = self.places(step, row_ids)
        shape = (len(places), self._length + 1)
        whole = Rows(*(np.zeros(shape, np.int32) for _ in range(3)))
        for name, store in self._stores.items():
            chosen = [i for i, place in enumerate(places) if place[0] == name]
            if not chosen:
                continue
            starts = [self._start(*places[i]) for i in chosen]
            part = packing.cut_rows(store.tokens, store.starts, np.array(starts), self._length + 1, circular=True)
            for field in ("tokens_RM", "segments_RM", "positions_RM"):
                getattr(whole, field)[chosen] = getattr(part, field)
        return whole

    def _start(self, name: str, epoch: int, row: int) -> int:
        # Another offset each epoch, so that rows are not cut at the same places again.
        return order.number("offset", self._seed, name, epoch, below=self._length) + row * self._length


def _number_row(name: str, count: int, index: int, row: int) -> tuple[str, int, int]:
    return name, index // count, row


class EvalRows:
    """All windows of one store, each target scored exactly once; ids past the end give padding.

    `totals` has what the losses are divided by: `targets` (scored tokens: all but each document's bos),
    `documents`, `bytes`, `words`, `unknown` (see `token_store`).
    """

    def __init__(self, store: TokenStore, sequence_length: int, stride: int, features: Features):
        self._store, self._length, self._stride, self._features = store, sequence_length, stride, features
        self.num_rows = packing.num_evaluation_rows(store.num_tokens, sequence_length, stride)
        counts = store.manifest["counts"]
        self.totals: dict[str, int] = {
            "targets": counts["tokens"] - counts["documents"],
            **{name: counts[name] for name in ("documents", "bytes", "words", "unknown")},
        }

    def rows(self, row_ids: Sequence[int]) -> Batch:
        """Rows `row_ids`, in that order, (R, L), with weights 0 where an earlier window has scored."""
        ids_R = np.asarray(row_ids, np.int64)
        # A row past the last may start within the stream if the stride is short: it is padding all the same.
        starts_R = np.where(ids_R < self.num_rows, ids_R * self._stride, self._store.num_tokens)
        rows = packing.cut_rows(self._store.tokens, self._store.starts, starts_R, self._length + 1, circular=False)
        batch = self._features(rows.tokens_RM, rows.segments_RM, rows.positions_RM)
        scored_RL = packing.scored_targets(ids_R, self._length, self._stride)
        return dataclasses.replace(batch, weights=np.where(scored_RL, batch.weights, np.float32(0.0)))


def eval_rows(config: Config, stores: dict[str, TokenStore], features: Features) -> dict[str, EvalRows]:
    """Evaluation rows of a split, by source: evaluate each, and add up for the whole."""
    length, stride = config.data.sequence_length, config.eval.stride
    return {name: EvalRows(store, length, stride, features) for name, store in stores.items()}


class Prefetch(abc.ABC, Generic[T]):
    """Iterator over make(start), ..., make(stop - 1), computed ahead. Close it, or use it in `with`.

    An error in `make` is raised by the `next` that would have given its result.
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
    """Computes `depth` results ahead: in a thread, or in `workers` processes that need a picklable `make`.

    The results and their order are the same for every number of workers.
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
        # Results go through pipes: shared memory would be left behind by a process that is killed.
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
    """Runs first in a worker: it takes no accelerator, and ends when, and only when, its parent does."""
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides

    def after_sigterm(*_: object) -> None:
        # So may SIGTERM, and the parent needs batches until its step is done.
        timer = threading.Timer(SECONDS_AFTER_SIGTERM, os._exit, args=(0,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, after_sigterm)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
