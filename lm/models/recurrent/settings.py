"""Checks the settings of recurrent models."""

from __future__ import annotations

import dataclasses
from typing import Any

from lm.config import ModelConfig
from lm.config.recurrent import RecurrentSettings
from lm.models.architecture import Architecture, Refuse
from lm.models.heads import Head
from lm.models.protocol import Model
from lm.models.recurrent.autoencoder import RecurrentAutoencoder
from lm.models.recurrent.wiring import RecurrentDecoder, RecurrentEncoder, RecurrentEncoderDecoder


def check(config: Any, refuse: Refuse) -> None:
    model = config.model
    if model.family != "decoder" and model.d_model % 2:
        refuse("model.d_model", f"{model.d_model} is odd, but each of the two directions needs half of the units.")


def two_sided(config: ModelConfig, head: Head, platform: str | None = None) -> Model:
    kind = RecurrentAutoencoder if head.compresses_source else RecurrentEncoderDecoder
    return kind.build(config, head, platform)


RECURRENT = Architecture(
    "recurrent network",
    {
        "decoder": RecurrentDecoder.build,
        "encoder": RecurrentEncoder.build,
        "encoder_decoder": two_sided,
    },
    frozenset(
        {"model.num_layers", "data.stateful"} | {f"model.{each.name}" for each in dataclasses.fields(RecurrentSettings)}
    ),
    check=check,
    poolings={"encoder": "mean"},  # at the first or last token, one direction has read only that token
    fsdp_sizes=lambda model: {} if model.family == "decoder" else {"d_model / 2": model.d_model // 2},
)
