"""Derives and checks the settings of the Transformer."""

from __future__ import annotations

import dataclasses
from typing import Any

from lm.config import ModelConfig
from lm.config.checks import check_names
from lm.config.positions import PositionSettings
from lm.errors import UserError
from lm.models.architecture import TENSOR_SIZES, Architecture, Refuse
from lm.models.heads import Head
from lm.models.protocol import Model
from lm.models.transformer.autoencoder import TransformerAutoencoder
from lm.models.transformer.relative_attention import LANES, MAX_LENGTH
from lm.models.transformer.wiring import Decoder, Encoder, EncoderDecoder

SETTINGS = """
num_layers share_layers num_heads num_kv_heads head_dim d_ff norm_position first_norm attention_bias qk_norm
attention_scale attention_softcap norm_embeddings embedding_scale attention_dropout window global_every global_offset
token_types init_residual_scaling norm_unit_offset activation_dtype attention scan_layers remat lora_rank lora_alpha
lora_targets
"""
PROJECTIONS = ("query", "key", "value", "out", "up", "gate", "down")


def derive(config: Any) -> dict[str, Any]:
    """Returns the derived sizes. Raises UserError if the number of heads does not divide the width."""
    model = config.model
    if model.head_dim == 0 and model.d_model % model.num_heads:
        sizes = f"num_heads={model.num_heads} does not divide d_model={model.d_model}"
        raise UserError(f"config.model: {sizes}; change one of them or set head_dim.")
    return {
        "model.num_kv_heads": model.num_heads,
        "model.head_dim": model.d_model // model.num_heads,
        "model.d_ff": 4 * model.d_model,
    }


def check(config: Any, refuse: Refuse) -> None:
    model, two_sided = config.model, config.model.family == "encoder_decoder"
    if model.num_heads % model.num_kv_heads:
        refuse("model.num_kv_heads", f"{model.num_kv_heads} does not divide num_heads={model.num_heads}.")
    if model.positions == "rotary" and model.head_dim % 2:
        refuse("model.head_dim", f"{model.head_dim} is odd, but rotary positions need an even number of features.")
    if model.rope_scaling in ("llama3", "yarn") and not model.rope_original_length:
        refuse("model.rope_original_length", f"rope_scaling='{model.rope_scaling}' needs this length; set it.")
    if model.rope_scaling == "llama3" and model.rope_high_freq_factor <= model.rope_low_freq_factor:
        refuse("model.rope_high_freq_factor", f"this must exceed rope_low_freq_factor={model.rope_low_freq_factor}.")
    if model.rope_scaling == "yarn" and model.rope_beta_fast <= model.rope_beta_slow:
        refuse("model.rope_beta_fast", f"this must exceed rope_beta_slow={model.rope_beta_slow}.")
    if model.nope_offset >= model.nope_every > 0:
        refuse("model.nope_offset", f"{model.nope_offset} is not less than nope_every={model.nope_every}.")
    if model.nope_every == 1:
        refuse("model.nope_every", "no layer would have rotary positions; set model.positions='none' instead.")
    width = "embedding_width" if model.embedding_width else "d_model"
    if model.positions == "sinusoidal" and (size := getattr(model, width)) % 2:
        refuse(f"model.{width}", f"{size} is odd, but sinusoidal positions need an even number of features.")
    if model.sinusoid_variant == "half_minus_one" and getattr(model, width) < 4:
        refuse("model.sinusoid_variant", f"'half_minus_one' needs model.{width} to be at least 4.")
    if model.positions == "relative" and model.relative_max_distance <= model.relative_buckets // 2:
        refuse("model.relative_max_distance", "the distance must be greater than half of model.relative_buckets.")
    if model.attention == "cudnn" and model.dtype != "bfloat16":
        refuse("model.attention", "'cudnn' supports only bfloat16; set model.dtype='bfloat16', or use 'xla'.")
    if model.attention in ("blocked", "cudnn", "splash") and model.attention_dropout > 0:
        refuse("model.attention", f"'{model.attention}' does not support dropout; set attention_dropout to 0.")
    for name in ("sequence_length", "source_length"):
        length = getattr(config.data, name)
        if model.attention == "splash" and length % LANES:
            refuse("model.attention", f"'splash' requires data.{name} to be a multiple of {LANES}, not {length}.")
        if model.attention == "splash" and model.positions == "relative" and length > MAX_LENGTH:
            refuse(
                "model.attention",
                f"'splash' supports relative positions only up to {MAX_LENGTH} tokens; data.{name} is {length}.",
            )
    if model.window and two_sided:
        refuse("model.window", "an encoder-decoder does not support a sliding window; set this to 0.")
    if model.global_every and not model.window:
        refuse("model.global_every", "this setting requires a sliding window; set model.window.")
    if model.global_offset >= model.global_every > 0:
        refuse("model.global_offset", f"{model.global_offset} is not less than global_every={model.global_every}.")
    if model.attention == "cudnn" and model.attention_softcap:
        refuse("model.attention", "'cudnn' does not support attention_softcap; use 'xla'.")
    if model.token_types and model.family != "encoder":
        refuse("model.token_types", "this setting applies only to model.family=encoder; leave it at 0.")
    check_names("model.lora_targets", model.lora_targets, PROJECTIONS)


def two_sided(config: ModelConfig, head: Head, platform: str | None = None) -> Model:
    kind = TransformerAutoencoder if head.compresses_source else EncoderDecoder
    return kind.build(config, head, platform)


TRANSFORMER = Architecture(
    "Transformer (Vaswani 2017)",
    {"decoder": Decoder.build, "encoder": Encoder.build, "encoder_decoder": two_sided},
    frozenset(
        f"model.{name}" for name in [*SETTINGS.split(), *(each.name for each in dataclasses.fields(PositionSettings))]
    ),
    derive,
    check,
    poolings={"encoder": "first"},
    alike_layers=True,
    splits_layers=True,
    int8=True,
    rewinds=True,
    tensor_sizes=("num_heads", "num_kv_heads", "d_ff", *TENSOR_SIZES),
)
