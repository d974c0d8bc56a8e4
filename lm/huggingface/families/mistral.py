"""Mistral 7B (Jiang 2023) and other models that use its class: Llama with a sliding window."""

from __future__ import annotations

import dataclasses

from lm.config import ModelConfig
from lm.huggingface.families import llama
from lm.huggingface.families.rotary import rope
from lm.huggingface.fields import Field, Settings, Values, gathered, number

LONGEST = 4096 * 32


def window(default: int | None) -> Field:
    """Returns the field for a window in all layers. The window includes the token itself; null means no window."""

    def read(values: Values) -> Settings:
        size = values["sliding_window"]
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"sliding_window={size!r} is not a valid number of tokens")
        return {"window": size or 0}

    def write(model: ModelConfig) -> Values:
        return {"sliding_window": model.window or None}

    return Field({"sliding_window": default}, ("window",), read, write)


FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="mistral",
    model_types=("mistral",),
    settings={**llama.SETTINGS, "use_bias": False},
    fields=gathered(
        llama.FIELDS_WITHOUT_BIAS,
        number("intermediate_size", "d_ff", 14336),
        number("num_key_value_heads", "num_kv_heads", 8, null=0),
        number("max_position_embeddings", "max_length", LONGEST),
        rope(10_000.0, LONGEST),
        window(4096),
    ),
    heads=llama.heads_of("Mistral"),
)
