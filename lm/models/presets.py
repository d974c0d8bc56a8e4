"""Model settings for published architectures. Example: `config.model.update(preset("gpt2_124m"))`.

The name may also be the path of a run directory: `config.model.update(preset("runs/imported"))`.

Each preset sets the ModelConfig fields in which published models differ. Training settings, such as dropout, dtype and
kernels, are left to the config. The parameter counts in the comments are exact and verified by a test.
"""

from __future__ import annotations

import difflib
from typing import Any

from lm.config.retired import migrated
from lm.errors import UserError
from lm.files import expanded, parse_json, read_file

Fields = dict[str, Any]


def preset(name: str) -> Fields:
    """Returns the ModelConfig fields of a published model, or of the run whose directory is given as `name`.

    To continue training a model that lm.hf has imported, pass its run directory to this function and also set
    config.init_from to it. Raises UserError if the name is unknown or the run's config.json is damaged.
    """
    if name not in PRESETS and (config := expanded(name) / "config.json").is_file():
        try:
            return dict(migrated(parse_json(read_file(config)))["model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"preset({name!r}): {config} is not the config of a run directory ({error}).") from None
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the known names are {', '.join(sorted(PRESETS))}."
        raise UserError(f"preset({name!r}) is not a known model; {hint}")
    return dict(PRESETS[name])


def _size(num_layers: int, d_model: int, num_heads: int, d_ff: int = 0, kv_heads: int = 0, head_dim: int = 0) -> Fields:
    """Returns the ModelConfig fields that determine the size of a model.

    By default, d_ff is 4 * d_model and each query head has its own key/value head.
    """
    return {
        "num_layers": num_layers,
        "d_model": d_model,
        "num_heads": num_heads,
        "num_kv_heads": kv_heads or num_heads,
        "head_dim": head_dim or d_model // num_heads,
        "d_ff": d_ff or 4 * d_model,
    }


def _two_sides(num_layers: int, *others: int, **named: int) -> Fields:
    return _size(num_layers, *others, **named) | {"num_encoder_layers": num_layers}


# Fields that most families share; each family below overrides the fields in which it differs.
_BASE: Fields = {
    "norm": "layernorm",
    "norm_position": "pre",
    "norm_epsilon": 1e-5,
    "use_bias": True,
    "tie_embeddings": True,
    "embedding_scale": 1.0,
    "init_std": 0.02,
    "init_residual_scaling": False,
}

# Radford 2019. The weights are released as openai/gpt-2 and, on Hugging Face, as openai-community/gpt2*.
_GPT2 = _BASE | {
    "vocab_size": 50257,
    "max_length": 1024,
    "positions": "learned",
    "activation": "gelu_tanh",
    "window": 0,
    "init_residual_scaling": True,
}

_LLAMA = _BASE | {
    "positions": "rotary",
    "rotary_theta": 10_000.0,
    "rotary_interleaved": False,
    "norm": "rmsnorm",
    "activation": "swiglu",
    "use_bias": False,
    "tie_embeddings": False,
    "window": 0,
}
_LLAMA2 = _LLAMA | {"vocab_size": 32_000, "max_length": 4096}
_LLAMA3 = _LLAMA | {"vocab_size": 128_256, "max_length": 8192, "rotary_theta": 500_000.0}
_LLAMA3_2 = {
    "tie_embeddings": True,
    "rope_scaling": "llama3",
    "rope_factor": 32.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_original_length": 8192,
}
_STORIES = {"vocab_size": 512, "max_length": 512, "tie_embeddings": True, "rotary_interleaved": True}

# Vaswani 2017, table 3. The vocabulary depends on the task. The fan-in of a layer sets its initial weight scale.
_VASWANI = _BASE | {
    "family": "encoder_decoder",
    "positions": "sinusoidal",
    "norm_position": "post",
    "norm_embeddings": False,
    "activation": "relu",
    "share_embeddings": True,
    "embedding_scale": 0.0,  # sqrt(d_model)
    "scale_logits": False,
    "attention_scale": 0.0,
    "init_std": 0.0,
    "embedding_std": 0.0,
}

# Raffel 2020 and the config.json files of google-t5/* and google/t5-v1_1-*.
_T5 = _VASWANI | {
    "vocab_size": 32128,
    "positions": "relative",
    "relative_buckets": 32,
    "relative_max_distance": 128,
    "norm": "rmsnorm",
    "norm_position": "pre",
    "norm_epsilon": 1e-6,
    "use_bias": False,
    "embedding_scale": 1.0,
    "scale_logits": True,
    "attention_scale": 1.0,
    "embedding_std": 1.0,
}
_T5_1_1 = _T5 | {"activation": "geglu_tanh", "tie_embeddings": False, "scale_logits": False}

# Lewis 2020 and the config.json files of facebook/bart-*. The released position tables have two extra entries.
_BART = _VASWANI | {
    "vocab_size": 50265,
    "max_length": 1024,
    "positions": "learned",
    "norm_embeddings": True,
    "activation": "gelu",
    "embedding_scale": 1.0,
    "init_std": 0.02,
}

# Devlin 2019, Turc 2019 (the small models) and the config.json files of google-bert/* and google/bert_uncased_*.
# The parameter counts include the masked-token head, but neither the pooler nor the next-sentence classifier.
_BERT = _BASE | {
    "family": "encoder",
    "vocab_size": 30522,
    "max_length": 512,
    "positions": "learned",
    "token_types": 2,
    "norm_position": "post",
    "norm_epsilon": 1e-12,
    "norm_embeddings": True,
    "activation": "gelu",
    "head_transform": True,
    "output_bias": True,
    "pooler": True,
    "window": 0,
    "global_every": 0,
}

# Liu 2019. The released weights also have an embedding for their only token type, which the position embedding can
# absorb, and entries for two unused positions. The parameter counts exclude both.
_ROBERTA = _BERT | {"vocab_size": 50265, "token_types": 0, "norm_epsilon": 1e-5}

# Warner 2024 and the config.json files of answerdotai/ModernBERT-*. Each token attends to 64 tokens on either side or,
# in every third layer, to all tokens. Our model has a norm before the first attention layer, but does not use it.
_MODERNBERT = _ROBERTA | {
    "vocab_size": 50368,
    "max_length": 8192,
    "positions": "rotary",
    "rotary_theta": 160_000.0,
    "local_rotary_theta": 10_000.0,
    "norm_position": "pre",
    "first_norm": False,
    "activation": "geglu",
    "use_bias": False,
    "pooler": False,
    "window": 65,
    "global_every": 3,
}

PRESETS: dict[str, Fields] = {
    "gpt2_124m": _GPT2 | _size(12, 768, 12),  # 124,439,808
    "gpt2_350m": _GPT2 | _size(24, 1024, 16),  # 354,823,168
    "gpt2_774m": _GPT2 | _size(36, 1280, 20),  # 774,030,080
    "gpt2_1558m": _GPT2 | _size(48, 1600, 25),  # 1,557,611,200
    # The TinyStories model of llama2.c, released as stories260K in karpathy/tinyllamas. 260,032 parameters
    "stories260k": _LLAMA | _STORIES | _size(5, 64, 8, 172, kv_heads=4),
    # Touvron 2023 (Llama 2), table 1, and the config.json files of meta-llama/Llama-2-*-hf.
    "llama2_7b": _LLAMA2 | _size(32, 4096, 32, 11_008),  # 6,738,415,616
    "llama2_13b": _LLAMA2 | _size(40, 5120, 40, 13_824),  # 13,015,864,320
    # Grattafiori 2024, table 3, and the config.json file of meta-llama/Meta-Llama-3-8B.
    "llama3_8b": _LLAMA3 | _size(32, 4096, 32, 14_336, kv_heads=8),  # 8,030,261,248
    # The config.json file of meta-llama/Llama-3.2-1B, but with rows of at most 8192 tokens. 1,235,814,400 parameters
    "llama3_1b": _LLAMA3 | _LLAMA3_2 | _size(16, 2048, 32, 8192, kv_heads=8),
    # Parameter counts without the embedding: 44,138,496; 176,357,376; and 1,325,056. transformer_tiny is the model
    # that Wu et al. (2021) use for Multi30k.
    "transformer_base": _VASWANI | _two_sides(6, 512, 8),
    "transformer_big": _VASWANI | _two_sides(6, 1024, 16),
    "transformer_tiny": _VASWANI | _two_sides(4, 128, 4, 256),
    "t5_small": _T5 | _two_sides(6, 512, 8),  # 60,506,624
    "t5_base": _T5 | _two_sides(12, 768, 12),  # 222,903,552
    "t5_large": _T5 | _two_sides(24, 1024, 16),  # 737,668,096
    "t5_3b": _T5 | _two_sides(24, 1024, 32, 16_384, head_dim=128),  # 2,851,598,336
    "t5_11b": _T5 | _two_sides(24, 1024, 128, 65_536, head_dim=128),  # 11,307,321,344
    "t5_1_1_small": _T5_1_1 | _two_sides(8, 512, 6, 1024, head_dim=64),  # 76,961,152
    "t5_1_1_base": _T5_1_1 | _two_sides(12, 768, 12, 2048),  # 247,577,856
    "t5_1_1_large": _T5_1_1 | _two_sides(24, 1024, 16, 2816),  # 783,150,080
    "t5_1_1_xl": _T5_1_1 | _two_sides(24, 2048, 32, 5120),  # 2,849,757,184
    "t5_1_1_xxl": _T5_1_1 | _two_sides(24, 4096, 64, 10_240),  # 11,135,332,352
    "bart_base": _BART | _two_sides(6, 768, 12),  # 139,417,344
    "bart_large": _BART | _two_sides(12, 1024, 16),  # 406,287,360
    "bert_tiny": _BERT | _size(2, 128, 2),  # 4,416,698
    "bert_mini": _BERT | _size(4, 256, 4),  # 11,201,594
    "bert_small": _BERT | _size(4, 512, 8),  # 28,795,194
    "bert_medium": _BERT | _size(8, 512, 8),  # 41,404,730
    "bert_base": _BERT | _size(12, 768, 12),  # 109,514,298
    "bert_large": _BERT | _size(24, 1024, 16),  # 335,174,458
    "roberta_base": _ROBERTA | _size(12, 768, 12),  # 124,695,129
    "roberta_large": _ROBERTA | _size(24, 1024, 16),  # 355,408,985
    "modernbert_base": _MODERNBERT | _size(22, 768, 12, 1152),  # 149,656,000
    "modernbert_large": _MODERNBERT | _size(28, 1024, 16, 2624),  # 395,882,688
}
