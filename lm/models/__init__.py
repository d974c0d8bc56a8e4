"""The model protocol, shared heads and layers, and one package per model implementation.

To add a model, write a class that implements `lm.models.protocol.Model` in a package of its own, and register its
builder in `MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable

from lm.config import ModelConfig
from lm.models.heads import Head, NextToken
from lm.models.protocol import Model
from lm.models.transformer.wiring import Decoder, Encoder, EncoderDecoder

Builder = Callable[[ModelConfig, Head, str | None], Model]

# Maps each value of model.family to the function that builds the model.
MODELS: dict[str, Builder] = {
    "decoder": Decoder.build,
    "encoder": Encoder.build,
    "encoder_decoder": EncoderDecoder.build,
}


def build_model(config: ModelConfig, head: Head | None = None, platform: str | None = None) -> Model:
    """Builds the model that a config describes.

    Args:
        config: the resolved config; vocab_size may still be 0 if no parameters will be created.
        head: the output head; if None, `NextToken` is used.
        platform: the platform to run on ("cpu", "gpu" or "tpu"); if None, the platform of the default device is used.

    Raises UserError if the config names a kernel that does not support the platform or the model.
    """
    return MODELS[config.family](config, head or NextToken(), platform)
