"""Tiny decoders of `transformers` that need an option of ours, with our random weights under their names."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from benchmarks.renamed import Weights, numbered_layers
from lm.config import ModelConfig

LENGTH = 100  # tokens in the longest row: more than four times the original length of scaled rotary positions
SIZES = {"vocab_size": 40, "num_layers": 4, "d_model": 24, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "d_ff": 32}
LLAMA = ModelConfig(
    **SIZES,
    max_length=100,
    norm="rmsnorm",
    activation="swiglu",
    use_bias=False,
    tie_embeddings=False,
    scan_layers=False,
)
GEMMA = dataclasses.replace(
    LLAMA, activation="geglu_tanh", tie_embeddings=True, norm_unit_offset=True, embedding_scale=0.0, norm_epsilon=1e-6
)
GEMMA2 = dataclasses.replace(
    GEMMA, norm_position="sandwich", attention_scale=12**-0.5, attention_softcap=3.0, logits_softcap=4.0
)
GEMMA3 = dataclasses.replace(
    GEMMA2, window=7, global_every=2, global_offset=1, qk_norm="head", attention_softcap=0.0, logits_softcap=0.0
)
OLMO2 = dataclasses.replace(LLAMA, norm_position="branch", qk_norm="width")
QWEN2 = dataclasses.replace(LLAMA, head_dim=6, attention_bias="qkv")
SCALED = {"rope_factor": 4.0, "rope_original_length": 24}
# Of the four frequencies, the first is kept, the second is interpolated, and the others are divided.
LLAMA3 = {"rope_scaling": "llama3", "rope_low_freq_factor": 0.5, "rope_high_freq_factor": 3.0}
WINDOW = {"window": 7, "global_every": 2}
FULL, LOCAL = "full_attention", "sliding_attention"
LAYER_TYPES = [LOCAL, FULL, LOCAL, FULL]
GEMMA3_SETTINGS = {"query_pre_attn_scalar": 12, "sliding_window": 7, "layer_types": LAYER_TYPES}


def rope(theta: float = 10_000.0, **scaling: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **scaling}


def sizes(config: ModelConfig) -> dict[str, Any]:
    """Returns the settings that all decoders share."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "rope_parameters": rope(config.rotary_theta),
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "attn_implementation": "eager",
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }


YARN = rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=24)

# name -> (name of the class, our config, their settings besides `sizes`)
DECODERS: dict[str, tuple[str, ModelConfig, dict[str, Any]]] = {
    "llama with biases of attention": (
        "Llama", dataclasses.replace(LLAMA, attention_bias="all"), {"attention_bias": True}
    ),
    "llama with biases of the mlp": (
        "Llama", dataclasses.replace(LLAMA, use_bias=True, attention_bias="none"), {"mlp_bias": True}
    ),
    "qwen2": ("Qwen2", QWEN2, {}),
    "qwen3": ("Qwen3", dataclasses.replace(LLAMA, qk_norm="head"), {}),
    "gemma": ("Gemma", GEMMA, {"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2": (
        "Gemma2",
        dataclasses.replace(GEMMA2, **WINDOW, global_offset=1),
        {
            **GEMMA3_SETTINGS,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        dataclasses.replace(GEMMA3, rotary_theta=1e6, local_rotary_theta=1e4),
        {**GEMMA3_SETTINGS, "rope_parameters": {FULL: rope(1e6), LOCAL: rope(1e4)}},
    ),
    "olmo2": ("Olmo2", dataclasses.replace(OLMO2, head_dim=6), {}),
    "olmo3": (
        "Olmo3",
        dataclasses.replace(OLMO2, head_dim=6, window=7, global_every=4, global_offset=3),
        {"sliding_window": 7, "rope_parameters": {FULL: rope(), LOCAL: rope()}},
    ),
    "llama3 scaling": (
        "Llama",
        dataclasses.replace(LLAMA, **SCALED, **LLAMA3, rotary_theta=300.0),
        {
            "rope_parameters": rope(
                300.0,
                rope_type="llama3",
                factor=4.0,
                low_freq_factor=0.5,
                high_freq_factor=3.0,
                original_max_position_embeddings=24,
            )
        },
    ),
    "linear scaling of global layers": (
        "Gemma3",
        dataclasses.replace(
            GEMMA3, rotary_theta=1e6, local_rotary_theta=1e4, rope_scaling="linear", rope_factor=8.0
        ),
        {**GEMMA3_SETTINGS, "rope_parameters": {FULL: rope(1e6, rope_type="linear", factor=8.0), LOCAL: rope(1e4)}},
    ),
    "yarn": (
        "Qwen2",
        dataclasses.replace(QWEN2, **SCALED, rope_scaling="yarn"),
        {"rope_parameters": YARN},
    ),
    "yarn with its own numbers": (
        "Qwen2",
        dataclasses.replace(
            QWEN2,
            **SCALED,
            rope_scaling="yarn",
            rope_beta_fast=4.0,
            rope_beta_slow=0.3,
            rope_attention_factor=1.3,
            rope_truncate=False,
            rotary_theta=50.0,
        ),
        {
            "rope_parameters": YARN
            | {"rope_theta": 50.0, "beta_fast": 4.0, "beta_slow": 0.3, "attention_factor": 1.3, "truncate": False}
        },
    ),
    "yarn of every layer": (
        "Olmo3",
        dataclasses.replace(
            OLMO2,
            **SCALED,
            head_dim=6,
            window=30,
            global_every=4,
            global_offset=3,
            rope_scaling="yarn",
            rope_scaling_local=True,
        ),
        {"sliding_window": 30, "rope_parameters": {FULL: YARN, LOCAL: YARN}},
    ),
    "smollm3": (
        "SmolLM3",
        dataclasses.replace(LLAMA, head_dim=6, nope_every=4, nope_offset=3),
        {"no_rope_layers": [1, 1, 1, 0]},
    ),
}  # fmt: skip


def build_decoder(name: str, params: dict[str, Any]) -> Any:
    """Returns the published decoder with our parameters, which must be those of unrolled layers."""
    import torch
    import transformers

    kind, config, settings = DECODERS[name]
    text = "Text" if kind == "Gemma3" else ""
    theirs = getattr(transformers, f"{kind}{text}Config")(**{**sizes(config), **settings})
    model = getattr(transformers, f"{kind}ForCausalLM")(theirs)
    weights = {key: torch.tensor(np.asarray(value)) for key, value in _weights(config, params).items()}
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown and set(missing) <= ({"lm_head.weight"} if config.tie_embeddings else set()), (missing, unknown)
    model.tie_weights()
    return model.eval()


def _weights(config: ModelConfig, params: dict[str, Any]) -> Weights:
    weights = Weights({"model.embed_tokens.weight": params["token_embedding"]["embedding"]})
    weights.norm("model.norm", params["final_norm"])
    if "output" in params:
        weights.linear("lm_head", params["output"])
    second = {"pre": "post_attention", "sandwich": "pre_feedforward"}.get(config.norm_position, "")
    norms = {
        "attention_norm": "input",
        "attention_output_norm": "post_attention",
        "mlp_norm": second,
        "mlp_output_norm": "post_feedforward",
    }
    for n, layer in numbered_layers(params):
        prefix = f"model.layers.{n}"
        for ours, theirs in norms.items():
            if ours in layer:
                weights.norm(f"{prefix}.{theirs}_layernorm", layer[ours])
        attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
        weights.linears(f"{prefix}.self_attn", layer["attention"], attention)
        for ours, theirs in {"query_norm": "q_norm", "key_norm": "k_norm"}.items():
            if ours in layer["attention"]:
                weights.norm(f"{prefix}.self_attn.{theirs}", layer["attention"][ours])
        weights.linears(f"{prefix}.mlp", layer["mlp"], {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})
    return weights
