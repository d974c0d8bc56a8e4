"""The state of a recurrent model during decoding: the last states of its layers and the outputs of the encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lm.batch import Array
from lm.config import ModelConfig
from lm.models.recurrent.layer import zero_state


@flax.struct.dataclass
class RecurrentCache:
    states: Any  # a tuple with the state of each layer, {name: float32 (B, D)}
    memory: Array | None = None  # (sources, S, D): the outputs of the encoder
    memory_segments: Array | None = None  # int32 (sources, S)

    def repeat_rows(self, k: int) -> RecurrentCache:
        """Returns a cache in which rows i*k to i*k + k - 1 are copies of row i and share its source."""
        return self._map_states(lambda x: jnp.repeat(x, k, axis=0))

    def take_rows(self, rows_B: Array) -> RecurrentCache:
        """Returns a cache whose row i is a copy of the old row `rows_B[i]`. The two rows must have the same source."""
        return self._map_states(lambda x: jnp.take(x, rows_B, axis=0, mode="clip"))

    def axes(self) -> RecurrentCache:
        """Returns the logical axes of the arrays."""
        states, memory = jax.tree.map(lambda _: ("batch", "activation"), self.states), None
        if self.memory is not None:
            memory = ("batch", "length", "activation")
        return RecurrentCache(states, memory, None if memory is None else ("batch", "length"))

    def _map_states(self, change: Callable[[Array], Array]) -> RecurrentCache:
        return dataclasses.replace(self, states=jax.tree.map(change, self.states))


def empty_cache(config: ModelConfig, rows: int, source_length: int) -> RecurrentCache:
    """Returns the initial cache, before the first token of each row."""
    states = tuple(zero_state(config, rows, config.d_model) for _ in range(config.num_layers))
    if not source_length:
        return RecurrentCache(states)
    memory = jnp.zeros((rows, source_length, config.d_model), config.dtype)
    return RecurrentCache(states, memory, jnp.zeros((rows, source_length), jnp.int32))
