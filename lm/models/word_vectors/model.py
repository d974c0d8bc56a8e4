"""A model that consists of a table of input word vectors. The head adds the table of output vectors."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import normal

from lm.batch import Array, Batch, Output, Source
from lm.config import ModelConfig
from lm.models.heads import Head
from lm.models.layers import Embedding, parameter
from lm.models.network import DROPOUT_ALONE, Network
from lm.models.protocol import Flops, ParameterCounts
from lm.models.word_vectors.heads import BLOCK

NGRAMS = 2  # the segment of the source that holds the n-grams of the first token; segment 1 holds random words


class NgramEmbedding(nn.Module):
    """One vector per bucket of character n-grams."""

    config: ModelConfig

    @nn.compact
    def __call__(self, batch: Batch) -> tuple[Array, Array]:
        """Returns the sum of each token's n-gram vectors, (B, L, E), and their number, float32 (B, L)."""
        config, source = self.config, batch.source
        assert source is not None, "n-grams are part of the source"
        std = config.embedding_std or config.init_std or config.d_model**-0.5
        shape = config.ngram_buckets, config.d_model
        table_GE = parameter(self, "embedding", normal(std), ("ngrams", "embed"), shape)
        is_ngram_BS = (source.segments >= NGRAMS).astype(jnp.float32)
        vectors_BSE = jnp.take(table_GE, source.tokens % config.ngram_buckets, axis=0) * is_ngram_BS[:, :, None]
        token_BS = jnp.maximum(source.segments - NGRAMS, 0)

        def sums(values_S: Array, token_S: Array) -> Array:
            return jax.ops.segment_sum(values_S, token_S, batch.shape[1])

        return jax.vmap(sums)(vectors_BSE, token_BS), jax.vmap(sums)(is_ngram_BS, token_BS)


class WordVectors(Network):
    """Word vectors. Each token's vector does not depend on other tokens."""

    text_layers: ClassVar[int] = 0

    @classmethod
    def build(cls, config: ModelConfig, head: Head, platform: str | None = None) -> Self:
        return cls(config, head)

    @property
    def reads_source(self) -> bool:
        return True

    def setup(self) -> None:
        self.token_embedding = Embedding(self.config.vocab_size, self.config, ("vocab", "embed"))
        nn.share_scope(self, self.head)  # puts the parameters of the head at the same level as the embedding

    @nn.compact
    def __call__(self, batch: Batch, train: bool = False, cache: None = None) -> Output:
        """Returns the output of the head. See `lm.models.protocol.Model.apply`."""
        assert cache is None, "word vectors have no cache"
        x_BLE = self.token_embedding(batch.tokens)
        if self.config.ngram_buckets:
            sums_BLE, counts_BL = NgramEmbedding(self.config, name="ngram_embedding")(batch)
            x_BLE = (x_BLE + sums_BLE) / (1.0 + counts_BL[:, :, None])
        return self.head(self.config, self.token_embedding, x_BLE, batch, train, DROPOUT_ALONE)

    @nn.nowrap
    def initial_params(self, key: Array) -> dict[str, Any]:
        ids = jnp.zeros((1, BLOCK), jnp.int32)
        others = jnp.zeros((1, getattr(self.head, "num_noise", BLOCK)), jnp.int32)
        batch = Batch(ids, ids, ids.astype(jnp.float32), ids, ids + 1, Source(others, others, others + 1), ids)
        return self.init({"params": key}, batch)["params"]

    @nn.nowrap
    def token_vectors(self, variables: Any, batch: Batch, layer: int) -> Array:
        """Returns the vectors of the tokens without their n-grams, float32 (B, L, E). The only layer is 0."""
        assert layer == 0, layer
        return self.embedded(variables, batch)

    @nn.nowrap
    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> Any:
        raise AssertionError("word vectors have no cache")

    @nn.nowrap
    def parameter_counts(self) -> ParameterCounts:
        config, head = self.config, self.head.cost(self.config).parameters
        return ParameterCounts((config.vocab_size + config.ngram_buckets) * config.d_model, 0, 0, 0, head)

    @nn.nowrap
    def flops_per_row(self, length: int, source_length: int = 0) -> Flops:
        return Flops(0, self.head.cost(self.config, length).flops)

    @nn.nowrap
    def activation_bytes(self, length: int, source_length: int, tensor: int) -> float:
        """Estimates the bytes per row of two vectors per token and two copies of the scores, in float32."""
        return 4.0 * (2 * length * self.config.d_model + 2 * self.head.cost(self.config, length).logits)
