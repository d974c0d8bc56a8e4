"""Mistral 7B (Jiang 2023) and models of its class: Llama with a sliding window."""

from __future__ import annotations

import dataclasses

from lm.config import ModelConfig
from lm.huggingface.families import llama
from lm.huggingface.fields import Field, Settings, Values, gathered, number


def _read_window(values: Values) -> Settings:
    window = values["sliding_window"]
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ValueError(f"sliding_window={window!r} is not a number of tokens")
    return {"window": window or 0}


def _write_window(model: ModelConfig) -> Values:
    return {"sliding_window": model.window or None}


FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="mistral",
    model_types=("mistral",),
    fields=gathered(
        llama.FIELDS,
        number("intermediate_size", "d_ff", 14336),
        number("num_key_value_heads", "num_kv_heads", 8, null=0),
        number("max_position_embeddings", "max_length", 4096 * 32),
        # Both count the token itself. Files without the field have windows of 4,096 tokens; null means none.
        Field({"sliding_window": 4096}, ("window",), _read_window, _write_window),
    ),
    heads=llama.heads_of("Mistral"),
)
