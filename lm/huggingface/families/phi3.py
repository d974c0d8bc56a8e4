"""Phi-3 (Abdin 2024) with up to 4,096 positions: Llama with fused matrices. Longer variants are not supported."""

from __future__ import annotations

import dataclasses

from lm.huggingface.families import llama, mistral
from lm.huggingface.families.rotary import rope
from lm.huggingface.fields import gathered, number
from lm.huggingface.names import place

_SEPARATE = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="phi3",
    model_types=("phi3",),
    settings={**llama.SETTINGS, "use_bias": False},
    fields=gathered(
        llama.FIELDS_WITHOUT_BIAS,
        number("vocab_size", "vocab_size", 32064),
        number("hidden_size", "d_model", 3072),
        number("intermediate_size", "d_ff", 8192),
        number("max_position_embeddings", "max_length", 4096),
        number("rms_norm_eps", "norm_epsilon", 1e-5),
        rope(10_000.0, 4096),
        mistral.window(None),
    ),
    neutral=llama.FAMILY.neutral | {"original_max_position_embeddings"},
    names={
        **{theirs: ours for theirs, ours in llama.NAMES.items() if not theirs.endswith(_SEPARATE)},
        "model.layers.{n}.self_attn.qkv_proj": place(
            *(f"layer_{{n}}/attention/{name}" for name in ("query", "key", "value"))
        ),
        "model.layers.{n}.mlp.gate_up_proj": place("layer_{n}/mlp/gate", "layer_{n}/mlp/up"),
    },
    heads=llama.heads_of("Phi3"),
)
