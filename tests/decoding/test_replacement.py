"""Rows that ended are replaced by waiting ones: for every kind of cache, and on a mesh, the outputs do not change."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lm.config import MeshConfig, ModelConfig
from lm.decoding import beam_model, loop, rows
from lm.decoding.beam import BeamSettings
from lm.decoding.beam_model import beam_search
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, Vocabulary, row_keys
from lm.models import build_model
from lm.models.heads import NextToken, Reconstruction
from lm.parallel.mesh import make_mesh, on_mesh
from tests.small_model import random_params, small_config

V, LENGTH, NEW = 16, 24, 10
VOCABULARY = Vocabulary(size=V, bos_id=1, eos_id=2, other_stops=(5,))
SAMPLING = Sampling(temperature=1.1, top_p=0.95)
BEAM = BeamSettings(num_beams=2, length_penalty=0.0, max_new_tokens=NEW)
TRANSFORMER = small_config(V, LENGTH, d_model=8, family="encoder_decoder", num_encoder_layers=1)
RECURRENT = ModelConfig(architecture="recurrent", vocab_size=V, max_length=LENGTH, num_layers=1, d_model=8)
LATENT = {"latent_size": 3, "latent_vectors": 2, "variational": True}
PAIRS = {"family": "encoder_decoder", "num_encoder_layers": 1}
CONFIGS = {
    "relative": dataclasses.replace(
        TRANSFORMER, positions="relative", relative_buckets=8, relative_max_distance=12, scan_layers=False
    ),
    "autoencoder": dataclasses.replace(TRANSFORMER, **LATENT),
    "lstm": RECURRENT,
    "lstm_pairs": dataclasses.replace(RECURRENT, **PAIRS),
    "lstm_autoencoder": dataclasses.replace(RECURRENT, **PAIRS, **LATENT, source_attention="none"),
}

# The deviation and the seed of parameters with which outputs have different lengths.
WEIGHTS = {
    "relative": (0.4, 3),
    "autoencoder": (0.5, 2),
    "lstm": (0.5, 0),
    "lstm_pairs": (0.3, 0),
    "lstm_autoencoder": (0.5, 1),
}


def variants(*quick, of=tuple(CONFIGS)):
    """Returns names of models as parameters of a test; those that are not quick are marked as exhaustive."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.exhaustive) for name in of]


@functools.cache
def model_and_params(name):
    model = build_model(CONFIGS[name], Reconstruction() if "autoencoder" in name else NextToken())
    return model, random_params(model, *WEIGHTS[name], scale=1.0)


def texts(count, longest, seed):
    """Returns texts of different lengths, longest first, as decoders of sources start them."""
    random = np.random.default_rng(seed)
    lengths = sorted(random.integers(1, longest + 1, count), reverse=True)
    return [random.integers(3, V, length).tolist() for length in lengths]


def sampled(model, params, max_rows):
    sources = texts(9, 20, 0) if model.reads_source else None
    prompts = [[1, *text] for text in ([[]] * 9 if sources else texts(9, 9, 1))]
    sampler = Sampler(model, params, SAMPLING, VOCABULARY, NEW)
    return sampler.generate(prompts, row_keys(0, np.arange(9), np.zeros(9)), max_rows, sources)


def searched(model, params, max_rows):
    found = beam_search(model, params, texts(9, 20, 2), BEAM, VOCABULARY, max_rows=max_rows)
    return [[each.tokens for each in hypotheses] for hypotheses in found]


@pytest.fixture
def sizes(monkeypatch):
    """Makes the caches small. Returns the set of the capacities (for tokens, for sources) that they get."""
    found = set()

    def recorded(model, cache, rows, *capacities):
        found.add(capacities[:2])
        return resize(model, cache, rows, *capacities)

    resize = rows.resized
    for module, name, value in (
        (rows, "SMALLEST_CAPACITY", 4),
        (rows, "SMALLEST_SOURCE_CAPACITY", 8),
        (beam_model, "MARGIN", 1),
        (loop, "MARGIN", 1),
        (loop, "SMALLEST_BUCKET", 4),
        (beam_model, "resized", recorded),
        (loop, "resized", recorded),
    ):
        monkeypatch.setattr(module, name, value)
    return found


@pytest.mark.parametrize("name", variants("relative", "lstm_pairs"))
def test_sampled_tokens_do_not_change(name, sizes):
    model, params = model_and_params(name)
    expected = sampled(model, params, 0)
    assert len(set(map(len, expected))) > 2 and len(set(map(tuple, expected))) > 6
    sizes.clear()
    assert sampled(model, params, 2) == expected
    longest, sources = map(set, zip(*sizes, strict=True))
    assert len(longest) > 1
    assert {8, 24} <= sources if model.reads_source else sources == {0}


@pytest.mark.parametrize(
    "name", variants("relative", "lstm_autoencoder", of=[name for name in CONFIGS if name != "lstm"])
)
def test_outputs_of_beam_search_do_not_change(name, sizes):
    model, params = model_and_params(name)
    expected = searched(model, params, 0)
    assert len({len(tokens) for (tokens,) in expected}) > 1
    assert searched(model, params, 2) == expected


@pytest.mark.parametrize("decode", [pytest.param(sampled, marks=pytest.mark.exhaustive), searched])
def test_outputs_do_not_change_on_a_mesh(decode, sizes):
    model, params = model_and_params("relative")
    expected = decode(model, params, 0)
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    with on_mesh(mesh):
        assert decode(model, jax.device_put(params, jax.NamedSharding(mesh, jax.P())), 4) == expected
