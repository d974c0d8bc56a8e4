"""The model protocol, shared heads and layers, and one package per model implementation.

To add an architecture, write a class that implements `lm.models.protocol.Model` in a package of its own, and add an
entry to `MODELS`.
"""

from __future__ import annotations

from lm.config import ModelConfig
from lm.models.architecture import Architecture
from lm.models.convolutional.settings import CONVOLUTIONAL
from lm.models.heads import Head, NextToken
from lm.models.ngram.settings import NGRAM
from lm.models.protocol import Model
from lm.models.recurrent.settings import RECURRENT
from lm.models.transformer.settings import TRANSFORMER
from lm.models.word_vectors.settings import WORD_VECTORS

# Maps each value of model.architecture to its `Architecture`.
MODELS: dict[str, Architecture] = {
    "transformer": TRANSFORMER,
    "recurrent": RECURRENT,
    "convolutional": CONVOLUTIONAL,
    "ngram": NGRAM,
    "word_vectors": WORD_VECTORS,
}


def build_model(config: ModelConfig, head: Head | None = None, platform: str | None = None) -> Model:
    """Builds the model that a config describes.

    Args:
        config: the resolved config; vocab_size may still be 0 if no parameters will be created.
        head: the output head; if None, `NextToken` is used.
        platform: the platform to run on ("cpu", "gpu" or "tpu"); if None, the platform of the default device is used.

    Raises UserError if the config names a kernel that does not support the platform or the model.
    """
    return MODELS[config.architecture].families[config.family](config, head or NextToken(), platform)
