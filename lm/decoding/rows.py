"""Continuous batching: rows of a batch that have ended are replaced with waiting inputs (Yu 2022, Orca).

A step costs as much for a row that has ended as for any other row. If a batch ran until its last row ended, many steps
would be wasted, because outputs have different lengths. Here, a batch has a fixed number of rows. Whenever enough of
them have ended, waiting inputs are prefilled together and take over these rows of the cache; the other rows are not
affected. Rows do not depend on each other, so the outputs are the same under every schedule, up to rounding.

Attention reads all slots, so the capacity of the cache is adapted to the longest row, in powers of two. There is one
compiled program for each capacity.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Batch
from lm.decoding.inputs import rows_for_mesh, source_bucket
from lm.models.protocol import Model
from lm.parallel.mesh import place_cache

SMALLEST_CAPACITY = 32  # tokens; a smaller cache would hardly save time
SMALLEST_SOURCE_CAPACITY = 64
MARGIN = 8  # tokens; the cache does not shrink to a capacity that a row would exceed within this number of tokens
PARTS = 4  # waiting inputs are admitted when 1 / PARTS of the rows are free

T = TypeVar("T")
Report = Callable[[int, int], None]  # called with the number of inputs or outputs that are complete, and the total


class Engine(Protocol):
    """A batch whose rows decode numbered inputs."""

    def admit(self, rows: Sequence[int], inputs: Sequence[int]) -> None:
        """Starts decoding the given inputs in the given rows, which are free."""

    def run(self, min_alive: int) -> np.ndarray:
        """Decodes until at most `min_alive` rows are alive. Returns whether each row is alive, bool (B,)."""

    def finish(self, row: int, number: int) -> None:
        """Stores the output of an input whose row has ended."""


def run_all(engine: Engine, order: Sequence[int], rows: int, group: int) -> Iterator[list[int]]:
    """Decodes inputs in the given order, and yields the numbers of inputs whose outputs have just been completed.

    Args:
        rows: number of rows of the engine.
        group: number of inputs that are admitted together.
    """
    waiting, decoded = deque(order), dict[int, int]()
    while waiting or decoded:
        free = [row for row in range(rows) if row not in decoded]
        while waiting and len(free) >= (count := min(group, len(waiting))):
            numbers = [waiting.popleft() for _ in range(count)]
            engine.admit(free[:count], numbers)
            decoded |= zip(free, numbers, strict=False)
            free = free[count:]
        alive_B = engine.run(rows - min(group, len(waiting)) if waiting else 0)
        ended = [row for row in decoded if not alive_B[row]]
        for row in ended:
            engine.finish(row, decoded[row])
        yield [decoded.pop(row) for row in ended]


def sizes(count: int, max_rows: int) -> tuple[int, int]:
    """Returns the number of rows for `count` inputs, and the number of inputs that are admitted together."""
    rows = rows_for_mesh(max_rows)
    return rows, rows if count <= rows else rows_for_mesh(max(rows // PARTS, 1))


def capacity_for(length: int, longest: int) -> int:
    """Returns the capacity of a cache for rows of `length` tokens: a power of two, or `longest` if that is smaller."""
    return min(max(SMALLEST_CAPACITY, 1 << (length - 1).bit_length()), longest)


def source_capacity_for(length: int, present: int) -> int:
    """Returns the capacity for sources of `length` tokens: the present capacity, unless half of it is enough."""
    wanted = max(source_bucket(length), SMALLEST_SOURCE_CAPACITY)
    return wanted if 2 * wanted <= present else present


@functools.partial(jax.jit, static_argnames=("model", "rows", "capacity", "source_capacity", "num_beams"))
def empty_rows(model: Model, rows: int, capacity: int, source_capacity: int, num_beams: int = 1) -> Any:
    """Returns an empty cache. Each row of the batch has `num_beams` consecutive rows of the cache."""
    return place_cache(model.empty_cache(rows, capacity, source_capacity).repeat_rows(num_beams))


def prefill(model: Model, params: Any, batch: Batch, capacity: int, num_beams: int = 1) -> Any:
    """Returns a cache with the tokens of the batch. The compiler removes the unused output layer."""
    source_length = 0 if batch.source is None else batch.source.tokens.shape[1]
    cache = model.empty_cache(batch.shape[0], capacity, source_length)
    cache = model.apply({"params": params}, batch, train=False, cache=cache).cache
    return place_cache(cache.repeat_rows(num_beams))


def insert(cache: Any, new: Any, rows_F: Array) -> Any:
    """Replaces rows `rows_F` of a cache with the F rows of `new`, a cache that may have a smaller capacity.

    Row i of `new` is dropped if row rows_F[i] does not exist (rows_F[i] = B).
    """

    def put(x: Array, new: Array, axes: tuple[str, ...]) -> Array:
        axis = axes.index("batch")
        copies = new.shape[axis] // rows_F.shape[0]  # the number of rows in the cache for each row of the batch
        rows = (rows_F[:, None] * copies + jnp.arange(copies)[None]).reshape(-1)
        padding = [(0, 0 if d == axis else size - new.shape[d]) for d, size in enumerate(x.shape)]
        return x.at[(*(slice(None),) * axis, rows)].set(jnp.pad(new, padding), mode="drop")

    return place_cache(jax.tree.map(put, cache, new, cache.axes()))


def insert_state(state: T, new: T, rows_F: Array) -> T:
    """Like `insert`, but for arrays whose first axis is the row."""
    return jax.tree.map(lambda x, new: x.at[rows_F].set(new, mode="drop"), state, new)


@functools.partial(jax.jit, static_argnames=("model", "rows", "capacity", "source_capacity", "num_beams"))
def resized(model: Model, cache: Any, rows: int, capacity: int, source_capacity: int, num_beams: int = 1) -> Any:
    """Returns a copy of a cache with the given capacities.

    Tokens in slots beyond a new capacity are lost. Only ended rows and rejected drafts may have tokens there.
    """
    arguments = rows, capacity, source_capacity, num_beams

    def fit(x: Array, wanted: Any) -> Array:
        x = x[tuple(map(slice, wanted.shape))]
        return jnp.pad(x, [(0, new - old) for new, old in zip(wanted.shape, x.shape, strict=True)])

    return place_cache(jax.tree.map(fit, cache, jax.eval_shape(functools.partial(empty_rows, model, *arguments))))
