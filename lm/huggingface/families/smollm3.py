"""SmolLM3 (Bakouch 2025): Llama in which every fourth layer has no rotary positions."""

from __future__ import annotations

import dataclasses

from lm.config import ModelConfig
from lm.huggingface.families import llama, qwen
from lm.huggingface.families.rotary import period_of, rope
from lm.huggingface.fields import Field, Settings, Values, gathered, number

LONGEST = 32768


def _read_nope(values: Values) -> Settings:
    """Determines which layers have no rotary positions. In no_rope_layers, 1 marks a layer with rotary positions."""
    count, interval, listed = values["num_hidden_layers"], values["no_rope_layer_interval"], values["no_rope_layers"]
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise ValueError(f"no_rope_layer_interval={interval!r} is not a valid number of layers")
    if listed is None:
        listed = [int((n + 1) % interval != 0) for n in range(count)]
    if len(listed) != count or set(listed) - {0, 1}:
        raise ValueError(f"no_rope_layers={listed!r:.80} must have {count} elements, each 0 or 1")
    if all(listed):
        return {"nope_every": 0, "nope_offset": 0}
    pattern = period_of([not each for each in listed], (interval, interval - 1))
    if pattern is None:
        raise ValueError(f"no_rope_layers={listed!r:.120} is not supported because it is not periodic")
    return {"nope_every": pattern[0], "nope_offset": pattern[1]}


def _write_nope(model: ModelConfig) -> Values:
    every, offset = model.nope_every, model.nope_offset
    return {"no_rope_layers": [int(not (every and n % every == offset)) for n in range(model.num_layers)]}


FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="smollm3",
    model_types=("smollm3",),
    fields=gathered(
        llama.FIELDS,
        number("vocab_size", "vocab_size", 128256),
        number("hidden_size", "d_model", 2048),
        number("num_hidden_layers", "num_layers", 36),
        number("num_attention_heads", "num_heads", 16),
        number("num_key_value_heads", "num_kv_heads", 4, null=0),
        number("max_position_embeddings", "max_length", LONGEST),
        rope(2_000_000.0, LONGEST),
        qwen.WINDOW,
        Field(
            {"no_rope_layers": None, "no_rope_layer_interval": 4},
            ("nope_every", "nope_offset"),
            _read_nope,
            _write_nope,
            reads={"num_hidden_layers": 36},
        ),
    ),
    heads=llama.heads_of("SmolLM3"),
    tie_default=True,
)
