"""The smallest model that the protocol allows, to show that nothing outside lm/models assumes attention.

The output at a token is a projection of the mean embedding of its text up to that token (a causal form of CBOW,
Mikolov 2013).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from lm.batch import Array, Batch, Output
from lm.config import ModelConfig
from lm.models.heads import Head, TokenVectors
from lm.models.layers import Dense, Embedding
from lm.models.protocol import Flops, ParameterCounts


@flax.struct.dataclass
class BagCache:
    """The sum and the number of the embeddings of each row so far."""

    sums_BD: Array
    counts_B: Array

    def repeat_rows(self, k: int) -> Self:
        return BagCache(jnp.repeat(self.sums_BD, k, axis=0), jnp.repeat(self.counts_B, k))

    def take_rows(self, rows_B: Array) -> Self:
        return BagCache(self.sums_BD[rows_B], self.counts_B[rows_B])

    def axes(self) -> Self:
        return BagCache(("batch", "activation"), ("batch",))


class BagOfWords(nn.Module):
    config: ModelConfig
    head: Head

    max_source_length = None
    activation_dtype = "float32"
    reads_source = False

    @classmethod
    def build(cls, config: ModelConfig, head: Head, platform: str | None = None) -> Self:
        return cls(config, head)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_length(self) -> int:
        return self.config.max_length

    @nn.compact
    def __call__(self, batch: Batch, train: bool = False, cache: BagCache | None = None) -> Output:
        config, width = self.config, (self.config.d_model,)
        embed = Embedding(config.vocab_size, config, ("vocab", "embed"), name="token_embedding")
        real_BL = (batch.segments > 0).astype(jnp.float32)
        x_BLD = embed(batch.tokens) * real_BL[..., None]
        seen_BLS = jnp.tril(jnp.ones((x_BLD.shape[1],) * 2))[None] * real_BL[:, None]
        if cache is None:
            seen_BLS = seen_BLS * (batch.segments[:, :, None] == batch.segments[:, None])
        sums_BLD, counts_BL = jnp.einsum("BLS,BSD->BLD", seen_BLS, x_BLD), seen_BLS.sum(-1)
        if cache is not None:
            sums_BLD, counts_BL = sums_BLD + cache.sums_BD[:, None], counts_BL + cache.counts_B[:, None]
            cache = BagCache(cache.sums_BD + x_BLD.sum(1), cache.counts_B + real_BL.sum(1))
        mean_BLD = sums_BLD / jnp.maximum(counts_BL, 1.0)[..., None]
        project = Dense(width, width, ("embed", "activation"), True, config.dtype, config.dtype, 0.3, name="mix")
        output = self.head(config, embed, jnp.tanh(project(mean_BLD)), batch, train)
        return dataclasses.replace(output, cache=cache)

    text_layers = 1

    @nn.nowrap
    def token_vectors(self, variables: Any, batch: Batch, layer: int) -> Array:
        if layer == 0:
            return variables["params"]["token_embedding"]["embedding"][batch.tokens]
        return self.clone(head=TokenVectors()).apply(variables, batch).logits

    @nn.nowrap
    def initial_params(self, key: Array) -> dict[str, Any]:
        ids = jnp.zeros((1, 2), jnp.int32)
        return self.init({"params": key}, Batch(ids, ids, ids.astype(jnp.float32), ids, ids + 1))["params"]

    @nn.nowrap
    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> BagCache:
        return BagCache(jnp.zeros((batch_size, self.config.d_model)), jnp.zeros((batch_size,)))

    @nn.nowrap
    def parameter_counts(self) -> ParameterCounts:
        D = self.config.d_model
        return ParameterCounts(
            self.config.vocab_size * D, 0, D * D + D, 0, self.head.cost(self.config).parameters, num_layers=1
        )

    @nn.nowrap
    def flops_per_row(self, length: int, source_length: int = 0) -> Flops:
        D = self.config.d_model
        return Flops(2 * length * (length * D + D * D), self.head.cost(self.config, length).flops)

    @nn.nowrap
    def attention_kernels(self, length: int, source_length: int = 0) -> str:
        return "none"

    @nn.nowrap
    def activation_bytes(self, length: int, source_length: int, tensor: int) -> float:
        return 4.0 * length * (length + 4 * self.config.d_model)
