"""What decides an order: numbers and generators drawn by key, and the mixture of sources.

A key is a row of plain values such as ("offset", seed, source name, epoch). The same key gives the same
draw in every process, so nothing random has a state that would have to be saved or sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np


def number(*key: Any, below: int) -> int:
    """A whole number in [0, below)."""
    return int.from_bytes(_digest(key)[:8], "big") % below


def generator(*key: Any) -> np.random.Generator:
    """A generator of its own for this key. Philox is cheap to start: about 15 microseconds."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(key)[:16], "big")))


def _digest(key: tuple[Any, ...]) -> bytes:
    return hashlib.sha256("/".join(map(str, key)).encode()).digest()


def mix(orders: Mapping[str, grain.MapDataset], weights: Mapping[str, float]) -> grain.MapDataset:
    """Endless data sets by source name, as one in which each has its share in every stretch."""
    if len(orders) == 1:
        return next(iter(orders.values()))
    return grain.MapDataset.mix(list(orders.values()), weights=[weights[name] for name in orders])
