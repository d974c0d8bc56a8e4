"""A convolutional network for whole texts (Kim 2014): filters over token windows, then a maximum over each text."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import normal, zeros

from lm.batch import Array, Batch, Output
from lm.config import ModelConfig
from lm.models.heads import Head, TokenVectors
from lm.models.layers import Embedding, embedding_width, parameter
from lm.models.network import DROPOUT_ALONE, Network, of_paired_texts, with_paired_texts
from lm.models.protocol import Flops, ParameterCounts


def num_filters(config: ModelConfig) -> int:
    """Returns the number F of filters of each width. Together, the filters of all widths give d_model features."""
    return config.d_model // len(config.filter_widths)


def channels_width(config: ModelConfig) -> int:
    """Returns how many values the filters read per token: the embedding and, if used, the static embedding."""
    return embedding_width(config) * (1 + config.static_channel)


class Filters(nn.Module):
    """F filters over windows of k = `width` tokens, followed by a ReLU.

    Window t extends from token t - (k - 1) // 2 to token t + k // 2. Beyond the ends of a text, the embeddings are 0.
    """

    config: ModelConfig
    width: int

    @nn.compact
    def __call__(self, x_BLE: Array, segments_BL: Array) -> Array:
        """Returns the features of each window, float32 (B, L, F)."""
        (B, L, E), k, F, dtype = x_BLE.shape, self.width, num_filters(self.config), self.config.dtype
        std = self.config.init_std or (k * E) ** -0.5
        kernel_EK = parameter(self, "kernel", normal(std), ("embed", "activation"), (E, k * F))
        bias_F = parameter(self, "bias", zeros, ("norm",), (F,))
        # A single matrix multiplication handles all positions in a window. The features of a window are then sums over
        # its tokens.
        terms_BLkF = (x_BLE.reshape(-1, E) @ kernel_EK.astype(dtype)).reshape(B, L, k, F).astype(jnp.float32)
        sums_BLF = jnp.zeros((B, L, F), jnp.float32)
        for place in range(k):
            distance = place - (k - 1) // 2
            same_BL = (_shifted(segments_BL, distance) == segments_BL).astype(jnp.float32)
            sums_BLF += _shifted(terms_BLkF[:, :, place], distance) * same_BL[:, :, None]
        return jax.nn.relu(sums_BLF + bias_F[None, None])


def _shifted(x: Array, distance: int) -> Array:
    """Returns the values `distance` tokens later in the row, or zeros beyond the ends of the row."""
    before, after = max(-distance, 0), max(distance, 0)
    padding = [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(x, padding)[:, after : after + x.shape[1]]


def maximum_over_texts(x_BLF: Array, segments_BL: Array) -> Array:
    """Replaces each value with the maximum over its segment."""

    def of_row(x_LF: Array, segments_L: Array) -> Array:
        return jax.ops.segment_max(x_LF, segments_L, num_segments=x_LF.shape[0] + 1)[segments_L]

    return jax.vmap(of_row)(x_BLF, segments_BL)


class Convolutional(Network):
    """A convolutional encoder. Each token's vector is the vector of its whole text."""

    text_layers: ClassVar[int] = 1

    @classmethod
    def build(cls, config: ModelConfig, head: Head, platform: str | None = None) -> Self:
        return cls(config, head)

    def setup(self) -> None:
        self.token_embedding = Embedding(self.config.vocab_size, self.config, ("vocab", "embed"))
        if self.config.static_channel:
            self.static_embedding = Embedding(self.config.vocab_size, self.config, ("vocab", "embed"))
        nn.share_scope(self, self.head)  # puts the parameters of the head at the same level as the embedding

    @nn.compact
    def __call__(self, batch: Batch, train: bool = False, cache: None = None) -> Output:
        """Returns the output of the head. See `lm.models.protocol.Model.apply`."""
        config, two_texts = self.config, self.head.texts_per_row == 2
        assert cache is None, "an encoder does not support a cache"
        if two_texts:
            batch = with_paired_texts(batch)
        x_BLE = self.token_embedding(batch.tokens)
        if config.static_channel:
            x_BLE = jnp.concatenate([x_BLE, self.static_embedding(batch.tokens)], axis=-1)
        features = [
            Filters(config, width, name=f"filters_{width}")(x_BLE, batch.segments) for width in config.filter_widths
        ]
        x_BLD = maximum_over_texts(jnp.concatenate(features, axis=-1), batch.segments).astype(config.dtype)
        output = self.head(config, self.token_embedding, x_BLD, batch, train, DROPOUT_ALONE)
        if two_texts:
            return of_paired_texts(output)
        return output

    @nn.nowrap
    def token_vectors(self, variables: Any, batch: Batch, layer: int) -> Array:
        """Returns the token embeddings (layer 0) or the vectors of the tokens' texts (layer 1)."""
        assert layer in (0, 1), layer
        if layer == 0:
            return self.embedded(variables, batch)
        return self.clone(head=TokenVectors()).apply(variables, batch).logits

    @nn.nowrap
    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> Any:
        raise AssertionError("an encoder does not support a cache")

    @nn.nowrap
    def parameter_counts(self) -> ParameterCounts:
        config, E = self.config, channels_width(self.config)
        filters = sum(width * E + 1 for width in config.filter_widths) * num_filters(config)
        return ParameterCounts(config.vocab_size * E, 0, filters, 0, self.head.cost(config).parameters)

    @nn.nowrap
    def flops_per_row(self, length: int, source_length: int = 0) -> Flops:
        config = self.config
        products = sum(config.filter_widths) * channels_width(config) * num_filters(config) * length
        return Flops(2 * self.head.texts_per_row * products, self.head.cost(config, length).flops)

    @nn.nowrap
    def activation_bytes(self, length: int, source_length: int, tensor: int) -> float:
        """Estimates the bytes of activations per row.

        The activations are the embeddings, the terms and sums of all filters, and the maxima, in float32.
        """
        config = self.config
        features = (sum(config.filter_widths) + 3 * len(config.filter_widths)) * num_filters(config)
        return 4.0 * length * (channels_width(config) + features)
