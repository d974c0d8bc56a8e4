"""What is computed of the last layer's output: the next or the hidden token, labels, an answer's ends, a vector."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output
from lm.models.heads import HeadedConfig
from lm.models.transformer.layers import ACTIVATIONS, Dense, Embedding, Norm, compute_dtype


def run_head(config: HeadedConfig, embed: Embedding, x_BLD: Array, batch: Batch, train: bool) -> Output:
    """The head of the config; call it inside a compact module. `embed` is the token embedding of the stack."""
    segments_BL = batch.segments
    if config.head == "tokens":
        output = None if config.tie_embeddings else output_product(config, name="output")
        return Output(logits_of(config, embed, output, x_BLD))
    if config.head == "masked":
        return _masked(config, embed, x_BLD, batch.weights)
    if config.head == "span":
        return Output(_classes(config, x_BLD, 2, "span"))
    if config.head == "classes":
        x_BLD = pool(config, x_BLD, segments_BL)
        if config.pooler:
            x_BLD = _pooler(config, x_BLD)
        x_BLD = nn.Dropout(config.dropout, deterministic=not train)(x_BLD)
        return Output(_classes(config, x_BLD, config.num_classes, "classifier"))
    assert config.head == "embedding", config.head
    return Output(embedding=_row_embedding(config, pool(config, x_BLD, segments_BL), segments_BL))


def _masked(config: HeadedConfig, embed: Embedding, x_BLD: Array, weights_BL: Array) -> Output:
    """Devlin 2019: a product, activation and norm before the embedding is used as output (all optional).

    With max_hidden only the tokens that have a weight are looked at: no row has more of them.
    """
    h_BLD, places_BP = x_BLD, None
    if config.max_hidden and config.max_hidden < x_BLD.shape[1]:
        _, places_BP = jax.lax.top_k((weights_BL > 0).astype(jnp.float32), config.max_hidden)
        h_BLD = jnp.take_along_axis(x_BLD, places_BP[:, :, None], axis=1)
    if config.head_transform:
        h_BLD = _product(config, config.d_model, "head_product", use_bias=config.use_bias)(h_BLD)
        h_BLD = ACTIVATIONS[config.activation](h_BLD)
        h_BLD = Norm(config, name="head_norm")(h_BLD)
    output = None if config.tie_embeddings else output_product(config, name="output")
    logits_BLV = logits_of(config, embed, output, h_BLD)
    if config.output_bias:
        logits_BLV = logits_BLV + VocabularyBias(config.vocab_size, name="output_bias")()
    if not config.pair_head:
        return Output(logits_BLV, places=places_BP)
    return Output(
        logits_BLV, places=places_BP, pair_logits=_classes(config, _pooler(config, x_BLD), 2, "next_sentence")
    )


class VocabularyBias(nn.Module):
    size: int

    @nn.compact
    def __call__(self) -> Array:
        bias_V = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)), (self.size,))
        return bias_V.reshape(1, 1, -1)


def _product(config: HeadedConfig, size: int, name: str, axis: str = "activation", use_bias: bool = True) -> Dense:
    std = config.init_std or config.d_model**-0.5
    return Dense((config.d_model,), (size,), ("embed", axis), use_bias, compute_dtype(config), std, name=name)


def _pooler(config: HeadedConfig, x_BLD: Array) -> Array:
    return jnp.tanh(_product(config, config.d_model, "pooler")(x_BLD))


def _classes(config: HeadedConfig, x_BLD: Array, classes: int, name: str) -> Array:
    """(B, L, C) float32. So small a product is not split over the mesh."""
    return _product(config, classes, name, "classes")(x_BLD).astype(jnp.float32)


def pool(config: HeadedConfig, x_BLD: Array, segments_BL: Array) -> Array:
    """What stands for a text, at each of its tokens. The first and the last token stand for it where they are."""
    if config.pooling != "mean":
        return x_BLD
    same_BLS = (segments_BL[:, :, None] == segments_BL[:, None, :]) & (segments_BL[:, None, :] > 0)
    same_BLS = same_BLS.astype(jnp.float32)
    sums_BLD = jnp.einsum("BLS,BSD->BLD", same_BLS, x_BLD.astype(jnp.float32))
    return (sums_BLD / jnp.maximum(same_BLS.sum(-1, keepdims=True), 1.0)).astype(x_BLD.dtype)


def _row_embedding(config: HeadedConfig, x_BLD: Array, segments_BL: Array) -> Array:
    """(B, D) float32 of length 1: of rows that hold a single text. A row of padding gives no NaN."""
    x_BLD = x_BLD.astype(jnp.float32)
    places_B = jnp.zeros(x_BLD.shape[0], jnp.int32)
    if config.pooling == "last":
        places_B = jnp.maximum(jnp.sum(segments_BL > 0, axis=1) - 1, 0)
    x_BD = jnp.take_along_axis(x_BLD, places_B[:, None, None], axis=1)[:, 0]
    squares_B1 = jnp.sum(jnp.square(x_BD), axis=-1, keepdims=True)
    return x_BD / jnp.sqrt(jnp.maximum(squares_B1, 1e-12))


def output_product(config: HeadedConfig, name: str | None = None) -> Dense:
    """From the last layer to the vocabulary, where the embedding does not serve for that too."""
    sizes, axes = ((config.d_model,), (config.vocab_size,)), ("embed", "vocab")
    std = config.init_std or config.d_model**-0.5
    return Dense(*sizes, axes, False, compute_dtype(config), std, name=name)


def logits_of(config: HeadedConfig, embed: Embedding, output: Dense | None, x_BLD: Array) -> Array:
    """(B, L, V) float32."""
    logits_BLV = embed.attend(x_BLD) if output is None else output(x_BLD).astype(jnp.float32)
    return nn.with_logical_constraint(logits_BLV, ("batch", "length", "vocab"))
