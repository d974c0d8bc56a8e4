"""The three families: how embeddings, towers and a head are put together."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from lm.batch import Array, Batch, Output, Source
from lm.models.layers import Embedding
from lm.models.transformer.attention import Memory
from lm.models.transformer.cache import Cache
from lm.models.transformer.model import Transformer
from lm.models.transformer.tower import Tower

# The name of the head's dropout decides its random keys, so these names must not change. In a model of one tower
# Dropout_0 is that of the tower.
DROPOUT_BESIDE_A_TOWER, DROPOUT_ALONE = "Dropout_1", "Dropout_0"


class OneTower(Transformer):
    """Token embedding, one tower and a head."""

    causal: ClassVar[bool]

    def setup(self) -> None:
        config = self.config
        self.token_embedding = Embedding(config.vocab_size, config, ("vocab", "embed"))
        if config.token_types:
            self.type_embedding = Embedding(config.token_types, config, ("positions", "embed"))
        self.tower = Tower(config, causal=self.causal, kernel=self.kernel)
        self.head_module = self.head.module(config, DROPOUT_BESIDE_A_TOWER)
        for each in (self.tower, self.head_module):
            nn.share_scope(self, each)  # the parameters of both stand beside the embedding

    def __call__(self, batch: Batch, train: bool = False, cache: Cache | None = None) -> Output:
        """Returns what the head computes for every token; see `lm.models.protocol.Model.apply`."""
        assert cache is None or self.causal, "an encoder sees all tokens at once"
        rows, two_texts = batch.shape[0], self.head.texts_per_row == 2
        if two_texts:
            batch = _with_paired_texts(batch)
        x_BLD = self.token_embedding(batch.tokens)
        if self.config.token_types:
            types_BL = jnp.zeros_like(batch.tokens) if batch.types is None else batch.types
            x_BLD = x_BLD + self.type_embedding(types_BL)
        x_BLD, cache = self.tower(x_BLD, batch, train, cache)
        output: Output = self.head_module(x_BLD, self.token_embedding, batch, train)
        if two_texts:
            both: Array = output.embedding
            return Output(embedding=both[:rows], paired_embedding=both[rows:])
        return dataclasses.replace(output, cache=cache)


def _with_paired_texts(batch: Batch) -> Batch:
    """Returns the texts and the paired texts as rows of one batch: the same parameters read both."""
    source = batch.source
    assert source is not None and source.tokens.shape == batch.shape, "a paired text of the same length for each row"

    def joined(first: Array, second: Array) -> Array:
        return jnp.concatenate([first, second])

    return dataclasses.replace(
        batch,
        tokens=joined(batch.tokens, source.tokens),
        positions=joined(batch.positions, source.positions),
        segments=joined(batch.segments, source.segments),
        types=None,
        source=None,
    )


class Decoder(OneTower):
    """A decoder-only Transformer (GPT-2, Llama): each token sees those before it."""

    causal: ClassVar[bool] = True


class Encoder(OneTower):
    """An encoder-only Transformer (BERT, RoBERTa, ModernBERT): each token sees all of its segment."""

    causal: ClassVar[bool] = False


class EncoderDecoder(Transformer):
    """An encoder-decoder Transformer (Vaswani 2017, T5, BART).

    A batch has a source only if the head predicts text. With any other head both sides read the same text, as BART does
    it.
    """

    def setup(self) -> None:
        config, axes = self.config, ("vocab", "embed")
        self.token_embedding = Embedding(config.vocab_size, config, axes)
        if not config.share_embeddings:
            self.source_embedding = Embedding(config.source_vocab_size or config.vocab_size, config, axes)
        self.encoder = Tower(dataclasses.replace(config, num_layers=config.num_encoder_layers), causal=False)
        self.decoder = Tower(config, causal=True, cross=True)
        self.head_module = self.head.module(config, DROPOUT_ALONE)
        nn.share_scope(self, self.head_module)  # its parameters stand beside the embedding

    @property
    def reads_source(self) -> bool:
        return self.head.predicts_text

    def __call__(self, batch: Batch, train: bool = False, cache: Cache | None = None) -> Output:
        """Returns what the head computes for every token of the target; see `lm.models.protocol.Model.apply`.

        Decoding: the first call has `batch.source` and an empty cache, which keeps the source. Later calls have
        batch.source=None and the next tokens of each row; k rows in a row may share a source.
        """
        source = batch.source
        if not self.reads_source:
            assert source is None and cache is None
            source = Source(tokens=batch.tokens, positions=batch.positions, segments=batch.segments)
        x_source = None
        if source is not None:
            embed = self.token_embedding if self.config.share_embeddings else self.source_embedding
            x_source, _ = self.encoder(embed(source.tokens), source, train)
            if cache is not None:
                cache = dataclasses.replace(cache, source_segments=source.segments)
            source_segments = source.segments
        else:
            assert cache is not None and cache.source_segments is not None, "there is no source"
            rows_per_source = batch.shape[0] // cache.source_segments.shape[0]
            source_segments = jnp.repeat(cache.source_segments, rows_per_source, axis=0)
        mask_BLS = (batch.segments[:, :, None] == source_segments[:, None, :]) & (source_segments[:, None, :] > 0)
        memory = Memory(x=x_source, mask=mask_BLS)
        x_BLD, cache = self.decoder(self.token_embedding(batch.tokens), batch, train, cache, memory)
        output: Output = self.head_module(x_BLD, self.token_embedding, batch, train)
        return dataclasses.replace(output, cache=cache)
