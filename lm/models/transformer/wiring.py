"""The three Transformer families, assembled from embeddings, towers and a head."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

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
    RECORD,
    Network,
    encoder_alone,
    of_paired_texts,
    shifted_right,
    with_paired_texts,
)
from lm.models.parameters import STACK_NAME
from lm.models.protocol import Flops, ParameterCounts
from lm.models.transformer import costs
from lm.models.transformer.attention import Memory
from lm.models.transformer.attention_kernels import FUSED, choose_kernel, kernel_for_call
from lm.models.transformer.cache import Cache, empty_cache
from lm.models.transformer.tower import EMBEDDED, LAST_BLOCK, Tower


class Transformer(Network):
    """Base class for the three families. `lm.models.protocol.Model` documents the methods."""

    kernel: str = "xla"  # the attention kernel for the calls that it supports; see `kernel_for_call`

    @classmethod
    def build(cls, config: ModelConfig, head: Head, platform: str | None = None) -> Self:
        """Builds the model for a platform, which determines the attention kernel and the dtype of activations.

        Raises UserError if the config names an attention kernel that the platform does not support.
        """
        platform = platform or jax.default_backend()
        if config.activation_dtype == "auto":
            config = dataclasses.replace(config, activation_dtype="float32" if platform == "cpu" else "compute")
        return cls(config, head, choose_kernel(config, platform))

    @property
    def max_source_length(self) -> int | None:
        # A learned position table has no entries beyond max_length, not even for padding.
        return self.config.max_length if self.config.positions == "learned" else None

    @nn.nowrap
    def initial_params(self, key: Array) -> dict[str, Any]:
        # The parameters do not depend on the kernel, and some kernels do not support rows as short as these.
        if self.kernel != "xla":
            return self.clone(kernel="xla").initial_params(key)
        return super().initial_params(key)

    @nn.nowrap
    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> Cache:
        return empty_cache(self.config, batch_size, capacity, source_length)

    @nn.nowrap
    def parameter_counts(self) -> ParameterCounts:
        return costs.parameter_counts(self.config, self.head)

    @nn.nowrap
    def flops_per_row(self, length: int, source_length: int = 0) -> Flops:
        return costs.flops_per_row(self.config, self.head, length, source_length)

    @nn.nowrap
    def attention_kernels(self, length: int, source_length: int = 0) -> str:
        towers = costs.towers(self.config, self.head, length, source_length)
        return " and ".join(sorted({name for each in towers for name in costs.kernels(self.config, each, self.kernel)}))

    @nn.nowrap
    def activation_bytes(self, length: int, source_length: int, tensor: int) -> float:
        return costs.activation_bytes(self.config, self.head, length, source_length, tensor, self.kernel)


class OneTower(Transformer):
    """A Transformer with a token embedding, one tower and a head."""

    causal: ClassVar[bool]

    def setup(self) -> None:
        config = self.config
        self.token_embedding = Embedding(config.vocab_size, config, ("vocab", "embed"))
        if config.token_types:
            self.type_embedding = Embedding(config.token_types, config, ("positions", "embed"))
        self.tower = Tower(config, causal=self.causal, kernel=self.kernel)
        for each in (self.tower, self.head):
            nn.share_scope(self, each)  # puts their parameters at the same level as the embedding

    def __call__(self, batch: Batch, train: bool = False, cache: Cache | None = None) -> Output:
        """Returns the output of the head. See `lm.models.protocol.Model.apply`."""
        assert cache is None or self.causal, "an encoder does not support a cache"
        two_texts = self.head.texts_per_row == 2
        if two_texts:
            batch = with_paired_texts(batch)
        x_BLD = self.token_embedding(batch.tokens)
        if self.config.token_types:
            types_BL = jnp.zeros_like(batch.tokens) if batch.types is None else batch.types
            x_BLD = x_BLD + self.type_embedding(types_BL)
        x_BLD, cache = self.tower(x_BLD, batch, train, cache)
        output = self.head(self.config, self.token_embedding, x_BLD, batch, train, DROPOUT_BESIDE_A_TOWER)
        if two_texts:
            return of_paired_texts(output)
        return dataclasses.replace(output, cache=cache)

    @property
    def text_layers(self) -> int:
        return self.config.num_layers

    @nn.nowrap
    def token_vectors(self, variables: Any, batch: Batch, layer: int) -> Array:
        assert 0 <= layer <= self.text_layers, (layer, self.text_layers)
        count = max(layer, 1)  # the blocks above the layer are omitted
        config = dataclasses.replace(self.config, num_layers=count)
        params = {
            name: jax.tree.map(lambda x: x[:count], each) if name == STACK_NAME else each
            for name, each in variables["params"].items()
        }
        model = self.clone(config=config, head=TokenVectors())
        output, recorded = model.apply({"params": params}, batch, mutable=[RECORD])
        if layer == self.text_layers:
            return output.logits
        (x_BLD,) = recorded[RECORD][LAST_BLOCK if layer else EMBEDDED]
        return x_BLD.astype(jnp.float32)


class Decoder(OneTower):
    """A decoder-only Transformer (GPT-2, Llama): each token attends to itself and earlier tokens."""

    causal: ClassVar[bool] = True


class Encoder(OneTower):
    """An encoder-only Transformer (BERT, RoBERTa, ModernBERT): each token attends to its whole segment."""

    causal: ClassVar[bool] = False


class EncoderDecoder(Transformer):
    """An encoder-decoder Transformer (Vaswani 2017, T5, BART).

    A batch has a source only if the head predicts text. If the head does not predict text, the encoder and the decoder
    read the same text. With model.shift_decoder, the decoder reads the text shifted right, as in BART.
    """

    def setup(self) -> None:
        config, axes = self.config, ("vocab", "embed")
        self.token_embedding = Embedding(config.vocab_size, config, axes)
        if not config.share_embeddings:
            self.source_embedding = Embedding(config.source_vocab_size or config.vocab_size, config, axes)
        encoder_config = dataclasses.replace(config, num_layers=config.num_encoder_layers)
        self.encoder = Tower(encoder_config, causal=False, kernel=self.kernel)
        self.decoder = Tower(config, causal=True, cross=True, kernel=self.kernel)
        nn.share_scope(self, self.head)  # puts the parameters of the head at the same level as the embedding

    @property
    def reads_source(self) -> bool:
        return self.head.predicts_text

    def __call__(self, batch: Batch, train: bool = False, cache: Cache | None = None) -> Output:
        """Returns the output of the head for the target. See `lm.models.protocol.Model.apply`.

        During decoding, the first call passes `batch.source` and an empty cache, and the returned cache stores the
        source. Later calls pass batch.source=None and the next tokens of each row. If there are fewer sources than
        rows, each source is shared by the same number of consecutive rows.
        """
        source, tokens_BL = batch.source, batch.tokens
        if not self.reads_source:
            assert source is None and cache is None
            source = Source(batch.tokens, batch.positions, batch.segments)
            tokens_BL = shifted_right(tokens_BL, batch.segments) if self.config.shift_decoder else tokens_BL
        encoded = None if source is None else (self.encode(source, train), source.segments)
        return self.decode(tokens_BL, encoded, batch, train, cache)

    def encode(self, source: Source, train: bool) -> Array:
        """Returns the output of the encoder, (B, S, D)."""
        embed = self.token_embedding if self.config.share_embeddings else self.source_embedding
        x_BSD, _ = self.encoder(embed(source.tokens), source, train)
        return x_BSD

    def decode(
        self, tokens_BL: Array, encoded: tuple[Array, Array] | None, batch: Batch, train: bool, cache: Cache | None
    ) -> Output:
        """Returns the output of the head.

        Args:
            encoded: the vectors (B, S, D) to which the decoder attends and their segments; None if the cache holds
                their keys and values.
        """
        x_source = None
        if encoded is not None:
            x_source, source_segments = encoded
            if cache is not None:
                cache = dataclasses.replace(cache, source_segments=source_segments)
        else:
            assert cache is not None and cache.source_segments is not None, "no source in the batch or the cache"
            rows_per_source = batch.shape[0] // cache.source_segments.shape[0]
            source_segments = jnp.repeat(cache.source_segments, rows_per_source, axis=0)
        # The fused kernels return no attention weights, so they are not used while weights are recorded.
        plain = cache is not None or self.is_mutable_collection(RECORD)
        kernel = kernel_for_call(self.kernel, batch.shape[1], source_segments.shape[1], cached=plain)
        mask_BLS = None if kernel in FUSED else same_segment(batch.segments, source_segments)
        memory = Memory(x_source, source_segments, mask_BLS, kernel)
        x_BLD, cache = self.decoder(self.token_embedding(tokens_BL), batch, train, cache, memory)
        output = self.head(self.config, self.token_embedding, x_BLD, batch, train, DROPOUT_ALONE)
        return dataclasses.replace(output, cache=cache)

    @property
    def text_layers(self) -> int:
        return self.config.num_encoder_layers

    @nn.nowrap
    def token_vectors(self, variables: Any, batch: Batch, layer: int) -> Array:
        """Returns the token vectors of the encoder, which is run as a standalone `Encoder`."""
        encoder, variables = encoder_alone(self, Encoder, variables)
        return encoder.token_vectors(variables, batch, layer)
