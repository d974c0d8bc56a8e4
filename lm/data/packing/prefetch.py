"""Computes batches in advance, in a thread or in worker processes, and places them on the devices."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from lm.batch import Batch
from lm.parallel.mesh import batch_sharding

T = TypeVar("T")

SECONDS_AFTER_SIGTERM = 20.0


def prefetch(
    make: Callable[[int], T], start: int, stop: int, workers: int = 0, depth: int = 4
) -> contextlib.closing[grain.DatasetIterator[T]]:
    """Returns a context manager that yields an iterator over make(start), ..., make(stop - 1).

    The iterator computes up to `depth` results ahead, in a thread if `workers` is 0, otherwise in `workers` processes,
    in which case `make` must be picklable. The results and their order do not depend on the number of workers. An error
    in `make` is raised by the call to `next` that would have returned the result. Closing the iterator ends the thread
    or the processes.
    """
    if not flags.FLAGS.is_parsed():  # Grain requires parsed absl flags in its workers
        flags.FLAGS.mark_as_parsed()
    results = grain.MapDataset.range(start, max(start, stop)).map(make)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=1)
    if workers == 0 or stop <= start:
        ahead = grain.experimental.ThreadPrefetchIterDataset(
            results.to_iter_dataset(options), prefetch_buffer_size=depth
        )
    else:
        # Results go through pipes, because a killed process would leave shared memory behind.
        piped = grain.experimental.DatasetOptions(min_shm_size=1 << 62)
        ahead = grain.experimental.WithOptionsIterDataset(results.to_iter_dataset(options), piped).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=-(-depth // workers)),
            worker_init_fn=partial(_begin_worker, os.getpid()),
        )
    iterator = iter(ahead)
    iterator.start_prefetch()
    return contextlib.closing(iterator)


def _begin_worker(parent: int, index: int, count: int) -> None:
    """Initialises a worker process so that it uses no accelerator and never outlives its parent."""
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent handles it

    def after_sigterm(*_: object) -> None:
        # SIGTERM may reach the workers too, but the parent needs batches until its step is done.
        timer = threading.Timer(SECONDS_AFTER_SIGTERM, os._exit, args=(0,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, after_sigterm)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


class GlobalBatches:
    """Global batches of `num_rows` rows each, to which every process contributes some rows.

    `row_ids` holds the sorted indices of the rows that this process contributes.
    """

    def __init__(self, mesh: Mesh, num_rows: int):
        self._sharding, self._num_rows = batch_sharding(mesh), num_rows
        indices = self._sharding.addressable_devices_indices_map((num_rows, 1)).values()
        rows = np.arange(num_rows)
        self.row_ids = np.unique(np.concatenate([rows[index[0]] for index in indices if index is not None]))

    def place(self, local: Batch) -> Batch:
        """Returns the global batch, whose arrays are sharded over the devices, given this process's rows."""

        def to_array(x: np.ndarray) -> jax.Array:
            def shard(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                first, last = np.searchsorted(self.row_ids, index[0].indices(self._num_rows)[:2])
                return x[first:last]

            return jax.make_array_from_callback((self._num_rows, *x.shape[1:]), self._sharding, shard)

        return jax.tree.map(to_array, local)
