"""The vectors that a recurrent decoder computes from the memory of a bottleneck: initial states and inputs."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from lm.batch import Array
from lm.config import ModelConfig
from lm.models.bottleneck import linear, linear_cost
from lm.models.layers import embedding_width
from lm.models.recurrent.cells import CELLS
from lm.models.recurrent.recurrence import State


class LatentStart(nn.Module):
    """Computes the initial states of the decoder's layers from its memory (Bowman 2016)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, memory_BkD: Array) -> tuple[State, ...]:
        """Returns {name: float32 (B, D)} for each layer."""
        config, names = self.config, CELLS[self.config.cell].states
        B, k, D = memory_BkD.shape
        all_states = linear(config, "states", k * D, config.num_layers * len(names) * D)(memory_BkD.reshape(B, k * D))
        states = jnp.tanh(all_states.astype(jnp.float32)).reshape(B, config.num_layers, len(names), D)
        return tuple({name: states[:, n, i] for i, name in enumerate(names)} for n in range(config.num_layers))


class LatentInput(nn.Module):
    """Computes a vector from the decoder's memory; this vector is added to each input of the decoder."""

    config: ModelConfig

    @nn.compact
    def __call__(self, memory_BkD: Array) -> Array:
        """Returns one vector per row, (B, E)."""
        B, k, D = memory_BkD.shape
        return linear(self.config, "input", k * D, embedding_width(self.config))(memory_BkD.reshape(B, k * D))


def latent_cost(config: ModelConfig) -> tuple[int, int]:
    """Returns the number of parameters of `LatentStart` and `LatentInput`, and their FLOPs for one row."""
    inputs = config.latent_vectors * config.d_model
    states = config.num_layers * len(CELLS[config.cell].states) * config.d_model
    parts = linear_cost(inputs, states), linear_cost(inputs, embedding_width(config))
    return sum(parameters for parameters, _ in parts), sum(flops for _, flops in parts)
