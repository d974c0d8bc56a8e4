"""The wiring around the stack: embeddings in, logits out. Decoder-only so far."""

from __future__ import annotations

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.batch import Array, Batch
from lm.config import ModelConfig
from lm.models.attention import AttentionContext, attention_mask
from lm.models.attention_kernels import choose_backend, kernel_for_call
from lm.models.cache import Cache, write_segments
from lm.models.layers import Dense, Embedding, Norm, compute_dtype
from lm.models.positions import rotary, sinusoidal
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
        config, dtype = self.config, compute_dtype(self.config)
        embed = Embedding(config.vocab_size, config, ("vocab", "embed"), name="token_embedding")
        x_BLD = embed(batch.tokens)
        if config.scale_embeddings:
            x_BLD = x_BLD * jnp.asarray(math.sqrt(config.d_model), dtype)
        if config.positions == "learned":
            table = Embedding(config.max_length, config, ("positions", "embed"), name="position_embedding")
            x_BLD = x_BLD + table(batch.positions)
        elif config.positions == "sinusoidal":
            x_BLD = x_BLD + sinusoidal(batch.positions, config.d_model).astype(dtype)
        x_BLD = nn.Dropout(config.dropout, deterministic=not train)(x_BLD)

        if cache is None:
            key_positions, key_segments = batch.positions, batch.segments
        else:
            key_segments = write_segments(cache, batch.segments, batch.positions)
            key_positions = jnp.broadcast_to(jnp.arange(key_segments.shape[1])[None], key_segments.shape)
        kernel = kernel_for_call(self.backend, batch.tokens.shape[1], cached=cache is not None)
        mask_BLS = None
        if kernel == "xla":
            mask_BLS = attention_mask(
                batch.positions, batch.segments, key_positions, key_segments, causal=True, window=config.window
            )
        context = AttentionContext(
            positions=batch.positions,
            segments=batch.segments,
            mask=mask_BLS,
            rotation=rotary(batch.positions, config) if config.positions == "rotary" else None,
        )
        layers = None if cache is None else cache.layers
        x_BLD, layers = run_stack(config, kernel, train, x_BLD, layers, context)
        if config.norm_position == "pre":
            x_BLD = Norm(config, name="final_norm")(x_BLD)
        if config.tie_embeddings:
            logits_BLV = embed.attend(x_BLD)
        else:
            output = Dense(
                (config.d_model,),
                (config.vocab_size,),
                ("embed", "vocab"),
                False,
                dtype,
                config.init_std,
                name="output",
            )
            logits_BLV = output(x_BLD).astype(jnp.float32)
        logits_BLV = nn.with_logical_constraint(logits_BLV, ("batch", "length", "vocab"))
        new_cache = None if cache is None else Cache(layers=layers, segments=key_segments)
        return Output(logits=logits_BLV, cache=new_cache)


def build_model(config: ModelConfig, platform: str | None = None) -> Decoder:
    """The model of a config, with the attention kernel for a platform ("cpu", "gpu", "tpu"; the default device's).

    Raises UserError if config.attention names a kernel that the platform or the model cannot use.
    """
    assert config.vocab_size > 0, "vocab_size is resolved from the tokenizer before a model is built"
    return Decoder(config, choose_backend(config, platform))


def initial_params(model: Decoder, key: Array) -> dict:
    """Parameters boxed with their logical axes (`nn.unbox` gives plain arrays)."""
    ids = jnp.zeros((1, 2), jnp.int32)
    batch = Batch(tokens=ids, targets=ids, weights=ids.astype(jnp.float32), positions=ids, segments=ids + 1)
    return model.clone(backend="xla").init({"params": key}, batch)["params"]  # no weight depends on the kernel


def count_parameters(params: dict) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
