"""Adapters of low rank (Hu 2021): merging them into the projections that they stand beside."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lm.config import ModelConfig
from lm.models.parameters import STACK_NAME

ADAPTER = ("lora_a", "lora_b")


def merge(params: dict[str, Any], config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """Returns parameters whose kernels are W + (lora_alpha / lora_rank) A B, float32, and the config without adapters.

    With them the model computes the same. `params` belong to a Transformer of any family, with stacked or unrolled
    layers, and are arrays that NumPy can read. What has no adapter is returned as it is.
    """
    assert config.lora_rank > 0, "there is nothing to merge"
    return _merged(params, config.lora_alpha / config.lora_rank, False), dataclasses.replace(config, lora_rank=0)


def adapters(params: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns all adapters by name, such as {"layers/attention/query/lora_a": array, ...}."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            found |= adapters(value, f"{prefix}{name}/")
        elif name in ADAPTER:
            found[prefix + name] = value
    return found


def _merged(tree: dict[str, Any], scale: float, stacked: bool) -> dict[str, Any]:
    merged = {
        name: _merged(value, scale, stacked or name == STACK_NAME) if isinstance(value, dict) else value
        for name, value in tree.items()
        if name not in ADAPTER
    }
    if ADAPTER[0] in tree:
        kernel, a, b = (np.asarray(tree[name], np.float32) for name in ("kernel", *ADAPTER))
        layers, rank = kernel.shape[0] if stacked else 1, a.shape[-1]
        difference = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
        merged["kernel"] = kernel + np.float32(scale) * difference.reshape(kernel.shape)
    return merged
