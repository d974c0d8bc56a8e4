"""Three models that wrap an autoencoder: one decodes samples, one returns means, and one decodes given latent vectors.

Like all models, they contain no arrays, and models that compare equal reuse the same compiled programs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output, Source
from lm.models.bottleneck import NOISE
from lm.models.protocol import Cache, Model


class Autoencoder(Model, Protocol):
    """A model whose head sets `compresses_source`. Each row of a batch holds one text and its source."""

    def apply(
        self,
        variables: Any,
        batch: Batch,
        *,
        train: bool = False,
        cache: Any = None,
        rngs: Any = None,
        latents: Array | None = None,
    ) -> Output:
        """Returns the output of the head, and the `Latents` of the sources if the batch has sources.

        A variational autoencoder decodes vectors drawn from the posterior if `rngs` has a key for NOISE. Otherwise, it
        decodes the means.

        Args:
            latents: vectors to decode in place of the batch's sources, float32 (B, k, Z).
        """


@dataclass(frozen=True)
class DrawnLatents:
    """An autoencoder that always decodes vectors drawn from the posterior, with the same noise for the same text.

    The evidence lower bound is an expectation over the posterior. Evaluation estimates it with one sample per text.
    """

    model: Autoencoder

    def apply(self, variables: Any, batch: Batch, *, train: bool = False) -> Output:
        return self.model.apply(variables, batch, train=train, rngs={NOISE: jax.random.key(0)})


@dataclass(frozen=True)
class MeanLatents:
    """The encoder of an autoencoder: in place of logits, it returns the mean latent vectors of each row's text.

    The k latent vectors of a text are concatenated: float32 (B, 1, k * Z). If the batch has no sources, its tokens are
    encoded.
    """

    model: Autoencoder

    def apply(self, variables: Any, batch: Batch, *, train: bool = False) -> Output:
        source = batch.source or Source(batch.tokens, batch.positions, batch.segments)
        latents = self.model.apply(variables, dataclasses.replace(batch, source=source), train=train).latents
        return Output(latents.mean.reshape(batch.shape[0], 1, -1))


@dataclass(frozen=True)
class LatentDecoder:
    """The decoder of an autoencoder, as a model that `lm.decoding` can use.

    A source consists of a single token: the index of the latent vectors to decode. The parameters are {"model": those
    of the autoencoder, "latents": float32 (N, k, Z)}.
    """

    model: Autoencoder

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def max_length(self) -> int:
        return self.model.max_length

    @property
    def max_source_length(self) -> int | None:
        return self.model.max_source_length

    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> Cache:
        return self.model.empty_cache(batch_size, capacity, source_length)

    def apply(
        self, variables: Any, batch: Batch, *, train: bool = False, cache: Any = None, rngs: Any = None
    ) -> Output:
        params, latents = variables["params"], None
        if batch.source is not None:
            latents = jnp.take(params["latents"], batch.source.tokens[:, 0], axis=0, mode="clip")
        return self.model.apply({"params": params["model"]}, batch, train=train, cache=cache, latents=latents)
