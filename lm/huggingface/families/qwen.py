"""Qwen2 and Qwen2.5 (Yang 2024): Llama with query, key and value biases. Qwen3 (Yang 2025): query and key norms."""

from __future__ import annotations

import dataclasses

from lm.huggingface.families import llama
from lm.huggingface.families.rotary import FULL, rope
from lm.huggingface.fields import Field, Settings, Values, gathered, number

LONGEST = 32768


def _read_window(values: Values) -> Settings:
    """Raises ValueError for sliding windows, because these models use them only from a certain layer onwards."""
    if values["use_sliding_window"] not in (False, None):
        raise ValueError(f"use_sliding_window={values['use_sliding_window']!r} is not supported; supported: False")
    types = values["layer_types"]
    if types is not None and set(types) != {FULL}:
        raise ValueError(f"layer_types={types!r:.80} is not supported; supported: {FULL}")
    if types is not None and len(types) != values["num_hidden_layers"]:
        raise ValueError(f"layer_types={types!r:.80} must have num_hidden_layers elements")
    return {}


WINDOW = Field(
    {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 28, "layer_types": None},
    (),
    _read_window,
    lambda model: {"use_sliding_window": False},
    reads={"num_hidden_layers": 32},
)


COMMON = (
    number("vocab_size", "vocab_size", 151936),
    number("intermediate_size", "d_ff", 22016),
    number("num_key_value_heads", "num_kv_heads", 32, null=0),
    number("max_position_embeddings", "max_length", LONGEST),
    rope(10_000.0, LONGEST),
    WINDOW,
)

QWEN2 = dataclasses.replace(
    llama.FAMILY,
    name="qwen2",
    model_types=("qwen2",),
    settings={**llama.SETTINGS, "use_bias": False, "attention_bias": "qkv"},
    fields=gathered(llama.FIELDS_WITHOUT_BIAS, *COMMON),
    heads=llama.heads_of("Qwen2"),
    own_tokenizer=True,
)
QWEN3 = dataclasses.replace(
    llama.FAMILY,
    name="qwen3",
    model_types=("qwen3",),
    settings={**llama.SETTINGS, "qk_norm": "head"},
    fields=gathered(llama.FIELDS, *COMMON, number("head_dim", "head_dim", 128, null=0), llama.biases(mlp=None)),
    names={
        **llama.NAMES,
        "model.layers.{n}.self_attn.q_norm": "layer_{n}/attention/query_norm",
        "model.layers.{n}.self_attn.k_norm": "layer_{n}/attention/key_norm",
    },
    heads=llama.heads_of("Qwen3"),
)
