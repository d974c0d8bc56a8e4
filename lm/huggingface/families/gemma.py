"""Gemma 1, 2 and 3, text only (Gemma Team 2024, 2024, 2025).

Norms multiply the normalised values by 1 + scale, and embeddings are multiplied by sqrt(d_model). Gemma 2 and 3
normalise both the input and the output of each sub-layer, and most of their layers have a sliding window.
"""

from __future__ import annotations

import dataclasses

from lm.config import ModelConfig
from lm.huggingface.families import llama
from lm.huggingface.families.rotary import layered_rope, rope, windows
from lm.huggingface.fields import Field, Settings, Values, choice, gathered, number, only
from lm.huggingface.names import Spelling

ACTIVATIONS = {"gelu_pytorch_tanh": "geglu_tanh", "gelu_new": "geglu_tanh"}
ANY_ACTIVATION = {**ACTIVATIONS, "gelu": "geglu", "silu": "swiglu"}
SETTINGS = {**llama.SETTINGS, "norm_unit_offset": True, "embedding_scale": 0.0}


def _read_activation(values: Values) -> Settings:
    """Reads the activation.

    Raises ValueError if only hidden_act="gelu" is given, because in old files this means the tanh approximation.
    """
    chosen = values["hidden_activation"]
    if chosen is None:
        chosen = values["hidden_act"]
        if chosen == "gelu":
            raise ValueError("hidden_act='gelu' is ambiguous for this family; add hidden_activation, as newer files do")
    if chosen not in ANY_ACTIVATION:
        raise ValueError(f"hidden_activation={chosen!r} is not supported; supported: {', '.join(ANY_ACTIVATION)}")
    return {"activation": ANY_ACTIVATION[chosen]}


def _write_activation(model: ModelConfig) -> Values:
    name = next((name for name, each in ANY_ACTIVATION.items() if each == model.activation), None)
    return {} if name is None else {"hidden_act": name, "hidden_activation": name}


def _read_scale(values: Values) -> Settings:
    scalar = values["query_pre_attn_scalar"]
    if isinstance(scalar, bool) or not isinstance(scalar, (int, float)) or scalar <= 0:
        raise ValueError(f"query_pre_attn_scalar={scalar!r} is not a positive number")
    return {"attention_scale": 0.0 if scalar == values["head_dim"] else scalar**-0.5}


def _write_scale(model: ModelConfig) -> Values:
    if not model.attention_scale:
        return {"query_pre_attn_scalar": model.head_dim}
    scalar = model.attention_scale**-2
    whole = round(scalar)
    return {"query_pre_attn_scalar": whole if whole and whole**-0.5 == model.attention_scale else scalar}


GEMMA = dataclasses.replace(
    llama.FAMILY,
    name="gemma",
    model_types=("gemma",),
    settings=SETTINGS,
    fields=gathered(
        llama.FIELDS,
        number("vocab_size", "vocab_size", 256000),
        number("hidden_size", "d_model", 3072),
        number("intermediate_size", "d_ff", 24576),
        number("num_hidden_layers", "num_layers", 28),
        number("num_attention_heads", "num_heads", 16),
        number("num_key_value_heads", "num_kv_heads", 16, null=0),
        number("head_dim", "head_dim", 256),
        number("max_position_embeddings", "max_length", 8192),
        Field(
            {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": None},
            ("activation",),
            _read_activation,
            _write_activation,
        ),
        rope(10_000.0, 8192),
        llama.biases(mlp=None),
        only("use_bidirectional_attention", None, False),
    ),
    heads=llama.heads_of("Gemma"),
    tie_default=True,
)

_BOTH = gathered(
    GEMMA.fields,
    number("hidden_size", "d_model", 2304),
    number("intermediate_size", "d_ff", 9216),
    number("num_hidden_layers", "num_layers", 26),
    number("num_attention_heads", "num_heads", 8),
    number("num_key_value_heads", "num_kv_heads", 4, null=0),
    choice("hidden_activation", "activation", ANY_ACTIVATION, "gelu_pytorch_tanh"),
    Field({"query_pre_attn_scalar": 256}, ("attention_scale",), _read_scale, _write_scale, reads={"head_dim": 256}),
)
_NAMES = {
    **llama.NAMES,
    "model.layers.{n}.post_attention_layernorm": "layer_{n}/attention_output_norm",
    "model.layers.{n}.pre_feedforward_layernorm": "layer_{n}/mlp_norm",
    "model.layers.{n}.post_feedforward_layernorm": "layer_{n}/mlp_output_norm",
}

GEMMA2 = dataclasses.replace(
    GEMMA,
    name="gemma2",
    model_types=("gemma2",),
    settings={**SETTINGS, "norm_position": "sandwich"},
    fields=gathered(
        _BOTH,
        windows((2, 1), 4096, 26),
        rope(10_000.0, 8192, some_windows=True),
        number("final_logit_softcapping", "logits_softcap", 30.0, null=0.0),
        number("attn_logit_softcapping", "attention_softcap", 50.0, null=0.0),
    ),
    neutral=GEMMA.neutral | {"hidden_act", "cache_implementation"},
    names=_NAMES,
    heads=llama.heads_of("Gemma2"),
)
GEMMA3 = dataclasses.replace(
    GEMMA,
    name="gemma3",
    model_types=("gemma3_text",),
    settings={**SETTINGS, "norm_position": "sandwich", "qk_norm": "head"},
    fields=gathered(
        _BOTH,
        number("vocab_size", "vocab_size", 262208),
        number("max_position_embeddings", "max_length", 131072),
        windows((6, 5), 4096, 26),
        layered_rope(1_000_000.0, 10_000.0, 131072),
        number("final_logit_softcapping", "logits_softcap", None, null=0.0),
        only("attn_logit_softcapping", None),  # because `transformers` does not apply it
    ),
    neutral=GEMMA.neutral | {"hidden_act", "cache_implementation"},
    names={
        **_NAMES,
        "model.layers.{n}.self_attn.q_norm": "layer_{n}/attention/query_norm",
        "model.layers.{n}.self_attn.k_norm": "layer_{n}/attention/key_norm",
    },
    heads=llama.heads_of("Gemma3", "Text", tokens=False),
    spelling=Spelling("model.", ("", "language_model.model.")),
)
