"""Heads, which turn the output of the last layer into predictions or into one vector per text.

The task determines the head. A head is a Flax module that reports its own cost (parameters and FLOPs), so any
model can use it.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output, same_segment
from lm.config import ModelConfig
from lm.models.layers import ACTIVATIONS, NORMS, Embedding, Norm, embedding_width, projection
from lm.models.vocabulary import vocabulary_cost, vocabulary_logits


class HeadCost(NamedTuple):
    """The numbers of parameters, FLOPs and logits of a head for one row."""

    parameters: int = 0  # excluding a token embedding that doubles as the output matrix
    flops: int = 0  # FLOPs of the forward pass
    logits: int = 0
    vocabulary_tokens: int = 0  # number of tokens with vocabulary logits; these logits may be computed in chunks
    output_matrix: int = 0  # number of elements of the matrix that computes these logits


class Head(nn.Module):
    """Base class for the heads."""

    # Whether the head predicts text, which can be decoded token by token.
    predicts_text: ClassVar[bool] = False
    # The number of texts that the model reads per row; if it is 2, the second text is `batch.source`.
    texts_per_row: ClassVar[int] = 1
    # Whether the decoder of an encoder-decoder reads the source only through latent vectors (`bottleneck.py`).
    compresses_source: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, train: bool, dropout: str | None = None
    ) -> Output:
        """Computes the model's output from the output of the last layer.

        Args:
            embed: the token embedding, which may double as the output matrix.
            dropout: the name of the dropout layer, which determines the PRNG keys used; if None, Flax chooses
                the name.
        """
        layer = nn.Dropout(config.dropout, deterministic=not train, name=dropout)
        return self.compute(config, embed, x_BLD, batch, layer)

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        raise NotImplementedError

    @nn.nowrap
    def cost(self, config: ModelConfig, length: int = 0) -> HeadCost:
        """Returns the cost of the head for a row of `length` tokens in a model with this config."""
        return HeadCost()


class NextToken(Head):
    """Next-token logits at every position."""

    predicts_text: ClassVar[bool] = True

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        return Output(vocabulary_logits(config, embed, x_BLD))

    @nn.nowrap
    def cost(self, config: ModelConfig, length: int = 0) -> HeadCost:
        parameters, per_token, matrix = vocabulary_cost(config, config.d_model)
        return HeadCost(parameters, per_token * length, config.vocab_size * length, length, matrix)


class Reconstruction(NextToken):
    """Next-token logits of an autoencoder, whose decoder reconstructs the source from latent vectors."""

    compresses_source: ClassVar[bool] = True


class MaskedTokens(Head):
    """Logits for the tokens that are masked in the input, as in BERT (Devlin 2019).

    model.head_transform inserts a projection, an activation and a norm before the output matrix.

    Attributes:
        max_masked: the maximum number of masked tokens per row. Logits are computed for only this many tokens, or for
            all tokens if max_masked is 0.
        next_sentence: whether to add an output that predicts whether the second text of a pair follows the first.
    """

    max_masked: int = 0
    next_sentence: bool = False

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        h_BLD, indices_BP = x_BLD, None
        if 0 < self.max_masked < x_BLD.shape[1]:
            # The masked tokens are those with a positive weight; no row has more than max_masked of them.
            _, indices_BP = jax.lax.top_k((batch.weights > 0).astype(jnp.float32), self.max_masked)
            h_BLD = jnp.take_along_axis(x_BLD, indices_BP[:, :, None], axis=1)
        if config.head_transform:
            h_BLD = _linear(config, "head_product", embedding_width(config), h_BLD, use_bias=config.use_bias)
            h_BLD = ACTIVATIONS[config.activation].function(h_BLD)
            h_BLD = Norm(config, name="head_norm")(h_BLD)
        logits = vocabulary_logits(config, embed, h_BLD)
        next_sentence_BL2 = None
        if self.next_sentence:
            next_sentence_BL2 = _classes(config, "next_sentence", 2, _pooler(config, x_BLD))
        return Output(logits, indices=indices_BP, next_sentence_logits=next_sentence_BL2)

    @nn.nowrap
    def cost(self, config: ModelConfig, length: int = 0) -> HeadCost:
        D, E, predicted = config.d_model, embedding_width(config), min(self.max_masked or length, length)
        parameters, per_masked, matrix = vocabulary_cost(config, E if config.head_transform else D)
        if config.head_transform:
            parameters += D * E + E * config.use_bias + NORMS[config.norm].num_parameters(config, E)
            per_masked += 2 * D * E
        flops = per_masked * predicted
        if self.next_sentence:
            parameters += _pooler_parameters(config) + 2 * D + 2
            flops += 2 * (D * D + 2 * D) * length
        return HeadCost(parameters, flops, config.vocab_size * predicted, predicted, matrix)


class Classes(Head):
    """Logits for the labels of each text or token, or a single value for regression.

    model.pooler inserts a projection, an activation and, optionally, a norm before the classifier.

    Attributes:
        pooling: determines the vector from which a token's logits are computed. With "mean", the vector is the mean
            over the token's text; with "first", "last" or "none", it is the token's own vector.
    """

    num_classes: int
    pooling: str

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        x_BLD = _pool(self.pooling, x_BLD, batch.segments)
        if config.pooler:
            x_BLD = _pooler(config, x_BLD)
        logits_BLC = _classes(config, "classifier", self.num_classes, dropout(x_BLD), config.classifier_bias)
        return Output(logits_BLC)

    @nn.nowrap
    def cost(self, config: ModelConfig, length: int = 0) -> HeadCost:
        D, C, pooler = config.d_model, self.num_classes, _pooler_parameters(config) if config.pooler else 0
        parameters = (D + config.classifier_bias) * C + pooler
        return HeadCost(parameters, 2 * (D * C + D * D * config.pooler) * length, C * length)


class AnswerSpan(Head):
    """Two logits for each token: one scores the token as the start of the answer, the other as the end.

    model.answer_pooler inserts a projection, an activation and, optionally, a norm before the final layer.
    """

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        if config.answer_pooler:
            x_BLD = _pooler(config, x_BLD)
        return Output(_classes(config, "span", 2, x_BLD))

    @nn.nowrap
    def cost(self, config: ModelConfig, length: int = 0) -> HeadCost:
        D, pooled = config.d_model, config.answer_pooler
        pooler = _pooler_parameters(config) if pooled else 0
        return HeadCost(2 * D + 2 + pooler, flops=2 * (2 * D + D * D * pooled) * length, logits=2 * length)


class TextEmbedding(Head):
    """A unit-length vector for the text of each row, and another for the paired text.

    Each row must hold a single text. The result for a padding row is never NaN.

    Attributes:
        pooling: which vector represents a text. With "first" or "last", it is the vector of the first or last token;
            with "mean", it is the mean over all tokens.
    """

    texts_per_row: ClassVar[int] = 2

    pooling: str

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        x_BLD = _pool(self.pooling, x_BLD, batch.segments).astype(jnp.float32)
        indices_B = jnp.zeros(x_BLD.shape[0], jnp.int32)
        if self.pooling == "last":
            indices_B = jnp.maximum(jnp.sum(batch.segments > 0, axis=1) - 1, 0)
        x_BD = jnp.take_along_axis(x_BLD, indices_B[:, None, None], axis=1)[:, 0]
        squares_B1 = jnp.sum(jnp.square(x_BD), axis=-1, keepdims=True)
        return Output(embedding=x_BD / jnp.sqrt(jnp.maximum(squares_B1, 1e-12)))


class TokenVectors(Head):
    """The unchanged vector of each token, returned in place of logits. The head has no parameters."""

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        return Output(x_BLD.astype(jnp.float32))


# The activations that can be selected with model.pooler_activation.
POOLER_ACTIVATIONS = {"tanh": jnp.tanh} | {
    name: activation.function for name, activation in ACTIVATIONS.items() if not activation.gated
}


def _linear(
    config: ModelConfig, name: str, size: int, x: Array, axis: str = "activation", use_bias: bool = True
) -> Array:
    """Applies a new linear layer of the given output size to the last axis of x."""
    return projection(config, name, x.shape[-1:], (size,), ("embed", axis), use_bias=use_bias)(x)


def _pooler(config: ModelConfig, x_BLD: Array) -> Array:
    h_BLD = _linear(config, "pooler", config.d_model, x_BLD, use_bias=config.pooler_bias)
    h_BLD = POOLER_ACTIVATIONS[config.pooler_activation](h_BLD)
    return Norm(config, name="pooler_norm")(h_BLD) if config.pooler_norm else h_BLD


def _pooler_parameters(config: ModelConfig) -> int:
    D, norm = config.d_model, NORMS[config.norm].num_parameters(config) if config.pooler_norm else 0
    return D * D + D * config.pooler_bias + norm


def _classes(config: ModelConfig, name: str, num_classes: int, x_BLD: Array, use_bias: bool = True) -> Array:
    """Returns logits, float32 (B, L, C). The matrix is too small to be worth sharding."""
    return _linear(config, name, num_classes, x_BLD, "classes", use_bias).astype(jnp.float32)


def _pool(pooling: str, x_BLD: Array, segments_BL: Array) -> Array:
    """Replaces each vector with the mean over its text if pooling is "mean". Otherwise, returns x unchanged."""
    if pooling != "mean":
        return x_BLD
    same_BLS = same_segment(segments_BL, segments_BL).astype(jnp.float32)
    sums_BLD = jnp.einsum("BLS,BSD->BLD", same_BLS, x_BLD.astype(jnp.float32))
    return (sums_BLD / jnp.maximum(same_BLS.sum(-1, keepdims=True), 1.0)).astype(x_BLD.dtype)
