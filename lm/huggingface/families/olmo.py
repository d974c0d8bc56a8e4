"""OLMo 2 and OLMo 3 (OLMo Team 2024, 2025): norms after sub-layers; query and key norms span all heads."""

from __future__ import annotations

import dataclasses

from lm.huggingface.families import llama
from lm.huggingface.families.rotary import layered_rope, rope, windows
from lm.huggingface.fields import gathered, number

OLMO2 = dataclasses.replace(
    llama.FAMILY,
    name="olmo2",
    model_types=("olmo2",),
    settings={**llama.SETTINGS, "norm_position": "branch", "qk_norm": "width"},
    fields=gathered(
        llama.FIELDS,
        number("vocab_size", "vocab_size", 50304),
        number("rms_norm_eps", "norm_epsilon", 1e-5),
        llama.biases(mlp=None),
        rope(10_000.0, 2048),
    ),
    names={
        **{theirs: ours for theirs, ours in llama.NAMES.items() if not theirs.endswith("layernorm")},
        "model.layers.{n}.self_attn.q_norm": "layer_{n}/attention/query_norm",
        "model.layers.{n}.self_attn.k_norm": "layer_{n}/attention/key_norm",
        "model.layers.{n}.post_attention_layernorm": "layer_{n}/attention_output_norm",
        "model.layers.{n}.post_feedforward_layernorm": "layer_{n}/mlp_output_norm",
    },
    heads=llama.heads_of("Olmo2", tokens=False),
)
OLMO3 = dataclasses.replace(
    OLMO2,
    name="olmo3",
    model_types=("olmo3",),
    fields=gathered(OLMO2.fields, windows((4, 3), 4096, 32), layered_rope(500_000.0, None, 2048)),
    heads=llama.heads_of("Olmo3", tokens=False),
)
