"""Sizes and weights of our models under the names that Hugging Face's models have in common.

A product is (in, out) here, with the heads apart, and (out, in) there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.config import ModelConfig
from lm.models.parameters import LAYER_PREFIX

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new"}


def encoder_decoder_sizes(config: ModelConfig) -> dict[str, Any]:
    """Of BART, Marian and Pegasus, with the activation."""
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
        "scale_embedding": config.scale_embeddings,
    }


def single_stack_sizes(config: ModelConfig) -> dict[str, int]:
    """Of Llama, BERT, RoBERTa and ModernBERT."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_length,
    }


class Weights(dict[str, np.ndarray]):
    """Arrays by their names there. A part of ours without a bias gives none."""

    def norm(self, name: str, part: Mapping[str, Any]) -> None:
        self._add(name, np.asarray(part["scale"]), part)

    def product(self, name: str, part: Mapping[str, Any], inputs: int = 1) -> None:
        """A product with so many dimensions of inputs."""
        kernel = np.asarray(part["kernel"])
        self._add(name, kernel.reshape(math.prod(kernel.shape[:inputs]), -1).T, part)

    def products(self, prefix: str, parts: Mapping[str, Any], names: Mapping[str, str]) -> None:
        """Those of an attention or an MLP: `names` says what each of ours is called there, after the prefix."""
        for ours, theirs in names.items():
            self.product(f"{prefix}.{theirs}", parts[ours], 2 if ours == "out" else 1)

    def _add(self, name: str, weight: np.ndarray, part: Mapping[str, Any]) -> None:
        self[f"{name}.weight"] = weight
        if "bias" in part:
            self[f"{name}.bias"] = np.asarray(part["bias"]).reshape(-1)


def joined(parts: Mapping[str, Any], *names: str) -> dict[str, np.ndarray]:
    """Several products of one input as a single one: their outputs one after the other."""
    whole = {"kernel": np.concatenate([parts[name]["kernel"] for name in names], axis=1)}
    if "bias" in parts[names[0]]:
        whole["bias"] = np.concatenate([parts[name]["bias"] for name in names])
    return whole


def numbered_layers(tower: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The blocks of an unrolled stack, each with its number."""
    names = [name for name in tower if name.startswith(LAYER_PREFIX)]
    return [(int(name.removeprefix(LAYER_PREFIX)), tower[name]) for name in names]
