"""The config of a small model, for tests that build models without a whole config."""

from typing import Any

from lm.config import ModelConfig


def small_config(
    vocab_size: int, max_length: int, num_layers: int = 1, d_model: int = 16, num_heads: int = 2, **changes: Any
) -> ModelConfig:
    """Returns a config with the usual ratios of sizes and with two heads for keys and values."""
    sizes = {"num_layers": num_layers, "d_model": d_model, "num_heads": num_heads, "num_kv_heads": 2}
    derived = {"head_dim": d_model // num_heads, "d_ff": 2 * d_model}
    return ModelConfig(vocab_size=vocab_size, max_length=max_length, **{**sizes, **derived, **changes})
