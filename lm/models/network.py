"""The base class of models that are Flax modules with a token embedding and a head."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output, Source, same_segment
from lm.config import ModelConfig
from lm.models.heads import Head, TokenVectors
from lm.models.layers import activation_dtype

# The Flax collection that records layer outputs and attention weights if it is mutable, and the names of its entries.
RECORD, LAYERS, SOURCE_WEIGHTS = "intermediates", "layer_outputs", "source_weights"
N = TypeVar("N", bound="Network")
# Names of the head's dropout layer. They determine its PRNG keys, so they must not change.
DROPOUT_BESIDE_A_TOWER, DROPOUT_ALONE = "Dropout_1", "Dropout_0"


class Network(nn.Module):
    """A model that is a Flax module. `lm.models.protocol.Model` documents the methods."""

    config: ModelConfig
    head: Head

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_length(self) -> int:
        return self.config.max_length

    @property
    def max_source_length(self) -> int | None:
        return None

    @property
    def activation_dtype(self) -> str:
        return activation_dtype(self.config)

    @property
    def reads_source(self) -> bool:
        return self.head.texts_per_row == 2

    @nn.nowrap
    def initial_params(self, key: Array) -> dict[str, Any]:
        assert self.config.vocab_size > 0, "vocab_size must be resolved before parameters are created"
        ids = jnp.zeros((1, 2), jnp.int32)
        source = Source(ids, ids, ids + 1) if self.reads_source else None
        batch = Batch(ids, ids, ids.astype(jnp.float32), positions=ids, segments=ids + 1, source=source)
        return self.init({"params": key}, batch)["params"]

    @nn.nowrap
    def attention_kernels(self, length: int, source_length: int = 0) -> str:
        return "none"

    @staticmethod
    def embedded(variables: Any, batch: Batch) -> Array:
        """Returns the embeddings of the tokens, float32 (B, L, E)."""
        embedding_VE = variables["params"]["token_embedding"]["embedding"]
        return jnp.take(embedding_VE, batch.tokens, axis=0).astype(jnp.float32)


def encoder_alone(model: Network, cls: type[N], variables: Any) -> tuple[N, dict[str, Any]]:
    """Returns the encoder of an encoder-decoder as a standalone model of class `cls`, together with its variables."""
    config, params = model.config, variables["params"]
    name, size = "token_embedding", config.vocab_size
    if not config.share_embeddings:
        name, size = "source_embedding", config.source_vocab_size or size
    config = dataclasses.replace(config, num_layers=config.num_encoder_layers, vocab_size=size)
    return cls(config, TokenVectors()), {"params": {**params["encoder"], "token_embedding": params[name]}}


def with_paired_texts(batch: Batch) -> Batch:
    """Appends the paired texts to the batch as extra rows, so that the same parameters process both texts of a pair."""
    source = batch.source
    assert source is not None and source.tokens.shape == batch.shape, "each row needs a paired text of the same length"
    texts = Source(batch.tokens, batch.positions, batch.segments)
    both = jax.tree.map(lambda *sides: jnp.concatenate(sides), texts, source)
    return dataclasses.replace(batch, **vars(both), types=None, source=None)


def of_paired_texts(output: Output) -> Output:
    """Splits the output for a batch from `with_paired_texts` into results for the texts and for the paired texts."""
    rows = output.embedding.shape[0] // 2
    return Output(embedding=output.embedding[:rows], paired_embedding=output.embedding[rows:])


def shifted_right(tokens_BL: Array, segments_BL: Array) -> Array:
    """Returns each text shifted right by one token. The last token, normally EOS, moves to the start."""
    same_BLS = same_segment(segments_BL, segments_BL)
    last_BL = tokens_BL.shape[1] - 1 - jnp.argmax(same_BLS[:, :, ::-1], axis=-1)
    starts_BL = jnp.pad(segments_BL, ((0, 0), (1, 0)))[:, :-1] != segments_BL
    return jnp.where(starts_BL, jnp.take_along_axis(tokens_BL, last_BL, axis=1), jnp.roll(tokens_BL, 1, axis=1))
