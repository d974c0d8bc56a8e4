"""Random draws that depend only on a key, and a per-epoch cache.

A key is a sequence of plain values such as ("offset", seed, source name, epoch). The same key gives the same draw in
every process, so no random state has to be saved or shared.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
from grain.experimental import index_shuffle

T = TypeVar("T")
ROUNDS = 4  # number of rounds of Grain's shuffling cipher


@functools.lru_cache(maxsize=1024)
def number(*key: Any, below: int) -> int:
    """Returns a pseudo-random integer in [0, below)."""
    return int.from_bytes(_digest(key)[:8], "big") % below


def generator(*key: Any) -> np.random.Generator:
    """Returns a new generator seeded with this key. Creating a Philox generator takes only about 15 microseconds."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(key)[:16], "big")))


def shuffled(index: int, count: int, seed: int) -> tuple[int, int]:
    """Returns (epoch, item) for position `index` in a sequence that repeats `count` items, reshuffled in each epoch.

    The item is element `index` of grain.MapDataset.range(count).shuffle(seed=seed).repeat(), but is computed faster.
    """
    epoch, place = divmod(index, count)
    return epoch, index_shuffle(place, count - 1, (seed + epoch) % 2**32, ROUNDS)


def _digest(key: tuple[Any, ...]) -> bytes:
    return hashlib.sha256("/".join(map(str, key)).encode()).digest()


class EpochCache(Generic[T]):
    """Caches the values of two epochs, since prefetched batches may already belong to the next epoch.

    Pickling drops the cached values.
    """

    def __init__(self) -> None:
        self._values: dict[int, T] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_values": {}}

    def get(self, epoch: int, make: Callable[[int], T]) -> T:
        """Returns the value for an epoch, calling `make(epoch)` if the value is not cached."""
        if epoch not in self._values:
            self._values = dict([*self._values.items()][-1:]) | {epoch: make(epoch)}
        return self._values[epoch]
