"""Autoencoders: all that the decoder knows of a source is its latent vectors. Caching, drawing, and costs."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lm.batch import Batch, Latents, Source
from lm.config import ModelConfig
from lm.models import build_model
from lm.models.bottleneck import NOISE, drawn, noise
from lm.models.heads import NextToken, Reconstruction
from lm.models.latents import DrawnLatents, LatentDecoder, MeanLatents
from lm.models.parameters import count_parameters
from tests.small_model import random_params, small_config

V, D, k, Z = 19, 8, 2, 3
LATENT = {"latent_size": Z, "latent_vectors": k, "variational": True, "family": "encoder_decoder"}
RECURRENT = ModelConfig(
    architecture="recurrent", vocab_size=V, max_length=9, num_layers=2, num_encoder_layers=1, d_model=D, **LATENT
)
CONFIGS = {
    "transformer": small_config(V, 9, num_layers=2, d_model=D, num_encoder_layers=1, **LATENT),
    "lstm": dataclasses.replace(RECURRENT, source_attention="none", embedding_width=6),
    "gru": dataclasses.replace(RECURRENT, cell="gru", share_embeddings=False),
}


@functools.cache
def model_and_params(name):
    model = build_model(CONFIGS[name], Reconstruction())
    return model, random_params(model, deviation=0.5, scale=1.0)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, batch, **arguments):
    return model.apply({"params": params}, batch, **arguments)


def side(texts, length):
    tokens, segments = np.zeros((2, len(texts), length), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], segments[row, : len(text)] = text, 1
    return tokens, np.tile(np.arange(length, dtype=np.int32), (len(texts), 1)), segments


def batch_of(targets, sources, source_length=6):
    tokens, positions, segments = side(targets, 5)
    source = Source(*side(sources, source_length))
    return Batch(tokens, tokens, segments.astype(np.float32), positions, segments, source)


def texts(seed, *lengths):
    random = np.random.default_rng(seed)
    return [random.integers(4, V, length).tolist() for length in lengths]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_source_reaches_the_output_only_through_the_latent_vectors(name):
    model, params = model_and_params(name)
    targets = texts(0, 5, 3, 4)
    one, other = (batch_of(targets, texts(seed, 6, 4, 2)) for seed in (1, 2))
    found, others = apply(model, params, one), apply(model, params, other)
    assert np.abs(found.logits - others.logits).max() > 0.01, "other sources have other outputs"
    assert np.abs(found.latents.mean - others.latents.mean).max() > 0.01
    given = apply(model, params, other, latents=found.latents.mean)
    np.testing.assert_array_equal(given.logits, found.logits)
    # Padding after a source changes nothing.
    longer = apply(model, params, batch_of(targets, texts(1, 6, 4, 2), source_length=9))
    np.testing.assert_allclose(longer.latents.mean, found.latents.mean, atol=1e-6)
    np.testing.assert_allclose(longer.logits, found.logits, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_decoding_matches_the_full_forward_and_that_of_given_vectors(name):
    """Two rows share each source."""
    model, params = model_and_params(name)
    targets, sources = texts(3, 5, 5, 5, 5), texts(4, 6, 3)
    full = apply(model, params, batch_of(targets, [sources[0], sources[0], sources[1], sources[1]])).logits
    means = apply(model, params, batch_of(texts(0, 1, 1), sources)).latents.mean
    indices = [[1], [0]]  # into the vectors, which are in reverse order
    decoder, both = LatentDecoder(model), {"model": params, "latents": means[::-1]}
    ones = np.ones((4, 1), np.int32)
    for used, held, read in ((model, params, sources), (decoder, both, indices)):
        nothing = dataclasses.replace(batch_of([[], []], read), tokens=np.zeros((2, 1), np.int32))
        zero = np.zeros((2, 1), np.int32)
        nothing = Batch(zero, zero, zero.astype(np.float32), zero, zero, nothing.source)
        cache = apply(used, held, nothing, cache=used.empty_cache(2, 5, 6)).cache.repeat_rows(2)
        for t in range(5):
            token = np.array([[text[t]] for text in targets], np.int32)
            output = apply(used, held, Batch(token, token, 1.0 * ones, ones * t, ones), cache=cache)
            np.testing.assert_allclose(output.logits[:, 0], full[:, t], atol=2e-5)
            cache = output.cache


@pytest.mark.parametrize("name", CONFIGS)
def test_vectors_are_drawn_from_the_posterior_and_do_not_depend_on_the_row(name):
    model, params = model_and_params(name)
    batch, key = batch_of(texts(0, 5, 3, 4), texts(1, 6, 4, 2)), jax.random.key(7)
    found = apply(model, params, batch, rngs={NOISE: key})
    mean = apply(model, params, batch)
    np.testing.assert_array_equal(found.latents.mean, mean.latents.mean)
    assert np.abs(found.logits - mean.logits).max() > 0.01
    order = np.array([2, 0, 1])
    turned = apply(model, params, jax.tree.map(lambda x: x[order], batch), rngs={NOISE: key})
    np.testing.assert_allclose(turned.logits, found.logits[order], atol=1e-6)
    one, other = (apply(DrawnLatents(model), params, batch).logits for _ in range(2))
    np.testing.assert_array_equal(one, other)
    means = apply(MeanLatents(model), params, batch).logits
    np.testing.assert_array_equal(means[:, 0], found.latents.mean.reshape(3, k * Z))


def test_noise_is_standard_normal_and_differs_between_texts_and_keys():
    source = Source(*side(texts(0, *[6] * 400), 6))
    one = np.asarray(noise(jax.random.key(0), source, (k, Z)))
    assert abs(one.mean()) < 0.05 and abs(one.std() - 1) < 0.05 and len(np.unique(one)) > 0.99 * one.size
    assert np.abs(noise(jax.random.key(1), source, (k, Z)) - one).max() > 1
    latents = Latents(np.full((400, k, Z), 2.0, np.float32), np.full((400, k, Z), np.log(0.25), np.float32))
    np.testing.assert_allclose(drawn(latents, one), 2 + 0.5 * one, atol=1e-5)


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_costs_are_counted(name, variational):
    config = dataclasses.replace(CONFIGS[name], variational=variational)
    model = build_model(config, Reconstruction())
    shapes = jax.eval_shape(lambda: model.initial_params(jax.random.key(0)))
    assert model.parameter_counts().total == count_parameters(shapes)
    # What it adds to an encoder-decoder: pooling 6 vectors, two or three layers, and less attention of the decoder.
    added = 2 * 2 * 6 * k * D + 2 * (2 + variational) * k * D * k * Z
    fewer = 6 - k  # vectors to which each decoder layer attends
    if name == "transformer":
        keys = config.num_kv_heads * config.head_dim
        added -= config.num_layers * 2 * fewer * (2 * D * keys + 2 * 5 * D)
    else:
        states = {"lstm": 2, "gru": 1}[config.cell]
        added += 2 * k * D * (config.num_layers * states * D + (config.embedding_width or D))
    if name == "gru":  # with additive attention
        added -= 2 * fewer * D * D + 2 * 2 * 5 * fewer * D
    plain = build_model(config, NextToken())
    assert model.flops_per_row(5, 6).layers - plain.flops_per_row(5, 6).layers == added
    assert model.flops_per_row(5, 6).head == plain.flops_per_row(5, 6).head
