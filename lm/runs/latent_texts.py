"""Generates texts from an autoencoder's latent vectors: samples of the prior, or points between two texts."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Source
from lm.decoding.beam import BeamSettings
from lm.decoding.inputs import model_batch, pad_sources, place_whole, rows_for_mesh
from lm.decoding.lines import in_one_line
from lm.decoding.sampling import Sampling, row_keys
from lm.decoding.text import SourceDecoder
from lm.errors import UserError
from lm.models.latents import Autoencoder, LatentDecoder
from lm.models.protocol import Model
from lm.parallel.mesh import on_mesh
from lm.reporting.progress import counting
from lm.runs.generation import Generator, Translation, encoded_sources, longest_output
from lm.runs.prepare import load_tokenizers


def linear(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Returns the point a fraction `share` (0 to 1) of the way along the straight line from `one` to `other`."""
    return (1 - share) * one + share * other


def spherical(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Returns the point a fraction `share` (0 to 1) of the way along the arc from `one` to `other`.

    This is slerp (Shoemake 1985). Almost all draws from the prior have about the same norm. The points on an arc
    between two draws keep this norm; the points on a straight line do not (White 2016). If the vectors are parallel,
    the point lies on the straight line.
    """
    cosine = np.sum(one * other) / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12)
    angle = float(np.arccos(np.clip(cosine, -1, 1)))
    if np.sin(angle) < 1e-6:
        return linear(one, other, share)
    return (np.sin((1 - share) * angle) * one + np.sin(share * angle) * other) / np.sin(angle)


OF_LATENTS = 2**32 - 1  # folded into the key of a text to draw its latent vectors
# How a walk interpolates between two vectors of shape (k, Z).
WALKS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {"linear": linear, "spherical": spherical}


def sample_prior(run: Generator, settings: BeamSettings | Sampling) -> Translation:
    """Decodes `run.num_samples` draws from the prior. Each draw depends only on the seed and the index of the draw.

    Raises UserError if the model is not variational, since only variational autoencoders have a prior.
    """
    config = run.config
    if not config.model.variational:
        problem = "this autoencoder has no prior to sample from (model.variational=False)"
        raise UserError(f"--from_prior: {problem}; give two prompts and --walk, or a source.")
    keys_N = row_keys(run.seed, np.arange(run.num_samples), np.zeros(run.num_samples))
    shape = config.model.latent_vectors, config.model.latent_size
    # The decoder derives the keys for sampling tokens from the same keys, by folding in the positions of the tokens.
    latents_NkZ = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, OF_LATENTS), shape, jnp.float32))(
        keys_N
    )
    return _decoded(run, settings, lambda model, params: latents_NkZ, run.num_samples)


def walk(run: Generator, settings: BeamSettings | Sampling, texts: Sequence[str], how: str, points: int) -> Translation:
    """Decodes `points` points on a path between the latent vectors of two texts, including both ends of the path.

    Args:
        how: a key of WALKS.
    """
    config = run.config
    if len(texts) != 2:
        raise UserError(f"--walk={how}: a walk needs two texts, but {len(texts)} were given; give two --prompt flags.")
    tokenizer = load_tokenizers(config, run.directory.root).source
    numbers, ids = encoded_sources(run, tokenizer, texts, None)
    if missing := [number for number in (1, 2) if number not in numbers]:
        raise UserError(f"--walk={how}: prompt {missing[0]} is empty; give two texts.")

    def between(model: Model, params: Any) -> Array:
        one, other = mean_latents(model, params, ids, tokenizer.pad_id)
        return np.stack([WALKS[how](one, other, share) for share in np.linspace(0, 1, points)]).astype(np.float32)

    return _decoded(run, settings, between, points)


def mean_latents(model: Any, params: Any, sources: Sequence[Sequence[int]], pad_id: int) -> np.ndarray:
    """Returns the latent vectors of N sources (the means, if the model is variational), float32 (N, k, Z).

    The sources are token ids, including special tokens.
    """
    source = pad_sources(sources, rows_for_mesh(len(sources)), model.max_source_length, pad_id)
    return np.asarray(_mean_latents(model, params, source))[: len(sources)]


@functools.partial(jax.jit, static_argnums=0)
def _mean_latents(model: Any, params: Any, source: Source) -> Array:
    none_B1 = jnp.zeros((source.tokens.shape[0], 1), jnp.int32)
    batch = model_batch(none_B1, none_B1, none_B1, source)
    return place_whole(model.apply({"params": params}, batch).latents.mean)


def _decoded(
    run: Generator, settings: BeamSettings | Sampling, latents: Callable[[Model, Any], Array], count: int
) -> Translation:
    """Decodes each of the `count` latents returned by `latents(model, parameters)` into one line of text."""
    tokenizer = load_tokenizers(run.config, run.directory.root).target
    batch_size = min(count, run.batch_size or run.config.eval.generation.batch_size)
    model, params, mesh = run.load(batch_size)
    began = time.monotonic()
    with on_mesh(mesh), counting(count, "texts") as report:
        both = {"model": params, "latents": latents(model, params)}
        from_latents: Any = LatentDecoder(cast(Autoencoder, model))
        decoder = SourceDecoder(from_latents, both, tokenizer, batch_size, report)
        sources = [[index] for index in range(count)]
        if isinstance(settings, Sampling):
            found = [
                texts[0] for texts in decoder.sample(sources, settings, longest_output(run, settings), run.seed, 1)
            ]
        else:
            found = [outputs[0][0] for outputs in decoder.search(sources, settings)]
    return Translation(map(in_one_line, found), count, time.monotonic() - began)
