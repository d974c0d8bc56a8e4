"""The heads, which turn the output of the last layer into predictions or into a vector for each text.

A task chooses the head. A head is a Flax module that knows what it costs, so any model can carry it.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import zeros

from lm.batch import Array, Batch, Output, same_segment
from lm.config import ModelConfig
from lm.models.layers import ACTIVATIONS, NORMS, Dense, Embedding, Norm, parameter, projection


class HeadCost(NamedTuple):
    """The cost of a head for a row of some length."""

    parameters: int = 0  # without a token embedding that serves as the output matrix
    flops: int = 0  # of the forward pass
    logits: int = 0


class Head(nn.Module):
    """Base of the heads."""

    # Whether it predicts text, which can be decoded token by token.
    predicts_text: ClassVar[bool] = False
    # Texts that the body reads for each row: with 2, the second one is the batch's source.
    texts_per_row: ClassVar[int] = 1

    @nn.compact
    def __call__(
        self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, train: bool, dropout: str | None = None
    ) -> Output:
        """Returns the output that is computed from the last layer.

        Args:
            embed: the token embedding, which may serve as the output matrix.
            dropout: name of the head's dropout, which decides its random keys; None for Flax's default.
        """
        layer = nn.Dropout(config.dropout, deterministic=not train, name=dropout)
        return self.compute(config, embed, x_BLD, batch, layer)

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        raise NotImplementedError

    @nn.nowrap
    def cost(self, config: ModelConfig, length: int = 0) -> HeadCost:
        """Returns the cost in a model with this config, for a row of `length` tokens."""
        return HeadCost()


class NextToken(Head):
    """Logits of the token that follows each one."""

    predicts_text: ClassVar[bool] = True

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        return Output(_vocabulary_logits(config, embed, x_BLD))

    @nn.nowrap
    def cost(self, config: ModelConfig, length: int = 0) -> HeadCost:
        D, V = config.d_model, config.vocab_size
        return HeadCost(0 if config.tie_embeddings else V * D, flops=2 * D * V * length, logits=V * length)


class MaskedTokens(Head):
    """Logits of the tokens that are masked in the input, as in BERT (Devlin 2019).

    model.head_transform puts a projection, an activation and a norm before the output matrix; model.output_bias adds a
    bias to the logits.

    Attributes:
        max_masked: the most masked tokens in a row: logits are computed for this number of tokens only; 0 for all.
        next_sentence: also predict whether the second text of a pair follows the first.
    """

    max_masked: int = 0
    next_sentence: bool = False

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        h_BLD, indices_BP = x_BLD, None
        if 0 < self.max_masked < x_BLD.shape[1]:
            # The masked tokens are those with a weight, and no row has more of them than max_masked.
            _, indices_BP = jax.lax.top_k((batch.weights > 0).astype(jnp.float32), self.max_masked)
            h_BLD = jnp.take_along_axis(x_BLD, indices_BP[:, :, None], axis=1)
        if config.head_transform:
            h_BLD = _linear(config, "head_product", config.d_model, use_bias=config.use_bias)(h_BLD)
            h_BLD = ACTIVATIONS[config.activation].function(h_BLD)
            h_BLD = Norm(config, name="head_norm")(h_BLD)
        logits_BLV = _vocabulary_logits(config, embed, h_BLD)
        if config.output_bias:
            logits_BLV = logits_BLV + VocabularyBias(config.vocab_size, name="output_bias")()
        next_sentence_BL2 = None
        if self.next_sentence:
            next_sentence_BL2 = _classes(config, "next_sentence", 2, _pooler(config, x_BLD))
        return Output(logits_BLV, indices=indices_BP, next_sentence_logits=next_sentence_BL2)

    @nn.nowrap
    def cost(self, config: ModelConfig, length: int = 0) -> HeadCost:
        D, V, predicted = config.d_model, config.vocab_size, min(self.max_masked or length, length)
        transform = D * D + D * config.use_bias + NORMS[config.norm].num_parameters(config)
        output = (0 if config.tie_embeddings else V * D) + V * config.output_bias
        parameters = output + transform * config.head_transform + (D * D + D + 2 * D + 2) * self.next_sentence
        per_masked = D * V + D * D * config.head_transform
        flops = 2 * (per_masked * predicted + (D * D + 2 * D) * self.next_sentence * length)
        return HeadCost(parameters, flops, V * predicted)


class VocabularyBias(nn.Module):
    size: int

    @nn.compact
    def __call__(self) -> Array:
        return parameter(self, "bias", zeros, ("vocab",), (self.size,)).reshape(1, 1, -1)


class Classes(Head):
    """Logits of labels for each text or each token, or one number for regression.

    With model.pooler a projection and tanh come first, as in BERT.

    Attributes:
        pooling: mean: every token gets the logits of the mean of its text; first, last, none: those of its own vector.
    """

    num_classes: int
    pooling: str

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        x_BLD = _pool(self.pooling, x_BLD, batch.segments)
        if config.pooler:
            x_BLD = _pooler(config, x_BLD)
        return Output(_classes(config, "classifier", self.num_classes, dropout(x_BLD)))

    @nn.nowrap
    def cost(self, config: ModelConfig, length: int = 0) -> HeadCost:
        D, C, pooler = config.d_model, self.num_classes, int(config.pooler)
        return HeadCost((D + 1) * C + (D * D + D) * pooler, 2 * (D * C + D * D * pooler) * length, C * length)


class AnswerSpan(Head):
    """Two logits for each token: that of being the first and that of being the last token of an answer."""

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        return Output(_classes(config, "span", 2, x_BLD))

    @nn.nowrap
    def cost(self, config: ModelConfig, length: int = 0) -> HeadCost:
        return HeadCost(2 * config.d_model + 2, flops=2 * 2 * config.d_model * length, logits=2 * length)


class TextEmbedding(Head):
    """A vector of length 1 for the text of each row, and one for the text that it is paired with.

    It expects rows that hold a single text. A row of padding gives no NaN.

    Attributes:
        pooling: first, last or mean: the vector of one token, or the mean over the text.
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


def _linear(config: ModelConfig, name: str, size: int, axis: str = "activation", use_bias: bool = True) -> Dense:
    return projection(config, name, (config.d_model,), (size,), ("embed", axis), use_bias=use_bias)


def _pooler(config: ModelConfig, x_BLD: Array) -> Array:
    return jnp.tanh(_linear(config, "pooler", config.d_model)(x_BLD))


def _classes(config: ModelConfig, name: str, num_classes: int, x_BLD: Array) -> Array:
    """Returns logits (B, L, C), float32. The matrix is too small to be split over the mesh."""
    return _linear(config, name, num_classes, "classes")(x_BLD).astype(jnp.float32)


def _vocabulary_logits(config: ModelConfig, embed: Embedding, x_BLD: Array) -> Array:
    """Returns logits (B, L, V), float32, from the token embedding or from an output matrix."""
    if config.tie_embeddings:
        logits_BLV = embed.attend(x_BLD)
    else:
        logits_BLV = _linear(config, "output", config.vocab_size, "vocab", use_bias=False)(x_BLD).astype(jnp.float32)
    return nn.with_logical_constraint(logits_BLV, ("batch", "length", "vocab"))


def _pool(pooling: str, x_BLD: Array, segments_BL: Array) -> Array:
    """Returns, with pooling=mean, the mean of its text at each token, and else the vectors as they are."""
    if pooling != "mean":
        return x_BLD
    same_BLS = same_segment(segments_BL, segments_BL).astype(jnp.float32)
    sums_BLD = jnp.einsum("BLS,BSD->BLD", same_BLS, x_BLD.astype(jnp.float32))
    return (sums_BLD / jnp.maximum(same_BLS.sum(-1, keepdims=True), 1.0)).astype(x_BLD.dtype)
