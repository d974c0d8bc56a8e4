"""What the rest of the code asks of a Transformer, the same for all three families."""

from __future__ import annotations

from typing import Any, Self

import flax.linen as nn
import jax.numpy as jnp

from lm.batch import Array, Batch, Source
from lm.config import ModelConfig
from lm.models.heads import Head
from lm.models.protocol import Flops, ParameterCounts
from lm.models.transformer import cache as caches
from lm.models.transformer import costs
from lm.models.transformer.attention_kernels import choose_kernel
from lm.models.transformer.cache import Cache


class Transformer(nn.Module):
    """A Transformer of some family; see `lm.models.protocol.Model` for the methods."""

    config: ModelConfig
    head: Head
    kernel: str = "xla"  # of attention where a call allows it; see `kernel_for_call`

    @classmethod
    def build(cls, config: ModelConfig, head: Head, platform: str | None = None) -> Self:
        """Returns the model with the attention kernel for a platform. Raises UserError if there is none."""
        return cls(config, head, choose_kernel(config, platform))

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_length(self) -> int:
        return self.config.max_length

    @property
    def max_source_length(self) -> int | None:
        # The table of learned positions has no entry beyond max_length, not even for padding.
        return self.config.max_length if self.config.positions == "learned" else None

    @property
    def reads_source(self) -> bool:
        return self.head.texts_per_row == 2

    @nn.nowrap
    def initial_params(self, key: Array) -> dict[str, Any]:
        assert self.config.vocab_size > 0, "vocab_size is resolved from the tokenizer before parameters are made"
        ids = jnp.zeros((1, 2), jnp.int32)
        source = Source(tokens=ids, positions=ids, segments=ids + 1) if self.reads_source else None
        weights = ids.astype(jnp.float32)
        batch = Batch(tokens=ids, targets=ids, weights=weights, positions=ids, segments=ids + 1, source=source)
        # No weight depends on the kernel, and not every kernel serves so short a row.
        return self.clone(kernel="xla").init({"params": key}, batch)["params"]

    @nn.nowrap
    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> Cache:
        return caches.empty_cache(self.config, batch_size, capacity, source_length)

    @nn.nowrap
    def repeat_rows(self, cache: Cache, k: int) -> Cache:
        return caches.repeat_rows(cache, k)

    @nn.nowrap
    def take_rows(self, cache: Cache, rows_B: Array) -> Cache:
        return caches.take_rows(cache, rows_B)

    @nn.nowrap
    def cache_axes(self, cache: Cache) -> Any:
        return caches.cache_axes(cache)

    @nn.nowrap
    def parameter_counts(self) -> ParameterCounts:
        return costs.parameter_counts(self.config, self.head)

    @nn.nowrap
    def flops_per_row(self, length: int, source_length: int = 0) -> Flops:
        return costs.flops_per_row(self.config, self.head, length, source_length)

    @nn.nowrap
    def activation_bytes(self, length: int, source_length: int, tensor: int) -> float:
        return costs.activation_bytes(self.config, length, source_length, tensor, self.kernel)
