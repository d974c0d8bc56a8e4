"""What a model computes from its last layer: the next token, masked tokens, labels, an answer, a vector for a text.

A task chooses the head. A head is a Flax module that knows what it costs, so any model can carry it.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output
from lm.config import ModelConfig
from lm.models.layers import ACTIVATIONS, NORMS, Dense, Embedding, Norm, compute_dtype


class Head(nn.Module):
    """Base of the heads. Costs are those of a model with this config; by default there are none."""

    # Whether it predicts text, which can be decoded token by token.
    predicts_text: ClassVar[bool] = False
    # Texts that the body reads for each row: with 2, the second one is the batch's source.
    texts_per_row: ClassVar[int] = 1

    def __call__(
        self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, train: bool, dropout: str | None = None
    ) -> Output:
        """Returns what it computes from the last layer.

        Args:
            embed: the token embedding, which may serve as the output matrix.
            dropout: name of the head's dropout, which decides its random keys; None for Flax's default.
        """
        raise NotImplementedError

    @nn.nowrap
    def num_parameters(self, config: ModelConfig) -> int:
        """Returns the number of parameters, without a token embedding that serves as the output matrix."""
        return 0

    @nn.nowrap
    def flops(self, config: ModelConfig, length: int) -> int:
        """Returns the FLOPs of the forward pass for a row of `length` tokens."""
        return 0

    @nn.nowrap
    def num_logits(self, config: ModelConfig, length: int) -> int:
        """Returns how many logits a row of `length` tokens has."""
        return 0


class NextToken(Head):
    """Logits of the token that follows each one."""

    predicts_text: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, train: bool, dropout: str | None = None
    ) -> Output:
        return Output(_vocabulary_logits(config, embed, x_BLD))

    @nn.nowrap
    def num_parameters(self, config: ModelConfig) -> int:
        return 0 if config.tie_embeddings else config.vocab_size * config.d_model

    @nn.nowrap
    def flops(self, config: ModelConfig, length: int) -> int:
        return 2 * config.d_model * config.vocab_size * length

    @nn.nowrap
    def num_logits(self, config: ModelConfig, length: int) -> int:
        return config.vocab_size * length


class MaskedTokens(Head):
    """Logits of the tokens that are masked in the input, as BERT (Devlin 2019).

    model.head_transform puts a projection, an activation and a norm before the output matrix, and model.output_bias a
    bias behind it.

    Attributes:
        max_masked: the most masked tokens in a row: logits are computed for this number of tokens only; 0 for all.
        next_sentence: also predict whether the second text of a pair follows the first.
    """

    max_masked: int = 0
    next_sentence: bool = False

    @nn.compact
    def __call__(
        self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, train: bool, dropout: str | None = None
    ) -> Output:
        h_BLD, indices_BP = x_BLD, None
        if 0 < self.max_masked < x_BLD.shape[1]:
            # The masked tokens are those with a weight, and no row has more of them than max_masked.
            _, indices_BP = jax.lax.top_k((batch.weights > 0).astype(jnp.float32), self.max_masked)
            h_BLD = jnp.take_along_axis(x_BLD, indices_BP[:, :, None], axis=1)
        if config.head_transform:
            h_BLD = _projection(config, config.d_model, "head_product", use_bias=config.use_bias)(h_BLD)
            h_BLD = ACTIVATIONS[config.activation].function(h_BLD)
            h_BLD = Norm(config, name="head_norm")(h_BLD)
        logits_BLV = _vocabulary_logits(config, embed, h_BLD)
        if config.output_bias:
            logits_BLV = logits_BLV + VocabularyBias(config.vocab_size, name="output_bias")()
        next_sentence_BL2 = None
        if self.next_sentence:
            next_sentence_BL2 = _classes(config, _pooler(config, x_BLD), 2, "next_sentence")
        return Output(logits_BLV, indices=indices_BP, next_sentence_logits=next_sentence_BL2)

    @nn.nowrap
    def num_parameters(self, config: ModelConfig) -> int:
        D, V = config.d_model, config.vocab_size
        transform = D * D + D * config.use_bias + NORMS[config.norm].num_parameters(config)
        output = (0 if config.tie_embeddings else V * D) + V * config.output_bias
        return output + transform * config.head_transform + (D * D + D + 2 * D + 2) * self.next_sentence

    @nn.nowrap
    def flops(self, config: ModelConfig, length: int) -> int:
        D, V = config.d_model, config.vocab_size
        per_masked = D * V + D * D * config.head_transform
        return 2 * (per_masked * self._num_predicted(length) + (D * D + 2 * D) * self.next_sentence * length)

    @nn.nowrap
    def num_logits(self, config: ModelConfig, length: int) -> int:
        return config.vocab_size * self._num_predicted(length)

    @nn.nowrap
    def _num_predicted(self, length: int) -> int:
        return min(self.max_masked or length, length)


class VocabularyBias(nn.Module):
    size: int

    @nn.compact
    def __call__(self) -> Array:
        bias_V = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)), (self.size,))
        return bias_V.reshape(1, 1, -1)


class Classes(Head):
    """Logits of labels for each text or each token, or one number for regression.

    With model.pooler a projection and tanh come first, as in BERT.

    Attributes:
        pooling: mean: every token gets the logits of the mean of its text; first, last, none: those of its own vector.
    """

    num_classes: int
    pooling: str

    @nn.compact
    def __call__(
        self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, train: bool, dropout: str | None = None
    ) -> Output:
        x_BLD = _pool(self.pooling, x_BLD, batch.segments)
        if config.pooler:
            x_BLD = _pooler(config, x_BLD)
        x_BLD = nn.Dropout(config.dropout, deterministic=not train, name=dropout)(x_BLD)
        return Output(_classes(config, x_BLD, self.num_classes, "classifier"))

    @nn.nowrap
    def num_parameters(self, config: ModelConfig) -> int:
        D = config.d_model
        return (D + 1) * self.num_classes + (D * D + D) * config.pooler

    @nn.nowrap
    def flops(self, config: ModelConfig, length: int) -> int:
        D = config.d_model
        return 2 * (D * self.num_classes + D * D * config.pooler) * length

    @nn.nowrap
    def num_logits(self, config: ModelConfig, length: int) -> int:
        return self.num_classes * length


class AnswerSpan(Head):
    """Two logits for each token: that of being the first and that of being the last token of an answer."""

    @nn.compact
    def __call__(
        self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, train: bool, dropout: str | None = None
    ) -> Output:
        return Output(_classes(config, x_BLD, 2, "span"))

    @nn.nowrap
    def num_parameters(self, config: ModelConfig) -> int:
        return 2 * config.d_model + 2

    @nn.nowrap
    def flops(self, config: ModelConfig, length: int) -> int:
        return 2 * 2 * config.d_model * length

    @nn.nowrap
    def num_logits(self, config: ModelConfig, length: int) -> int:
        return 2 * length


class TextEmbedding(Head):
    """A vector of length 1 for the text of each row, and one for the text that it is paired with.

    It expects rows that hold a single text. A row of padding gives no NaN.

    Attributes:
        pooling: first, last or mean: the vector of one token, or the mean over the text.
    """

    texts_per_row: ClassVar[int] = 2

    pooling: str

    def __call__(
        self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, train: bool, dropout: str | None = None
    ) -> Output:
        x_BLD = _pool(self.pooling, x_BLD, batch.segments).astype(jnp.float32)
        indices_B = jnp.zeros(x_BLD.shape[0], jnp.int32)
        if self.pooling == "last":
            indices_B = jnp.maximum(jnp.sum(batch.segments > 0, axis=1) - 1, 0)
        x_BD = jnp.take_along_axis(x_BLD, indices_B[:, None, None], axis=1)[:, 0]
        squares_B1 = jnp.sum(jnp.square(x_BD), axis=-1, keepdims=True)
        return Output(embedding=x_BD / jnp.sqrt(jnp.maximum(squares_B1, 1e-12)))


def _projection(config: ModelConfig, size: int, name: str, axis: str = "activation", use_bias: bool = True) -> Dense:
    width, axes = (config.d_model,), ("embed", axis)
    return Dense(width, (size,), axes, use_bias, compute_dtype(config), config.init_std or width[0] ** -0.5, name=name)


def _pooler(config: ModelConfig, x_BLD: Array) -> Array:
    return jnp.tanh(_projection(config, config.d_model, "pooler")(x_BLD))


def _classes(config: ModelConfig, x_BLD: Array, num_classes: int, name: str) -> Array:
    """Returns logits (B, L, C), float32. The matrix is too small to be split over the mesh."""
    return _projection(config, num_classes, name, "classes")(x_BLD).astype(jnp.float32)


def _vocabulary_logits(config: ModelConfig, embed: Embedding, x_BLD: Array) -> Array:
    """Returns logits (B, L, V), float32, from the token embedding or from an output matrix."""
    if config.tie_embeddings:
        logits_BLV = embed.attend(x_BLD)
    else:
        logits_BLV = _projection(config, config.vocab_size, "output", "vocab", use_bias=False)(x_BLD)
        logits_BLV = logits_BLV.astype(jnp.float32)
    return nn.with_logical_constraint(logits_BLV, ("batch", "length", "vocab"))


def _pool(pooling: str, x_BLD: Array, segments_BL: Array) -> Array:
    """Returns, with pooling=mean, the mean of its text at each token, and else the vectors as they are."""
    if pooling != "mean":
        return x_BLD
    same_BLS = (segments_BL[:, :, None] == segments_BL[:, None, :]) & (segments_BL[:, None, :] > 0)
    same_BLS = same_BLS.astype(jnp.float32)
    sums_BLD = jnp.einsum("BLS,BSD->BLD", same_BLS, x_BLD.astype(jnp.float32))
    return (sums_BLD / jnp.maximum(same_BLS.sum(-1, keepdims=True), 1.0)).astype(x_BLD.dtype)
