"""The wirings around the stack: embeddings in, logits out. Decoder-only and encoder-decoder."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Batch, Source
from lm.config import ModelConfig
from lm.models.attention import AttentionContext, Memory, attention_mask
from lm.models.attention_kernels import choose_backend, kernel_for_call
from lm.models.cache import Cache, write_segments
from lm.models.layers import Dense, Embedding, Norm, compute_dtype
from lm.models.positions import RelativeBias, rotary, sinusoidal
from lm.models.stack import run_stack


@flax.struct.dataclass
class Output:
    logits: Array  # (B, L, V) float32
    cache: Cache | None


class Decoder(nn.Module):
    """A decoder-only Transformer language model (GPT-2, Llama and what lies between)."""

    config: ModelConfig
    backend: str = "xla"

    @nn.compact
    def __call__(self, batch: Batch, train: bool = False, cache: Cache | None = None) -> Output:
        """Logits for every token of the batch.

        With a cache, the batch holds the next tokens of each row: their positions say which slots
        they take, and they attend to what the cache already holds. Dropout needs rngs={"dropout": key}.
        """
        config = self.config
        embed = Embedding(config.vocab_size, config, ("vocab", "embed"), name="token_embedding")
        x_BLD, cache = run_tower(config, self.backend, embed(batch.tokens), batch, train, cache, causal=True)
        output = None if config.tie_embeddings else output_product(config, name="output")
        return Output(logits_of(config, embed, output, x_BLD), cache)


class Tower(nn.Module):
    """`run_tower` with parameters of its own."""

    config: ModelConfig
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

    config: ModelConfig

    def setup(self) -> None:
        config, axes = self.config, ("vocab", "embed")
        encoder = dataclasses.replace(config, num_layers=config.num_encoder_layers)
        self.token_embedding = Embedding(config.vocab_size, config, axes)
        if not config.share_embeddings:
            self.source_embedding = Embedding(config.source_vocab_size or config.vocab_size, config, axes)
        self.encoder = Tower(encoder, causal=False)
        self.decoder = Tower(config, causal=True)
        if not config.tie_embeddings:
            self.output = output_product(config)

    def __call__(self, batch: Batch, train: bool = False, cache: Cache | None = None) -> Output:
        """Logits for every token of the target side of the batch.

        Decoding: the first call has `batch.source` and an empty cache, which takes up the source; later ones
        have batch.source=None and the next tokens of each row (of which k in a row may share a source).
        """
        config, source = self.config, batch.source
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
        output = None if config.tie_embeddings else self.output
        return Output(logits_of(config, self.token_embedding, output, x_BLD), cache)


Model = Decoder | EncoderDecoder


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
    mask_BLS = None
    if kernel == "xla":
        mask_BLS = attention_mask(
            positions_BL, segments_BL, key_positions_BS, key_segments_BS, causal=causal, window=config.window
        )
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
        mask=mask_BLS,
        rotation=rotary(positions_BL, config) if config.positions == "rotary" else None,
        bias=bias_BHLS,
        memory=memory,
    )
    layers = None if cache is None else cache.layers
    x_BLD, layers = run_stack(config, kernel, train, x_BLD, layers, context, cross=memory is not None)
    if config.norm_position == "pre":
        x_BLD = Norm(config, name="final_norm")(x_BLD)
    return x_BLD, None if cache is None else dataclasses.replace(cache, layers=layers, segments=key_segments_BS)


def output_product(config: ModelConfig, name: str | None = None) -> Dense:
    """From the last layer to the vocabulary, where the embedding does not serve for that too."""
    sizes, axes = ((config.d_model,), (config.vocab_size,)), ("embed", "vocab")
    std = config.init_std or config.d_model**-0.5
    return Dense(*sizes, axes, False, compute_dtype(config), std, name=name)


def logits_of(config: ModelConfig, embed: Embedding, output: Dense | None, x_BLD: Array) -> Array:
    """(B, L, V) float32."""
    logits_BLV = embed.attend(x_BLD) if output is None else output(x_BLD).astype(jnp.float32)
    return nn.with_logical_constraint(logits_BLV, ("batch", "length", "vocab"))


def build_model(config: ModelConfig, platform: str | None = None) -> Model:
    """The model of a config, with the attention kernel for a platform ("cpu", "gpu", "tpu"; the default device's).

    Raises UserError if config.attention names a kernel that the platform or the model cannot use.
    """
    assert config.vocab_size > 0, "vocab_size is resolved from the tokenizer before a model is built"
    if config.family == "encoder_decoder":
        return EncoderDecoder(config)
    return Decoder(config, choose_backend(config, platform))


def initial_params(model: Model, key: Array) -> dict[str, Any]:
    """Parameters boxed with their logical axes (`nn.unbox` gives plain arrays)."""
    ids = jnp.zeros((1, 2), jnp.int32)
    batch = Batch(tokens=ids, targets=ids, weights=ids.astype(jnp.float32), positions=ids, segments=ids + 1)
    if isinstance(model, EncoderDecoder):
        batch = dataclasses.replace(batch, source=Source(tokens=ids, positions=ids, segments=ids + 1))
    else:
        model = model.clone(backend="xla")  # no weight depends on the kernel
    return model.init({"params": key}, batch)["params"]


def count_parameters(params: dict) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
