"""The last projection of models that predict tokens: from features to logits over the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import normal, zeros

from lm.batch import Array, VocabularyLogits
from lm.config import ModelConfig
from lm.models.int8 import Int8Matrix
from lm.models.layers import Embedding, embedding_width, parameter, projection
from lm.models.products import float32_product


@dataclass(frozen=True)
class VocabularyProjection:
    """Computes logits, float32 (B, L, V), from features (B, L, E) and weights, {"matrix": ..., "bias": ...}.

    The bias is optional.

    Attributes:
        dtype: the compute dtype.
        is_embedding: whether the matrix is the token embedding (V, E) rather than a matrix (E, V).
        scale: the factor by which the features are multiplied.
        softcap: if this value c is positive, each logit z becomes c tanh(z / c).
    """

    dtype: str
    is_embedding: bool
    scale: float = 1.0
    softcap: float = 0.0

    @property
    def axes(self) -> dict[str, tuple[str | None, ...]]:
        """The logical axes of the weights after they are gathered over the mesh axis `fsdp`."""
        return {"matrix": ("vocab", None) if self.is_embedding else (None, "vocab"), "bias": ("vocab",)}

    def __call__(self, weights: Mapping[str, Array], x_BLE: Array) -> Array:
        if self.scale != 1:
            x_BLE = x_BLE * jnp.asarray(self.scale, x_BLE.dtype)
        # All leading dimensions are flattened, because a single matrix multiplication is fastest on a CPU.
        x_TE = x_BLE.reshape(-1, x_BLE.shape[-1])
        matrix = weights["matrix"]
        values = matrix.values.astype(self.dtype) if isinstance(matrix, Int8Matrix) else matrix
        logits_TV = float32_product(x_TE, values, self.is_embedding, self.dtype)
        if isinstance(matrix, Int8Matrix):
            logits_TV = logits_TV * matrix.scales.reshape(1, -1)
        logits_BLV = logits_TV.reshape(*x_BLE.shape[:-1], -1)
        if "bias" in weights:
            logits_BLV = logits_BLV + weights["bias"].reshape(1, 1, -1)
        return self.softcap * jnp.tanh(logits_BLV / self.softcap) if self.softcap else logits_BLV


class VocabularyBias(nn.Module):
    size: int

    @nn.compact
    def __call__(self) -> Array:
        return parameter(self, "bias", zeros, ("vocab",), (self.size,))


class OutputMatrix(nn.Module):
    """An output matrix (E, V) that is not the token embedding."""

    shape: tuple[int, int]
    init_std: float

    @nn.compact
    def __call__(self) -> Array:
        return parameter(self, "kernel", normal(self.init_std), ("embed", "vocab"), self.shape)


def vocabulary_logits(config: ModelConfig, embed: Embedding, x_BLD: Array) -> VocabularyLogits:
    """Returns the features and the output matrix, from which the logits can be computed.

    Must be called in a compact method of a Flax module. The output matrix is either the token embedding or a separate
    matrix. If it is the token embedding and x has a different width, x is first projected to the embedding width.
    """
    width, inputs = embedding_width(config), x_BLD.shape[-1]
    if config.tie_embeddings:
        if inputs != width:
            axes = ("embed", "activation")
            x_BLD = projection(config, "output_projection", (inputs,), (width,), axes, use_bias=False)(x_BLD)
        matrix = embed.embedding
    else:
        std = config.init_std or 1 / math.sqrt(inputs)
        matrix = OutputMatrix((inputs, config.vocab_size), std, name="output")()
    weights = {"matrix": matrix if isinstance(matrix, Int8Matrix) else matrix.astype(config.dtype)}
    if config.output_bias:
        weights["bias"] = VocabularyBias(config.vocab_size, name="output_bias")()
    scale = config.d_model**-0.5 if config.tie_embeddings and config.scale_logits else 1.0
    return VocabularyLogits(
        x_BLD, weights, VocabularyProjection(config.dtype, config.tie_embeddings, scale, config.logits_softcap)
    )


def vocabulary_cost(config: ModelConfig, inputs: int) -> tuple[int, int, int]:
    """Returns the costs of `vocabulary_logits` for `inputs` features.

    These are the number of parameters, the FLOPs per token and the number of elements of the output matrix.
    """
    V, width, bias = config.vocab_size, embedding_width(config), config.vocab_size * config.output_bias
    if not config.tie_embeddings:
        return inputs * V + bias, 2 * inputs * V, inputs * V
    through = inputs * width if inputs != width else 0
    return through + bias, 2 * (through + width * V), width * V
