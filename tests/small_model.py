"""Configs and random parameters of small models, for tests that build models without a whole config."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lm.config import ModelConfig
from lm.models.parameters import abstract_params
from lm.models.protocol import Model


def small_config(
    vocab_size: int, max_length: int, num_layers: int = 1, d_model: int = 16, num_heads: int = 2, **changes: Any
) -> ModelConfig:
    """Returns a config with the usual ratios of sizes and with two heads for keys and values."""
    sizes = {"num_layers": num_layers, "d_model": d_model, "num_heads": num_heads, "num_kv_heads": 2}
    derived = {"head_dim": d_model // num_heads, "d_ff": 2 * d_model}
    return ModelConfig(vocab_size=vocab_size, max_length=max_length, **{**sizes, **derived, **changes})


def random_params(model: Model, deviation: float = 0.3, seed: int = 0, scale: float = 0.0) -> Any:
    """Returns parameters larger than the initial ones, so that attention is far from uniform.

    All are drawn, including scales, with mean `scale`, and biases, which are initialised to ones and zeros.
    """
    random = np.random.default_rng(seed)

    def value(path: Any, leaf: Any) -> np.ndarray:
        mean = scale if path[-1].key == "scale" else 0.0
        return random.normal(mean, deviation, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, nn.unbox(abstract_params(model)))
