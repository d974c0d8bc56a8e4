"""A Transformer autoencoder: the decoder attends to latent vectors in place of the encoder's output."""

from __future__ import annotations

import dataclasses

import flax.linen as nn

from lm.batch import Array, Batch, Output
from lm.models.bottleneck import Bottleneck, memory_segments
from lm.models.transformer.cache import Cache
from lm.models.transformer.wiring import EncoderDecoder


class TransformerAutoencoder(EncoderDecoder):
    """An encoder-decoder Transformer with a bottleneck."""

    def setup(self) -> None:
        super().setup()
        self.bottleneck = Bottleneck(self.config)

    @nn.nowrap
    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> Cache:
        return super().empty_cache(batch_size, capacity, self.config.latent_vectors)

    def __call__(
        self, batch: Batch, train: bool = False, cache: Cache | None = None, latents: Array | None = None
    ) -> Output:
        """Returns the output of the head. See `lm.models.latents.Autoencoder.apply`."""
        encoded, found = None, None
        if (source := batch.source) is not None:
            if latents is None:
                memory_BkD, found = self.bottleneck(self.encode(source, train), source)
            else:
                memory_BkD = self.bottleneck.expand(latents)
            encoded = memory_BkD, memory_segments(source.segments, self.config.latent_vectors)
        output = self.decode(batch.tokens, encoded, batch, train, cache)
        return dataclasses.replace(output, latents=found)
