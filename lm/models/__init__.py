"""Models: a protocol, shared heads and layers, and one package per implementation.

To add a model, write a class with the methods of `lm.models.protocol.Model` in a package of its own, and add its
builder to `MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable

from lm.config import ModelConfig
from lm.models.heads import Head, NextToken
from lm.models.protocol import Model
from lm.models.transformer.wiring import Decoder, Encoder, EncoderDecoder

Builder = Callable[[ModelConfig, Head, str | None], Model]

# The values of model.family.
MODELS: dict[str, Builder] = {
    "decoder": Decoder.build,
    "encoder": Encoder.build,
    "encoder_decoder": EncoderDecoder.build,
}


def build_model(config: ModelConfig, head: Head | None = None, platform: str | None = None) -> Model:
    """Builds the model of a config.

    Args:
        config: the resolved config; its vocab_size may still be 0 if no parameters will be created.
        head: the output head; None for `NextToken`.
        platform: "cpu", "gpu" or "tpu", whichever the model will run on; None for that of the default device.

    Raises UserError if the config names a kernel that does not support the platform or the model.
    """
    return MODELS[config.family](config, head or NextToken(), platform)
