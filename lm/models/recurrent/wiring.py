"""The three recurrent models: language model, bidirectional encoder and encoder-decoder."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output, Source, same_segment
from lm.config import ModelConfig
from lm.models.heads import Head, TokenVectors
from lm.models.layers import Embedding
from lm.models.network import (
    DROPOUT_ALONE,
    DROPOUT_BESIDE_A_TOWER,
    LAYERS,
    RECORD,
    Network,
    encoder_alone,
    of_paired_texts,
    shifted_right,
    with_paired_texts,
)
from lm.models.protocol import Flops, ParameterCounts
from lm.models.recurrent import costs
from lm.models.recurrent.attention import SCORES, SourceAttention
from lm.models.recurrent.cache import RecurrentCache, empty_cache
from lm.models.recurrent.layer import RecurrentStack, StackOutput
from lm.models.recurrent.recurrence import State


class Recurrent(Network):
    """Base class for the three recurrent models."""

    @classmethod
    def build(cls, config: ModelConfig, head: Head, platform: str | None = None) -> Self:
        return cls(config, head)

    @nn.nowrap
    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> RecurrentCache:
        return empty_cache(self.config, batch_size, source_length)

    @nn.nowrap
    def parameter_counts(self) -> ParameterCounts:
        return costs.parameter_counts(self.config, self.head)

    @nn.nowrap
    def flops_per_row(self, length: int, source_length: int = 0) -> Flops:
        return costs.flops_per_row(self.config, self.head, length, source_length)

    @nn.nowrap
    def activation_bytes(self, length: int, source_length: int, tensor: int) -> float:
        return costs.activation_bytes(self.config, self.head, length, source_length)


class OneStack(Recurrent):
    """A recurrent model with a token embedding, one stack of layers and a head."""

    bidirectional: ClassVar[bool]

    def setup(self) -> None:
        config = self.config
        self.token_embedding = Embedding(config.vocab_size, config, ("vocab", "embed"))
        self.stack = RecurrentStack(config, config.num_layers, self.bidirectional)
        for each in (self.stack, self.head):
            nn.share_scope(self, each)  # puts their parameters at the same level as the embedding

    def __call__(self, batch: Batch, train: bool = False, cache: RecurrentCache | None = None) -> Output:
        """Returns the output of the head. See `lm.models.protocol.Model.apply`."""
        assert cache is None or not self.bidirectional, "an encoder does not support a cache"
        two_texts = self.head.texts_per_row == 2
        if two_texts:
            batch = with_paired_texts(batch)
        states = None if cache is None else cache.states
        starts_BL = batch.positions == 0  # new texts may follow a cached text (data.stateful)
        x_BLD, found = self.stack(self.token_embedding(batch.tokens), batch.segments, train, states, starts_BL)
        self.sow(RECORD, LAYERS, found.layers_LBD)
        if cache is not None:
            cache = dataclasses.replace(cache, states=found.last)
        output = self.head(self.config, self.token_embedding, x_BLD, batch, train, DROPOUT_BESIDE_A_TOWER)
        if two_texts:
            return of_paired_texts(output)
        penalty = self.penalty(x_BLD, found.layers_LBD[-1], batch) if train else None
        return dataclasses.replace(output, cache=cache, penalty=penalty)

    def penalty(self, x_BLD: Array, h_LBD: Array, batch: Batch) -> Array | None:
        """Returns the penalty on the last layer's output, to be added to the summed training loss, or None."""
        return None

    @property
    def text_layers(self) -> int:
        return self.config.num_layers

    @nn.nowrap
    def token_vectors(self, variables: Any, batch: Batch, layer: int) -> Array:
        """Returns the vectors after a layer. Those of layer 0 have the width of the embedding table."""
        assert 0 <= layer <= self.text_layers, (layer, self.text_layers)
        if layer == 0:
            return self.embedded(variables, batch)
        _, recorded = self.clone(head=TokenVectors()).apply(variables, batch, mutable=[RECORD])
        (layers_LBD,) = recorded[RECORD][LAYERS]
        return jnp.swapaxes(layers_LBD[layer - 1], 0, 1)


class RecurrentDecoder(OneStack):
    """A recurrent language model (Mikolov 2010, Zaremba 2014)."""

    bidirectional: ClassVar[bool] = False

    def penalty(self, x_BLD: Array, h_LBD: Array, batch: Batch) -> Array | None:
        """Returns the penalties on the last layer's output after (x) and before (h) dropout, summed over the targets.

        See model.output_penalty and model.change_penalty. Each penalty is a mean over the features (Merity 2018).
        """
        config, found = self.config, []
        if config.output_penalty:
            squares_BL = jnp.mean(jnp.square(x_BLD.astype(jnp.float32)), axis=-1)
            found.append(config.output_penalty * jnp.sum(squares_BL * batch.weights))
        if config.change_penalty:
            changes_BL = jnp.mean(jnp.square(jnp.diff(jnp.swapaxes(h_LBD, 0, 1), axis=1)), axis=-1)
            weights_BL = batch.weights[:, 1:] * (batch.segments[:, 1:] == batch.segments[:, :-1])
            found.append(config.change_penalty * jnp.sum(changes_BL * weights_BL))
        return sum(found) if found else None


class RecurrentEncoder(OneStack):
    """A bidirectional recurrent encoder (Schuster 1997, Huang 2015)."""

    bidirectional: ClassVar[bool] = True


class Encoded(NamedTuple):
    """The values that the decoder receives from the encoder."""

    memory_BSD: Array
    segments_BS: Array
    initial: tuple[State, ...]  # (L, B, D): for each layer and token, the initial state of a text that starts there


class RecurrentEncoderDecoder(Recurrent):
    """A bidirectional encoder and a decoder that continues from its states (Sutskever 2014, Bahdanau 2015).

    In segment i, the decoder starts with the encoder's last states for segment i, with the two directions concatenated.
    The decoder's top layer starts with the states of the encoder's top layer. A batch has a source only if the head
    predicts text. If the head does not predict text, the encoder and the decoder read the same text.
    """

    def setup(self) -> None:
        config, axes = self.config, ("vocab", "embed")
        self.token_embedding = Embedding(config.vocab_size, config, axes)
        if not config.share_embeddings:
            self.source_embedding = Embedding(config.source_vocab_size or config.vocab_size, config, axes)
        self.encoder = RecurrentStack(config, config.num_encoder_layers, bidirectional=True)
        self.decoder = RecurrentStack(config, config.num_layers)
        if SCORES[config.source_attention].function:
            self.source_attention = SourceAttention(config)
        nn.share_scope(self, self.head)  # puts the parameters of the head at the same level as the embedding

    @property
    def reads_source(self) -> bool:
        return self.head.predicts_text

    def __call__(self, batch: Batch, train: bool = False, cache: RecurrentCache | None = None) -> Output:
        """Returns the output of the head for the target. See `lm.models.protocol.Model.apply`."""
        source, tokens_BL = batch.source, batch.tokens
        if not self.reads_source:
            assert source is None and cache is None
            source = Source(batch.tokens, batch.positions, batch.segments)
            tokens_BL = shifted_right(tokens_BL, batch.segments) if self.config.shift_decoder else tokens_BL
        encoded = None
        if source is not None:
            # A cached text starts at the first token of the row.
            segments_BL = batch.segments if cache is None else jnp.ones((batch.shape[0], 1), jnp.int32)
            encoded = self.encode(source, segments_BL, train)
        return self.decode(tokens_BL, encoded, batch, train, cache)

    def encode(self, source: Source, segments_BL: Array, train: bool) -> Encoded:
        """Encodes the source. `segments_BL` are the segments of the tokens at which the decoder may start."""
        embed = self.token_embedding if self.config.share_embeddings else self.source_embedding
        memory_BSD, found = self.encoder(embed(source.tokens), source.segments, train)
        self.sow(RECORD, LAYERS, found.layers_LBD)
        return Encoded(memory_BSD, source.segments, self._last_states(found, segments_BL, source.segments))

    def decode(
        self, tokens_BL: Array, encoded: Encoded | None, batch: Batch, train: bool, cache: RecurrentCache | None
    ) -> Output:
        """Returns the output of the head. If `encoded` is None, the cache holds the encoded source."""
        initial = None
        if encoded is not None:
            memory_BSD, memory_segments_BS, initial = encoded
            if cache is not None:
                cache = RecurrentCache(jax.tree.map(lambda x: x[0], initial), memory_BSD, memory_segments_BS)
                initial = None
        else:
            assert cache is not None and cache.memory is not None, "no source in the batch or the cache"
            memory_BSD, memory_segments_BS = cache.memory, cache.memory_segments
        states = None if cache is None else cache.states
        x_BLE = self.embed(tokens_BL, memory_BSD)
        x_BLD, found = self.decoder(x_BLE, batch.segments, train, states, None, initial)
        if cache is not None:
            cache = dataclasses.replace(cache, states=found.last)
        if SCORES[self.config.source_attention].function:
            rows_per_source = batch.shape[0] // memory_BSD.shape[0]
            mask_BLS = same_segment(batch.segments, jnp.repeat(memory_segments_BS, rows_per_source, axis=0))
            x_BLD = self.source_attention(x_BLD, memory_BSD, mask_BLS)
        output = self.head(self.config, self.token_embedding, x_BLD, batch, train, DROPOUT_ALONE)
        return dataclasses.replace(output, cache=cache)

    def embed(self, tokens_BL: Array, memory_BSD: Array) -> Array:
        """Returns the input of the decoder, (B, L, E)."""
        return self.token_embedding(tokens_BL)

    def _last_states(self, encoded: StackOutput, segments_BL: Array, source_segments_BS: Array) -> tuple[State, ...]:
        """Returns, for each token, the decoder's initial states for a text that starts there, as (L, B, D) arrays.

        In a segment without a source, the states are 0. Consecutive rows share a source if there are fewer sources than
        rows.
        """
        rows_per_source = segments_BL.shape[0] // source_segments_BS.shape[0]
        same_BLS = same_segment(segments_BL, jnp.repeat(source_segments_BS, rows_per_source, axis=0))
        # The forward direction ends at the last token of a text, and the backward direction at its first token.
        ends_BL = {
            "forward": same_BLS.shape[2] - 1 - jnp.argmax(same_BLS[:, :, ::-1], axis=2),
            "backward": jnp.argmax(same_BLS, axis=2),
        }
        known_LB1 = jnp.any(same_BLS, axis=2).T[:, :, None]

        def at_ends(direction: str, states_SBH: Array) -> Array:
            states_SBH = jnp.repeat(states_SBH, rows_per_source, axis=1)
            return jnp.take_along_axis(states_SBH, ends_BL[direction].T[:, :, None], axis=0)

        found = []
        for n in range(self.config.num_layers):
            layer = max(0, n + self.config.num_encoder_layers - self.config.num_layers)
            states = {direction: encoded.states[layer][direction] for direction in ends_BL}
            found.append(
                {
                    name: jnp.where(
                        known_LB1, jnp.concatenate([at_ends(each, states[each][name]) for each in states], -1), 0.0
                    )
                    for name in states["forward"]
                }
            )
        return tuple(found)

    @property
    def text_layers(self) -> int:
        return self.config.num_encoder_layers

    @nn.nowrap
    def token_vectors(self, variables: Any, batch: Batch, layer: int) -> Array:
        """Returns the token vectors of the encoder, which is run as a standalone `RecurrentEncoder`."""
        encoder, variables = encoder_alone(self, RecurrentEncoder, variables)
        return encoder.token_vectors(variables, batch, layer)
