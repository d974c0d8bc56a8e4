"""The projections inside a block: initial values, and an adapter of low rank where the config asks for one."""

from __future__ import annotations

import math

from lm.config import ModelConfig
from lm.models.layers import Dense, compute_dtype, initial_std


def projection(
    config: ModelConfig,
    name: str,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    axes: tuple[str, ...],
    scale: float = 1.0,
) -> Dense:
    """Returns a projection of a block.

    Args:
        name: query, key, value, out, up, gate or down. model.lora_targets chooses adapters by it.
        axes: logical axes of the inputs, then of the outputs.
        scale: factor of the initial standard deviation.
    """
    rank = config.lora_rank if name in config.lora_targets else 0
    adapter = (rank, config.lora_alpha / rank) if rank else (0, 0.0)
    std = initial_std(config, inputs, scale)
    return Dense(inputs, outputs, axes, config.use_bias, compute_dtype(config), std, *adapter, name=name)


def residual_scale(config: ModelConfig) -> float:
    """Returns how much smaller the initial weights are that write to the residual stream (GPT-2: by 1/sqrt(2 N))."""
    return 1 / math.sqrt(2 * config.num_layers) if config.init_residual_scaling else 1.0
