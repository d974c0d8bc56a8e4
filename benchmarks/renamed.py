"""Maps the sizes and weights of our models to the names that several Hugging Face models share.

The kernel of a linear layer is (in, out) in our models, with a separate heads dimension, and (out, in) in theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.config import ModelConfig
from lm.models.parameters import LAYER_PREFIX

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu", "quick_gelu": "quick_gelu"}


def encoder_decoder_sizes(config: ModelConfig) -> dict[str, Any]:
    """Returns the settings of BART, Marian and Pegasus."""
    return {
        "vocab_size": config.vocab_size,
        "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.num_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.d_ff,
        "decoder_ffn_dim": config.d_ff,
        "d_model": config.d_model,
        "activation_function": ACTIVATIONS[config.activation],
        "scale_embedding": config.embedding_scale != 1.0,
    }


class Weights(dict[str, np.ndarray]):
    """Arrays by their names in Hugging Face's models. A module that has no bias in our model gets no bias."""

    def norm(self, name: str, params: Mapping[str, Any]) -> None:
        self._add(name, np.asarray(params["scale"]), params)

    def linear(self, name: str, params: Mapping[str, Any], input_dims: int = 1) -> None:
        """Adds a linear layer whose kernel has `input_dims` leading input dimensions."""
        kernel = np.asarray(params["kernel"])
        self._add(name, kernel.reshape(math.prod(kernel.shape[:input_dims]), -1).T, params)

    def linears(self, prefix: str, params: Mapping[str, Any], names: Mapping[str, str]) -> None:
        """Adds the linear layers of an attention or MLP; `names` maps our names to theirs, which follow the prefix."""
        for ours, theirs in names.items():
            self.linear(f"{prefix}.{theirs}", params[ours], 2 if ours == "out" else 1)

    def _add(self, name: str, weight: np.ndarray, params: Mapping[str, Any]) -> None:
        self[f"{name}.weight"] = weight
        if "bias" in params:
            self[f"{name}.bias"] = np.asarray(params["bias"]).reshape(-1)


def numbered_layers(tower: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Yields (index, parameters) for each block of an unrolled stack."""
    names = [name for name in tower if name.startswith(LAYER_PREFIX)]
    return [(int(name.removeprefix(LAYER_PREFIX)), tower[name]) for name in names]
