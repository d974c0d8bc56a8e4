"""The wirings around the stack, embeddings in, a head's output out: decoder-only, encoder-decoder, encoder-only."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Batch, Output, Source
from lm.config import ModelConfig
from lm.models.heads import Head, HeadedConfig, with_head
from lm.models.transformer.attention import AttentionContext, Memory, attention_mask
from lm.models.transformer.attention_kernels import choose_backend, kernel_for_call
from lm.models.transformer.cache import Cache, write_segments
from lm.models.transformer.heads import run_head
from lm.models.transformer.layers import Embedding, Norm, compute_dtype
from lm.models.transformer.positions import RelativeBias, Rotation, rotary, sinusoidal
from lm.models.transformer.stack import run_stack


class Decoder(nn.Module):
    """A decoder-only Transformer: a language model (GPT-2, Llama and what lies between), or another head on one."""

    config: HeadedConfig
    backend: str = "xla"

    @nn.compact
    def __call__(self, batch: Batch, train: bool = False, cache: Cache | None = None) -> Output:
        """What the head gives for every token of the batch.

        With a cache, the batch holds the next tokens of each row: their positions say which slots
        they take, and they attend to what the cache already holds. Dropout needs rngs={"dropout": key}.
        """
        return run_single_stack(self.config, self.backend, batch, train, cache, causal=True)


class Encoder(nn.Module):
    """An encoder-only Transformer (BERT, RoBERTa, ModernBERT): each token sees all of its segment."""

    config: HeadedConfig

    @nn.compact
    def __call__(self, batch: Batch, train: bool = False, cache: None = None) -> Output:
        assert cache is None, "an encoder sees all at once"
        return run_single_stack(self.config, "xla", batch, train, None, causal=False)


def run_single_stack(
    config: HeadedConfig, backend: str, batch: Batch, train: bool, cache: Cache | None, *, causal: bool
) -> Output:
    """Embeddings, stack and head; call it inside a compact module."""
    rows = batch.shape[0]
    if config.head == "embedding":
        batch = _with_partners(batch)
    embed = Embedding(config.vocab_size, config, ("vocab", "embed"), name="token_embedding")
    x_BLD = embed(batch.tokens)
    if config.token_types:
        types = Embedding(config.token_types, config, ("positions", "embed"), name="type_embedding")
        x_BLD = x_BLD + types(jnp.zeros_like(batch.tokens) if batch.types is None else batch.types)
    x_BLD, cache = run_tower(config, backend, x_BLD, batch, train, cache, causal=causal)
    output = run_head(config, embed, x_BLD, batch, train)
    if config.head == "embedding":
        both_BD: Array = output.embedding
        return Output(embedding=both_BD[:rows], source_embedding=both_BD[rows:])
    return dataclasses.replace(output, cache=cache)


def _with_partners(batch: Batch) -> Batch:
    """The texts and their partners as rows of one batch: the same parameters read both."""
    source = batch.source
    assert source is not None and source.tokens.shape == batch.shape, "a partner of the same length for each row"

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


class Tower(nn.Module):
    """`run_tower` with parameters of its own."""

    config: HeadedConfig
    causal: bool

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        tokens: Batch | Source,
        train: bool,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> tuple[Array, Cache | None]:
        return run_tower(self.config, "xla", x_BLD, tokens, train, cache, causal=self.causal, memory=memory)


class EncoderDecoder(nn.Module):
    """An encoder-decoder Transformer (Vaswani 2017, T5, BART)."""

    config: HeadedConfig

    def setup(self) -> None:
        config, axes = self.config, ("vocab", "embed")
        encoder = dataclasses.replace(config, num_layers=config.num_encoder_layers)
        self.token_embedding = Embedding(config.vocab_size, config, axes)
        if not config.share_embeddings:
            self.source_embedding = Embedding(config.source_vocab_size or config.vocab_size, config, axes)
        self.encoder = Tower(encoder, causal=False)
        self.decoder = Tower(config, causal=True)

    @nn.compact
    def __call__(self, batch: Batch, train: bool = False, cache: Cache | None = None) -> Output:
        """What the head gives for every token of the target side of the batch.

        Decoding: the first call has `batch.source` and an empty cache, which takes up the source; later ones
        have batch.source=None and the next tokens of each row (of which k in a row may share a source).
        With a head of its own a batch has no source: both sides read the same text, as BART does it.
        """
        config, source = self.config, batch.source
        if config.head != "tokens":
            assert source is None and cache is None
            source = Source(tokens=batch.tokens, positions=batch.positions, segments=batch.segments)
        x_source = None
        if source is not None:
            embed = self.token_embedding if config.share_embeddings else self.source_embedding
            x_source, _ = self.encoder(embed(source.tokens), source, train)
            if cache is not None:
                cache = dataclasses.replace(cache, source_segments=source.segments)
            source_segments = source.segments
        else:
            assert cache is not None and cache.source_segments is not None, "there is no source"
            source_segments = jnp.repeat(
                cache.source_segments, batch.shape[0] // cache.source_segments.shape[0], axis=0
            )
        mask_BLS = (batch.segments[:, :, None] == source_segments[:, None, :]) & (source_segments[:, None, :] > 0)
        memory = Memory(x=x_source, mask=mask_BLS)
        x_BLD, cache = self.decoder(self.token_embedding(batch.tokens), batch, train, cache, memory)
        output = run_head(config, self.token_embedding, x_BLD, batch, train)
        return dataclasses.replace(output, cache=cache)


Model = Decoder | EncoderDecoder | Encoder


def run_tower(
    config: ModelConfig,
    backend: str,
    x_BLD: Array,
    tokens: Batch | Source,
    train: bool,
    cache: Cache | None,
    *,
    causal: bool,
    memory: Memory | None = None,
) -> tuple[Array, Cache | None]:
    """Embedded tokens through positions, blocks and final norm; call it inside a compact module."""
    dtype = compute_dtype(config)
    positions_BL, segments_BL = tokens.positions, tokens.segments
    if config.scale_embeddings:
        x_BLD = x_BLD * jnp.asarray(math.sqrt(config.d_model), dtype)
    if config.positions == "learned":
        table = Embedding(config.max_length, config, ("positions", "embed"), name="position_embedding")
        x_BLD = x_BLD + table(positions_BL)
    elif config.positions == "sinusoidal":
        x_BLD = x_BLD + sinusoidal(positions_BL, config.d_model).astype(dtype)
    if config.norm_embeddings:
        x_BLD = Norm(config, name="embedding_norm")(x_BLD)
    x_BLD = nn.Dropout(config.dropout, deterministic=not train)(x_BLD)

    if cache is None:
        key_positions_BS, key_segments_BS = positions_BL, segments_BL
    else:
        key_segments_BS = write_segments(cache, segments_BL, positions_BL)
        key_positions_BS = jnp.broadcast_to(jnp.arange(key_segments_BS.shape[1])[None], key_segments_BS.shape)
    kernel = kernel_for_call(backend, positions_BL.shape[1], cached=cache is not None)
    ways = [(config.window, config.rotary_theta)]  # window and base of the angles; the second of layers with a window
    if config.global_every:
        ways = [(0, config.rotary_theta), (config.window, config.local_rotary_theta or config.rotary_theta)]
    masks: list[Array | None] = [None for _ in ways]
    if kernel == "xla":
        places = positions_BL, segments_BL, key_positions_BS, key_segments_BS
        masks = [attention_mask(*places, causal=causal, window=window) for window, _ in ways]
    rotations: list[Rotation | None] = [None for _ in ways]
    if config.positions == "rotary":
        rotations = [rotary(positions_BL, config.head_dim, theta) for _, theta in ways]
    bias_BHLS = None
    if config.positions == "relative":
        relative_bias = RelativeBias(config, causal, name="relative_bias")
        if cache is None:
            # Within a segment positions follow one another, so that places in the row differ by the same.
            places_1L = np.arange(positions_BL.shape[1])[None]
            bias_BHLS = relative_bias(places_1L, places_1L)
        else:
            bias_BHLS = relative_bias(positions_BL, key_positions_BS)
    context = AttentionContext(
        positions=positions_BL,
        segments=segments_BL,
        mask=masks[0],
        rotation=rotations[0],
        local=(masks[1], rotations[1]) if config.global_every else None,
        bias=bias_BHLS,
        memory=memory,
    )
    layers = None if cache is None else cache.layers
    x_BLD, layers = run_stack(config, kernel, train, x_BLD, layers, context, cross=memory is not None)
    if config.norm_position == "pre":
        x_BLD = Norm(config, name="final_norm")(x_BLD)
    return x_BLD, None if cache is None else dataclasses.replace(cache, layers=layers, segments=key_segments_BS)


def build_model(config: ModelConfig, head: Head | None = None, platform: str | None = None) -> Model:
    """The model of a config, with the attention kernel for a platform ("cpu", "gpu", "tpu"; the default device's).

    Raises UserError if config.attention names a kernel that the platform or the model cannot use.
    """
    config = with_head(config, head)
    assert config.vocab_size > 0, "vocab_size is resolved from the tokenizer before a model is built"
    if config.family == "encoder_decoder":
        return EncoderDecoder(config)
    if config.family == "encoder":
        return Encoder(config)
    return Decoder(config, choose_backend(config, platform))


def initial_params(model: Model, key: Array) -> dict[str, Any]:
    """Parameters boxed with their logical axes (`nn.unbox` gives plain arrays)."""
    ids = jnp.zeros((1, 2), jnp.int32)
    batch = Batch(tokens=ids, targets=ids, weights=ids.astype(jnp.float32), positions=ids, segments=ids + 1)
    needs_source = isinstance(model, EncoderDecoder) and model.config.head == "tokens"
    if needs_source or model.config.head == "embedding":
        batch = dataclasses.replace(batch, source=Source(tokens=ids, positions=ids, segments=ids + 1))
    if isinstance(model, Decoder):
        model = model.clone(backend="xla")  # no weight depends on the kernel
    return model.init({"params": key}, batch)["params"]


def count_parameters(params: dict) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
