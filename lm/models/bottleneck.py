"""The bottleneck of an autoencoder: k latent vectors, which are all that the decoder sees of a text.

k learned queries pool the encoder's output by attention, and a linear layer computes the latent vectors from the pooled
vectors. In a variational autoencoder (Kingma 2014), another linear layer computes the logarithms of the variances of
the latent vectors. A final linear layer turns the latent vectors into k vectors of width d_model. These form the
decoder's memory, which takes the place of the encoder's output. A Transformer decoder attends to the memory. A
recurrent decoder computes its initial states and a part of its inputs from the memory and, if it has attention, also
attends to the memory. Each row holds one text.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array, Latents, Source
from lm.config import ModelConfig
from lm.models.heads import Head
from lm.models.layers import Dense, projection

# The PRNG stream of the noise. Unlike the stream "dropout", it has the same key in all microbatches of a step.
NOISE = "latent_noise"


class Bottleneck(nn.Module):
    """Compresses the encoder's output into latent vectors, and expands latent vectors into the decoder's memory."""

    config: ModelConfig

    def setup(self) -> None:
        self.posterior, self.memory = Posterior(self.config), LatentMemory(self.config)

    def __call__(self, x_BSD: Array, source: Source) -> tuple[Array, Latents]:
        """Returns the memory (B, k, D) and the latent vectors of the sources.

        The memory is computed from vectors sampled from the posterior if there is one and the caller passes a key for
        the stream NOISE. Otherwise, it is computed from the means.
        """
        latents = self.posterior(x_BSD, source.segments)
        z_BkZ = latents.mean
        if latents.log_variance is not None and self.has_rng(NOISE):
            z_BkZ = drawn(latents, noise(self.make_rng(NOISE), source, z_BkZ.shape[1:]))
        return self.expand(z_BkZ), latents

    def expand(self, z_BkZ: Array) -> Array:
        return self.memory(z_BkZ)


class Posterior(nn.Module):
    """Compresses the encoder's output into latent vectors."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BSD: Array, segments_BS: Array) -> Latents:
        config, (B, _, D) = self.config, x_BSD.shape
        k, Z = config.latent_vectors, config.latent_size
        scores_BSk = linear(config, "scores", D, k)(x_BSD).astype(jnp.float32)
        weights_BSk = jax.nn.softmax(jnp.where(segments_BS[:, :, None] > 0, scores_BSk, -1e9), axis=1)
        pooled_BkD = jnp.einsum("BSk,BSD->BkD", weights_BSk.astype(x_BSD.dtype), x_BSD)

        def vectors(name: str) -> Array:
            found = linear(config, name, k * D, k * Z)(pooled_BkD.reshape(B, k * D))
            return found.astype(jnp.float32).reshape(B, k, Z)

        return Latents(vectors("mean"), vectors("log_variance") if config.variational else None)


class LatentMemory(nn.Module):
    """Turns latent vectors (B, k, Z) into the memory of the decoder (B, k, D)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, z_BkZ: Array) -> Array:
        B, k, Z = z_BkZ.shape
        D = self.config.d_model
        return linear(self.config, "expand", k * Z, k * D)(z_BkZ.reshape(B, k * Z)).reshape(B, k, D)


def linear(config: ModelConfig, name: str, inputs: int, outputs: int) -> Dense:
    """Returns a linear layer with a bias. It is too small to be worth sharding."""
    return projection(config, name, (inputs,), (outputs,), ("latent", "activation"), use_bias=True)


def linear_cost(inputs: int, outputs: int) -> tuple[int, int]:
    """Returns the number of parameters of `linear` and its FLOPs for one vector."""
    return (inputs + 1) * outputs, 2 * inputs * outputs


def bottleneck_cost(config: ModelConfig, source_length: int) -> tuple[int, int]:
    """Returns the number of parameters of the bottleneck and its FLOPs for a source of `source_length` tokens."""
    k, D, Z = config.latent_vectors, config.d_model, config.latent_size
    scores, vectors, expand = linear_cost(D, k), linear_cost(k * D, k * Z), linear_cost(k * Z, k * D)
    number = 1 + config.variational
    pooling = 2 * source_length * k * D
    return (
        scores[0] + number * vectors[0] + expand[0],
        scores[1] * source_length + pooling + number * vectors[1] + expand[1],
    )


def memory_length(config: ModelConfig, head: Head, source_length: int) -> int:
    """Returns the number of vectors to which a decoder attends for a source of `source_length` tokens."""
    return config.latent_vectors if head.compresses_source and source_length else source_length


def noise(key: Array, source: Source, shape: tuple[int, ...]) -> Array:
    """Returns standard normal noise for the text of each row, float32 (B, *shape).

    The noise of a text depends only on the key and the tokens of the text. It is therefore the same on any mesh and in
    any microbatch.
    """
    values_BS = jnp.where(source.segments > 0, source.tokens, 0).astype(jnp.uint32)
    # Odd factors are invertible modulo 2^32, so changing a single token always changes the sum.
    factors_BS = _mixed(source.positions.astype(jnp.uint32) + 1) | 1
    hash_B = jnp.sum(values_BS * factors_BS, axis=1, dtype=jnp.uint32)
    keys_B = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, hash_B)
    return jax.vmap(lambda each: jax.random.normal(each, shape, jnp.float32))(keys_B)


def _mixed(x: Array) -> Array:
    """Maps each uint32 to a random-looking uint32, using the final mixing steps of MurmurHash3 (Appleby 2011)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def drawn(latents: Latents, noise_BkZ: Array) -> Array:
    """Returns mean + standard deviation * noise, the vectors drawn from the posterior (Kingma 2014, section 2.4)."""
    assert latents.log_variance is not None, "only a variational autoencoder has a posterior to draw from"
    return latents.mean + jnp.exp(0.5 * latents.log_variance) * noise_BkZ


def memory_segments(segments_BS: Array, vectors: int) -> Array:
    """Returns the segments of the memory, int32 (B, k): 1 in rows with a text, 0 in padding rows."""
    return jnp.repeat((segments_BS[:, :1] > 0).astype(jnp.int32), vectors, axis=1)
