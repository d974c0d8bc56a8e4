"""The heads of word vectors: scores of pairs of words, computed as matrix products (Ji 2016).

The words of a row are divided into blocks of C words. All words of a block are scored against the K = C + 2W words
in and around the block, and against the block's N random words. Masks select the pairs.

P is the number of candidates against which each word is scored, and W is the maximum distance between the words of a
pair.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import zeros

from lm.batch import Array, Batch, Output
from lm.config import ModelConfig
from lm.models.heads import Head, HeadCost
from lm.models.layers import Embedding, parameter

BLOCK = 32  # C; larger blocks compute more scores that no pair needs, and smaller ones make the products inefficient


def contexts(batch: Batch, window: int) -> tuple[Array, Array]:
    """Returns the words in and around each block, int32 (B, L / C, K), and a mask of true pairs, bool (B, L / C, C, K).

    Word i and word j of a row are a pair if they are in the same document and 0 < |i - j| <= r, where r is the radius
    of word i. The token types of the batch hold the radii.
    """
    assert batch.types is not None and batch.shape[1] % BLOCK == 0, batch.shape
    blocks = batch.shape[1] // BLOCK
    indices_nK = np.arange(blocks)[:, None] * BLOCK + np.arange(BLOCK + 2 * window)[None]
    distance_11CK = np.abs(np.arange(BLOCK + 2 * window)[None] - window - np.arange(BLOCK)[:, None])[None, None]

    def around(x_BL: Array) -> Array:
        return jnp.pad(x_BL, ((0, 0), (window, window)))[:, indices_nK]

    def inside(x_BL: Array) -> Array:
        return x_BL.reshape(-1, blocks, BLOCK, 1)

    segments_BnK = around(batch.segments)
    near_BnCK = (distance_11CK > 0) & (distance_11CK <= inside(batch.types))
    same_BnCK = (segments_BnK[:, :, None] == inside(batch.segments)) & (inside(batch.segments) > 0)
    return around(batch.tokens), near_BnCK & same_BnCK


def noise(batch: Batch, number: int) -> Array:
    """Returns the N = `number` random words of each block, int32 (B, L / C, N), taken from the start of the source."""
    assert batch.source is not None, "the source holds random words"
    blocks = batch.shape[1] // BLOCK
    return batch.source.tokens[:, : blocks * number].reshape(-1, blocks, number)


class PairHead(Head):
    """Base class of the heads with a table of output vectors, initialised with zeros as in word2vec."""

    def output_table(self, config: ModelConfig) -> Array:
        return OutputEmbedding(config, name="output_embedding")()

    @nn.nowrap
    def cost(self, config: ModelConfig, length: int = 0) -> HeadCost:
        scores = self.scores_per_word() * length
        return HeadCost(config.vocab_size * config.d_model, 2 * scores * config.d_model, scores)

    @nn.nowrap
    def scores_per_word(self) -> int:
        raise NotImplementedError


class OutputEmbedding(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self) -> Array:
        return parameter(self, "embedding", zeros, ("vocab", "embed"), (self.config.vocab_size, self.config.d_model))


class SkipGramScores(PairHead):
    """Scores of each word against the words in and around its block and the block's random words (Mikolov 2013).

    The logits have the shape (B, L, K + N), and `Output.pairs` has the shape (B, L, K).
    """

    window: int
    num_noise: int

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        table_VE, (around_BnK, pairs_BnCK) = self.output_table(config), contexts(batch, self.window)
        (B, L, E), K = x_BLD.shape, around_BnK.shape[-1]
        candidates_BnP = jnp.concatenate([around_BnK, noise(batch, self.num_noise)], axis=-1)
        vectors_BnPE = jnp.take(table_VE, candidates_BnP, axis=0).astype(x_BLD.dtype)
        words_BnCE = x_BLD.reshape(B, -1, BLOCK, E)
        scores_BnCP = jnp.einsum("bnce,bnpe->bncp", words_BnCE, vectors_BnPE, preferred_element_type=jnp.float32)
        return Output(scores_BnCP.reshape(B, L, -1), pairs=pairs_BnCK.reshape(B, L, K))

    @nn.nowrap
    def scores_per_word(self) -> int:
        return BLOCK + 2 * self.window + self.num_noise


class CbowScores(PairHead):
    """Scores of the mean vector of each word's context against the word and the random words of its block.

    The logits have the shape (B, L, 1 + N). `Output.pairs`, (B, L, 1), marks the words that have a context.
    """

    window: int
    num_noise: int

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        table_VE, (B, L, E), window = self.output_table(config), x_BLD.shape, self.window
        _, pairs_BnCK = contexts(batch, window)
        indices_nK = np.arange(L // BLOCK)[:, None] * BLOCK + np.arange(BLOCK + 2 * window)[None]
        context_BnKE = jnp.pad(x_BLD, ((0, 0), (window, window), (0, 0)))[:, indices_nK]
        counts_BnC1 = jnp.sum(pairs_BnCK, axis=-1, keepdims=True).astype(jnp.float32)
        sums_BnCE = jnp.einsum("bnck,bnke->bnce", pairs_BnCK.astype(x_BLD.dtype), context_BnKE)
        mean_BLE = (sums_BnCE / jnp.maximum(counts_BnC1, 1.0)).reshape(B, L, E)
        mean_BLE = mean_BLE.astype(x_BLD.dtype)
        own_BL1 = jnp.sum(mean_BLE * jnp.take(table_VE, batch.tokens, axis=0), axis=-1, keepdims=True)
        noise_BnNE = jnp.take(table_VE, noise(batch, self.num_noise), axis=0).astype(x_BLD.dtype)
        means_BnCE = mean_BLE.reshape(B, -1, BLOCK, E)
        noise_BnCN = jnp.einsum("bnce,bnke->bnck", means_BnCE, noise_BnNE, preferred_element_type=jnp.float32)
        noise_BLN = noise_BnCN.reshape(B, L, -1)
        return Output(jnp.concatenate([own_BL1, noise_BLN], axis=-1), pairs=(counts_BnC1 > 0).reshape(B, L, 1))

    @nn.nowrap
    def scores_per_word(self) -> int:
        return BLOCK + 2 * self.window + self.num_noise + 1


class CountScores(PairHead):
    """GloVe's prediction of the logarithm of each pair's count: w_i . v_j + b_i + c_j (Pennington 2014).

    The logits have the shape (B, L).
    """

    def compute(self, config: ModelConfig, embed: Embedding, x_BLD: Array, batch: Batch, dropout: nn.Dropout) -> Output:
        assert batch.source is not None, "the source holds the second word of each pair"
        first_BL, second_BL = batch.tokens, batch.source.tokens
        bias_V, output_bias_V = WordBias(config, name="word_bias")(), WordBias(config, name="output_bias")()
        products_BL = jnp.sum(x_BLD * jnp.take(self.output_table(config), second_BL, axis=0), axis=-1)
        return Output(products_BL + jnp.take(bias_V, first_BL) + jnp.take(output_bias_V, second_BL))

    @nn.nowrap
    def cost(self, config: ModelConfig, length: int = 0) -> HeadCost:
        V, E = config.vocab_size, config.d_model
        return HeadCost(V * E + 2 * V, 2 * length * E, length)


class WordBias(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self) -> Array:
        return parameter(self, "bias", zeros, ("vocab",), (self.config.vocab_size,))
