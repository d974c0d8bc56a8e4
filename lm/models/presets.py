"""Published architectures as data: `config.model.update(preset("gpt2_124m"))`.

Each preset sets every ModelConfig field in which published models differ, and nothing about training: dropout, dtype
and kernels are left to the config. The parameter counts in the comments are exact and verified by a test.
"""

from __future__ import annotations

import difflib
from typing import Any

from lm.errors import UserError


def preset(name: str) -> dict[str, Any]:
    """Returns the ModelConfig fields of a published model. Raises UserError, with the nearest names, if unknown."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(PRESETS))}."
        raise UserError(f"preset({name!r}): no such model; {hint}")
    return dict(PRESETS[name])


def _gpt2(num_layers: int, d_model: int, num_heads: int) -> dict[str, Any]:
    """Radford 2019; the released weights are openai/gpt-2 and Hugging Face's openai-community/gpt2*."""
    return {
        "vocab_size": 50257,
        "num_layers": num_layers,
        "d_model": d_model,
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": d_model // num_heads,
        "d_ff": 4 * d_model,
        "max_length": 1024,
        "positions": "learned",
        "norm": "layernorm",
        "norm_position": "pre",
        "norm_epsilon": 1e-5,
        "activation": "gelu_tanh",
        "use_bias": True,
        "tie_embeddings": True,
        "scale_embeddings": False,
        "window": 0,
        "init_std": 0.02,
        "init_residual_scaling": True,
    }


def _llama(
    vocab_size: int,
    num_layers: int,
    d_model: int,
    num_heads: int,
    num_kv_heads: int,
    d_ff: int,
    max_length: int,
    rotary_theta: float = 10_000.0,
    tie_embeddings: bool = False,
    interleaved: bool = False,
) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "num_layers": num_layers,
        "d_model": d_model,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": d_model // num_heads,
        "d_ff": d_ff,
        "max_length": max_length,
        "positions": "rotary",
        "rotary_theta": rotary_theta,
        "rotary_interleaved": interleaved,
        "norm": "rmsnorm",
        "norm_position": "pre",
        "norm_epsilon": 1e-5,
        "activation": "swiglu",
        "use_bias": False,
        "tie_embeddings": tie_embeddings,
        "scale_embeddings": False,
        "window": 0,
        "init_std": 0.02,
        "init_residual_scaling": False,
    }


def _vaswani(num_layers: int, d_model: int, num_heads: int, d_ff: int) -> dict[str, Any]:
    """Vaswani 2017, table 3; the vocabulary is left to the task. Initial weights scale with the fan-in of a layer."""
    return {
        "family": "encoder_decoder",
        "num_layers": num_layers,
        "num_encoder_layers": num_layers,
        "d_model": d_model,
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": d_model // num_heads,
        "d_ff": d_ff,
        "positions": "sinusoidal",
        "norm": "layernorm",
        "norm_position": "post",
        "norm_epsilon": 1e-5,
        "norm_embeddings": False,
        "activation": "relu",
        "use_bias": True,
        "share_embeddings": True,
        "tie_embeddings": True,
        "scale_embeddings": True,
        "scale_logits": False,
        "scale_attention": True,
        "init_std": 0.0,
        "embedding_std": 0.0,
        "init_residual_scaling": False,
    }


def _t5(
    num_layers: int, d_model: int, num_heads: int, head_dim: int, d_ff: int, version: str = "1.0"
) -> dict[str, Any]:
    """Raffel 2020 and the config.json files of google-t5/* and google/t5-v1_1-*."""
    first = version == "1.0"
    return {
        **_vaswani(num_layers, d_model, num_heads, d_ff),
        "vocab_size": 32128,
        "head_dim": head_dim,
        "positions": "relative",
        "relative_buckets": 32,
        "relative_max_distance": 128,
        "norm": "rmsnorm",
        "norm_position": "pre",
        "norm_epsilon": 1e-6,
        "activation": "relu" if first else "geglu_tanh",
        "use_bias": False,
        "tie_embeddings": first,
        "scale_embeddings": False,
        "scale_logits": first,
        "scale_attention": False,
        "embedding_std": 1.0,
    }


def _bart(num_layers: int, d_model: int, num_heads: int) -> dict[str, Any]:
    """Lewis 2020 and the config.json files of facebook/bart-*; the released tables have two unused positions more."""
    return {
        **_vaswani(num_layers, d_model, num_heads, 4 * d_model),
        "vocab_size": 50265,
        "max_length": 1024,
        "positions": "learned",
        "norm_embeddings": True,
        "activation": "gelu",
        "scale_embeddings": False,
        "init_std": 0.02,
    }


def _bert(num_layers: int, d_model: int, vocab_size: int = 30522, roberta: bool = False) -> dict[str, Any]:
    """Devlin 2019, Turc 2019 (the small ones) and the config.json files of google-bert/* and google/bert_uncased_*.

    Liu 2019 (RoBERTa) has no second text: its single token type is a constant, which the positions can absorb, and two
    of its positions are unused. Parameter counts omit those weights, the pooler and the next-sentence classifier.
    """
    return {
        "family": "encoder",
        "vocab_size": vocab_size,
        "num_layers": num_layers,
        "d_model": d_model,
        "num_heads": d_model // 64,
        "num_kv_heads": d_model // 64,
        "head_dim": 64,
        "d_ff": 4 * d_model,
        "max_length": 512,
        "positions": "learned",
        "token_types": 0 if roberta else 2,
        "norm": "layernorm",
        "norm_position": "post",
        "norm_epsilon": 1e-5 if roberta else 1e-12,
        "norm_embeddings": True,
        "activation": "gelu",
        "use_bias": True,
        "tie_embeddings": True,
        "head_transform": True,
        "output_bias": True,
        "pooler": True,
        "scale_embeddings": False,
        "window": 0,
        "global_every": 0,
        "init_std": 0.02,
        "init_residual_scaling": False,
    }


def _modernbert(num_layers: int, d_model: int, d_ff: int) -> dict[str, Any]:
    """Warner 2024 and the config.json files of answerdotai/ModernBERT-*.

    Each token attends to 64 others on either side, and in every third layer to all. Ours has a norm before the first
    attention, theirs has none.
    """
    return {
        **_bert(num_layers, d_model, 50368),
        "d_ff": d_ff,
        "max_length": 8192,
        "positions": "rotary",
        "rotary_theta": 160_000.0,
        "local_rotary_theta": 10_000.0,
        "token_types": 0,
        "norm_position": "pre",
        "norm_epsilon": 1e-5,
        "activation": "geglu",
        "use_bias": False,
        "pooler": False,
        "window": 65,
        "global_every": 3,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "gpt2_124m": _gpt2(12, 768, 12),  # 124,439,808
    "gpt2_350m": _gpt2(24, 1024, 16),  # 354,823,168
    "gpt2_774m": _gpt2(36, 1280, 20),  # 774,030,080
    "gpt2_1558m": _gpt2(48, 1600, 25),  # 1,557,611,200
    # llama2.c's model of TinyStories: config and weights of karpathy/tinyllamas, stories260K. 260,032
    "stories260k": _llama(512, 5, 64, 8, 4, 172, 512, tie_embeddings=True, interleaved=True),
    # Touvron 2023, table 1 of Llama 2, and the config.json of meta-llama/Llama-2-*-hf.
    "llama2_7b": _llama(32_000, 32, 4096, 32, 32, 11_008, 4096),  # 6,738,415,616
    "llama2_13b": _llama(32_000, 40, 5120, 40, 40, 13_824, 4096),  # 13,015,864,320
    # Grattafiori 2024, table 3, and the config.json of meta-llama/Meta-Llama-3-8B.
    "llama3_8b": _llama(128_256, 32, 4096, 32, 8, 14_336, 8192, 500_000.0),  # 8,030,261,248
    # config.json of meta-llama/Llama-3.2-1B, without its scaling of the rotary angles, which we do not implement: right
    # for training from scratch, not for the released weights. 1,235,814,400
    "llama3_1b": _llama(128_256, 16, 2048, 32, 8, 8192, 8192, 500_000.0, tie_embeddings=True),
    # Without the embedding: 44,138,496 and 176,357,376. transformer_tiny is fairseq's on Multi30k (Wu 2021): 1,325,056.
    "transformer_base": _vaswani(6, 512, 8, 2048),
    "transformer_big": _vaswani(6, 1024, 16, 4096),
    "transformer_tiny": _vaswani(4, 128, 4, 256),
    "t5_small": _t5(6, 512, 8, 64, 2048),  # 60,506,624
    "t5_base": _t5(12, 768, 12, 64, 3072),  # 222,903,552
    "t5_large": _t5(24, 1024, 16, 64, 4096),  # 737,668,096
    "t5_3b": _t5(24, 1024, 32, 128, 16_384),  # 2,851,598,336
    "t5_11b": _t5(24, 1024, 128, 128, 65_536),  # 11,307,321,344
    "t5_1_1_small": _t5(8, 512, 6, 64, 1024, "1.1"),  # 76,961,152
    "t5_1_1_base": _t5(12, 768, 12, 64, 2048, "1.1"),  # 247,577,856
    "t5_1_1_large": _t5(24, 1024, 16, 64, 2816, "1.1"),  # 783,150,080
    "t5_1_1_xl": _t5(24, 2048, 32, 64, 5120, "1.1"),  # 2,849,757,184
    "t5_1_1_xxl": _t5(24, 4096, 64, 64, 10_240, "1.1"),  # 11,135,332,352
    "bart_base": _bart(6, 768, 12),  # 139,417,344
    "bart_large": _bart(12, 1024, 16),  # 406,287,360
    # With the head for masked tokens.
    "bert_tiny": _bert(2, 128),  # 4,416,698
    "bert_mini": _bert(4, 256),  # 11,201,594
    "bert_small": _bert(4, 512),  # 28,795,194
    "bert_medium": _bert(8, 512),  # 41,404,730
    "bert_base": _bert(12, 768),  # 109,514,298
    "bert_large": _bert(24, 1024),  # 335,174,458
    "roberta_base": _bert(12, 768, 50265, roberta=True),  # 124,695,129
    "roberta_large": _bert(24, 1024, 50265, roberta=True),  # 355,408,985
    "modernbert_base": _modernbert(22, 768, 1152),  # 149,656,000
    "modernbert_large": _modernbert(28, 1024, 2624),  # 395,882,688
}
