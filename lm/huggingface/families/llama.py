"""Llama 1 and 2 (Touvron 2023) and models of its class, such as SmolLM2 and TinyLlama."""

from __future__ import annotations

from typing import Any

from lm.config import ModelConfig
from lm.huggingface.families.family import Family, Head
from lm.huggingface.fields import Field, Settings, Values, choice, number, only
from lm.huggingface.names import Spelling

GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
}


def rope(theta: float) -> Field:
    """Returns the fields of rotary positions, in the spellings of `transformers` 4 and 5. `theta` is the default."""

    def read(values: Values) -> Settings:
        # If a file has both, rope_scaling wins over rope_parameters, and nested values win over others.
        parameters: dict[str, Any] = values["rope_scaling"] or values["rope_parameters"] or {}
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind != "default":
            raise ValueError(f"rope_scaling: rope_type={kind!r} is not supported")
        if parameters.get("partial_rotary_factor", values["partial_rotary_factor"]) not in (None, 1.0):
            raise ValueError("partial_rotary_factor is not supported, only 1.0")
        chosen = parameters.get("rope_theta", values["rope_theta"])
        if isinstance(chosen, bool) or not isinstance(chosen, (int, float)):
            raise ValueError(f"rope_theta={chosen!r} is not a number")
        return {"rotary_theta": float(chosen)}

    def write(model: ModelConfig) -> Values:
        parameters = {"rope_type": "default", "rope_theta": model.rotary_theta}
        return {"rope_theta": model.rotary_theta, "rope_scaling": None, "rope_parameters": parameters}

    defaults = {"rope_theta": theta, "rope_scaling": None, "rope_parameters": None, "partial_rotary_factor": None}
    return Field(defaults, ("rotary_theta",), read, write)


FIELDS: tuple[Field, ...] = (
    number("vocab_size", "vocab_size", 32000),
    number("hidden_size", "d_model", 4096),
    number("intermediate_size", "d_ff", 11008),
    number("num_hidden_layers", "num_layers", 32),
    number("num_attention_heads", "num_heads", 32),
    number("num_key_value_heads", "num_kv_heads", None, null=0),
    number("head_dim", "head_dim", None, null=0),
    choice("hidden_act", "activation", GATED, "silu"),
    number("max_position_embeddings", "max_length", 2048),
    number("rms_norm_eps", "norm_epsilon", 1e-6),
    rope(10_000.0),
    only("attention_bias", False),
    only("mlp_bias", False),
)
NAMES = {
    "model.embed_tokens": "token_embedding",
    "model.layers.{n}.input_layernorm": "layer_{n}/attention_norm",
    "model.layers.{n}.self_attn.q_proj": "layer_{n}/attention/query",
    "model.layers.{n}.self_attn.k_proj": "layer_{n}/attention/key",
    "model.layers.{n}.self_attn.v_proj": "layer_{n}/attention/value",
    "model.layers.{n}.self_attn.o_proj": "layer_{n}/attention/out",
    "model.layers.{n}.post_attention_layernorm": "layer_{n}/mlp_norm",
    "model.layers.{n}.mlp.gate_proj": "layer_{n}/mlp/gate",
    "model.layers.{n}.mlp.up_proj": "layer_{n}/mlp/up",
    "model.layers.{n}.mlp.down_proj": "layer_{n}/mlp/down",
    "model.norm": "final_norm",
}
SETTINGS = {
    "family": "decoder",
    "positions": "rotary",
    "norm": "rmsnorm",
    "norm_position": "pre",
    "use_bias": False,
}


def heads_of(kind: str) -> dict[str, Head]:
    """Returns the heads of a family whose classes are called Llama..., Mistral... or the like."""
    return {
        f"{kind}ForCausalLM": Head("causal", {"lm_head": "output"}),
        f"{kind}ForTokenClassification": Head("tagging", {"score": "classifier"}),
        f"{kind}ForQuestionAnswering": Head("span_qa", {"qa_outputs": "span"}),
        f"{kind}Model": Head("contrastive"),
    }


FAMILY = Family(
    name="llama",
    model_types=("llama",),
    settings=SETTINGS,
    fields=FIELDS,
    neutral=frozenset({"pretraining_tp", "tie_word_embeddings"}),
    names=NAMES,
    heads=heads_of("Llama"),
    spelling=Spelling("model."),
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
