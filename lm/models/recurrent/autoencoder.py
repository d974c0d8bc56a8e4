"""A recurrent autoencoder: the decoder starts from latent vectors and receives them again at each token."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output
from lm.models.bottleneck import Bottleneck, memory_segments
from lm.models.recurrent.cache import RecurrentCache
from lm.models.recurrent.latents import LatentInput, LatentStart
from lm.models.recurrent.recurrence import State
from lm.models.recurrent.wiring import Encoded, RecurrentEncoderDecoder


class RecurrentAutoencoder(RecurrentEncoderDecoder):
    """A recurrent encoder-decoder with a bottleneck. If the decoder has attention, it attends to the memory."""

    def setup(self) -> None:
        super().setup()
        self.bottleneck = Bottleneck(self.config)
        self.latent_start, self.latent_input = LatentStart(self.config), LatentInput(self.config)

    @nn.nowrap
    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> RecurrentCache:
        return super().empty_cache(batch_size, capacity, self.config.latent_vectors)

    def __call__(
        self,
        batch: Batch,
        train: bool = False,
        cache: RecurrentCache | None = None,
        latents: Array | None = None,
    ) -> Output:
        """Returns the output of the head. See `lm.models.latents.Autoencoder.apply`."""
        encoded, found = None, None
        if (source := batch.source) is not None:
            if latents is None:
                memory_BkD, found = self.bottleneck(self.encode(source, batch.segments, train).memory_BSD, source)
            else:
                memory_BkD = self.bottleneck.expand(latents)
            length = batch.shape[1] if cache is None else 1
            segments_Bk = memory_segments(source.segments, self.config.latent_vectors)
            encoded = Encoded(memory_BkD, segments_Bk, self._starts(memory_BkD, batch.shape[0], length))
        output = self.decode(batch.tokens, encoded, batch, train, cache)
        return dataclasses.replace(output, latents=found)

    def embed(self, tokens_BL: Array, memory_BSD: Array) -> Array:
        x_BLE, input_BE = super().embed(tokens_BL, memory_BSD), self.latent_input(memory_BSD)
        return x_BLE + jnp.repeat(input_BE, len(x_BLE) // len(input_BE), axis=0)[:, None]

    def _starts(self, memory_BkD: Array, rows: int, length: int) -> tuple[State, ...]:
        """Returns the same initial states for each of `length` tokens. Consecutive rows may share a source."""

        def spread(x_BD: Array) -> Array:
            x_BD = jnp.repeat(x_BD, rows // len(x_BD), axis=0)
            return jnp.broadcast_to(x_BD[None], (length, *x_BD.shape))

        return jax.tree.map(spread, self.latent_start(memory_BkD))
