"""Beam search and sampling over an encoder-decoder against full forward passes without a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch
from lm.config import MeshConfig
from lm.decoding import beam_model, rows
from lm.decoding.beam import BeamSettings, Finished, Hypothesis
from lm.decoding.beam_model import beam_search, hypotheses, search_model
from lm.decoding.inputs import pad_sources, source_bucket
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, Vocabulary, choosable, row_keys
from lm.errors import UserError
from lm.models import build_model
from lm.models.parameters import abstract_params
from lm.parallel.mesh import make_mesh, on_mesh, param_shardings
from tests.small_model import random_params, small_config

V, EOS, NEW = 16, 2, 10
CONFIG = small_config(
    V,
    16,
    family="encoder_decoder",
    num_layers=2,
    num_encoder_layers=1,
    num_heads=4,
    positions="learned",
    tie_embeddings=False,
)
T5 = {
    "seed": 3,
    "positions": "relative",
    "relative_buckets": 8,
    "relative_max_distance": 12,
    "norm": "rmsnorm",
    "attention_scale": 1.0,
    "scan_layers": False,
}
# every option that concerns the cache or the logits
OPTIONS = {
    "positions": "sinusoidal",
    "sinusoid_offset": 2,
    "embedding_width": 8,
    "share_layers": True,
    "norm_position": "sandwich",
    "qk_norm": "head",
    "attention_scale": 0.4,
    "attention_softcap": 2.0,
    "logits_softcap": 3.0,
    "output_bias": True,
    "tie_embeddings": True,
}
VOCABULARY = Vocabulary(size=14, bos_id=1, eos_id=EOS, pad_id=0, pad_is_special=True)
SOURCES = [[5, 9, 4, EOS], [*range(3, 14), EOS], [EOS], [7, 7, 10, 11, 7, EOS]]
BEAM = BeamSettings(num_beams=3, length_penalty=0.6, max_new_tokens=NEW, num_hypotheses=3)
GREEDY = dataclasses.replace(BEAM, num_beams=1, num_hypotheses=1)


def make(seed=11, **changes):
    """A model with random parameters, which ends some of its outputs."""
    model = build_model(dataclasses.replace(CONFIG, **changes))
    return model, random_params(model, 0.4, seed, scale=1.0)


@pytest.fixture(scope="module")
def small():
    return make()


@functools.partial(jax.jit, static_argnames="model")
def full_forward(model, params, source, tokens_1L):
    """(L, V) log-probabilities of one row, without a cache; no position sees later ones."""
    positions_1L = jnp.arange(tokens_1L.shape[1])[None]
    batch = Batch(tokens_1L, tokens_1L, jnp.zeros(tokens_1L.shape), positions_1L, jnp.ones_like(positions_1L), source)
    return jax.nn.log_softmax(model.apply({"params": params}, batch).logits[0])


def log_probabilities(model, params, source, tokens):
    """(NEW, V): row t is the distribution of token t of the output."""
    read_1L = np.zeros((1, NEW), np.int32)
    read_1L[0, : len(tokens) + 1] = [VOCABULARY.bos_id, *tokens][:NEW]
    padded = pad_sources([source], 1, model.max_source_length, 0)
    return np.asarray(full_forward(model, params, padded, read_1L))


def greedy_by_full_forward(model, params, source):
    allowed, tokens = np.asarray(choosable(VOCABULARY, V)), []
    while len(tokens) < NEW and tokens[-1:] != [EOS]:
        scores = log_probabilities(model, params, source, tokens)[len(tokens)]
        tokens.append(int(np.where(allowed, scores, -np.inf).argmax()))
    return tokens


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert [each.tokens for each in a] == [each.tokens for each in b]
        np.testing.assert_allclose([each.score for each in a], [each.score for each in b], rtol=1e-5)


@pytest.mark.parametrize(
    "changes", [pytest.param({}, marks=pytest.mark.exhaustive), T5, OPTIONS], ids=["learned", "t5", "options"]
)
def test_scores_equal_those_of_full_forward_passes(changes):
    model, params = make(**changes)
    outputs = beam_search(model, params, SOURCES, BEAM, VOCABULARY)
    lengths = set()
    for source, found in zip(SOURCES, outputs, strict=True):
        assert len({tuple(each.tokens) for each in found}) == BEAM.num_hypotheses
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
        for each in found:
            size = len(each.tokens)
            lengths.add(size)
            assert EOS not in each.tokens[:-1] and (each.tokens[-1] == EOS or size == NEW)
            total = log_probabilities(model, params, source, each.tokens)[np.arange(size), each.tokens].sum()
            np.testing.assert_allclose(each.log_probability, total, rtol=1e-4)
            np.testing.assert_allclose(each.score, total / size**0.6, rtol=1e-4)
    assert len(lengths) > 1 and NEW in lengths  # some ended and some did not


def test_one_beam_and_sampling_at_temperature_0_are_greedy(small):
    model, params = small
    expected = [greedy_by_full_forward(model, params, source) for source in SOURCES]
    found = beam_search(model, params, SOURCES, GREEDY, VOCABULARY)
    assert [each.tokens for (each,) in found] == expected
    assert len({tuple(tokens) for tokens in expected}) == len(SOURCES)  # the source matters
    assert len({len(tokens) for tokens in expected}) > 1
    keys_B = row_keys(0, np.arange(4), np.zeros(4))
    prompts = [[VOCABULARY.bos_id]] * 4
    made = Sampler(model, params, Sampling(temperature=0), VOCABULARY, NEW).generate(
        prompts, keys_B, max_rows=6, sources=SOURCES
    )
    assert made == expected


def test_outputs_do_not_depend_on_the_rest_of_the_batch_or_on_padding(small):
    model, params = small
    together = beam_search(model, params, SOURCES, BEAM, VOCABULARY)
    for row in (0, 3):  # a bucket of 8 here, of 16 there
        assert_same(beam_search(model, params, [SOURCES[row]], BEAM, VOCABULARY), together[row : row + 1])
    padded = beam_search(model, params, SOURCES[:1], BEAM, VOCABULARY, max_rows=4)
    assert_same(padded, together[:1])


@pytest.mark.parametrize(
    ("settings", "max_rows"),
    [
        (BEAM, 4),
        pytest.param(dataclasses.replace(BEAM, exact=False, no_repeat_ngram=2), 8, marks=pytest.mark.exhaustive),
        pytest.param(GREEDY, 1, marks=pytest.mark.exhaustive),
    ],
)
def test_outputs_do_not_change_if_finished_searches_are_replaced_by_waiting_ones(
    small, settings, max_rows, monkeypatch
):
    """More sources than rows, with a cache that grows and shrinks."""
    model, params = small
    random, reports = np.random.default_rng(5), []
    sources = [[*random.integers(3, 14, size), EOS] for size in random.integers(0, 12, 13)]
    prefixes = [[], [8, 8], [13]] * 4 + [[]]
    expected = beam_search(model, params, sources, settings, VOCABULARY, prefixes)
    assert len({len(found[0].tokens) for found in expected}) > 3
    monkeypatch.setattr(rows, "SMALLEST_CAPACITY", 4)
    monkeypatch.setattr(beam_model, "MARGIN", 1)
    found = beam_search(
        model, params, sources, settings, VOCABULARY, prefixes, max_rows, lambda *each: reports.append(each)
    )
    assert_same(found, expected)
    assert reports[-1] == (13, 13) and reports == sorted(reports)


def test_outputs_start_with_prefixes_of_any_length_which_are_scored(small):
    model, params = small
    free = beam_search(model, params, SOURCES, BEAM, VOCABULARY)
    prefixes = [[], [8, 8], list(range(3, 3 + NEW)), [13]]
    outputs = beam_search(model, params, SOURCES, BEAM, VOCABULARY, prefixes)
    assert_same(outputs[:1], free[:1])
    assert [each.tokens[:2] for each in outputs[1]] == [[8, 8]] * 3
    assert [each.tokens for each in outputs[2]] == [prefixes[2]]  # it fills the output
    assert [each.tokens[0] for each in outputs[3]] == [13] * 3
    for source, found in zip(SOURCES, outputs, strict=True):
        for each in found:
            steps = log_probabilities(model, params, source, each.tokens)[np.arange(len(each.tokens)), each.tokens]
            np.testing.assert_allclose(each.log_probability, steps.sum(), rtol=1e-4)


def test_one_empty_hypothesis_if_the_rules_allow_none():
    found = Finished(
        tokens_BnT=np.array([[[5, EOS, 0], [6, 7, EOS]], [[5, EOS, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]),
        lengths_Bn=np.array([[2, 3], [2, 0], [0, 0]]),
        log_probabilities_Bn=np.array([[-1.0, -3.0], [-1.0, -np.inf], [-np.inf, -np.inf]]),
        scores_Bn=np.array([[-0.5, -1.0], [-0.5, -np.inf], [-np.inf, -np.inf]]),
    )
    first, second = Hypothesis([5, EOS], -0.5, -1.0), Hypothesis([6, 7, EOS], -1.0, -3.0)
    none = Hypothesis([], -np.inf, -np.inf)
    assert [hypotheses(found, row) for row in range(3)] == [[first, second], [first], [none]]


def test_sources_of_one_bucket_and_other_parameters_share_a_program(small):
    model, params = small
    beam_search(model, params, SOURCES, BEAM, VOCABULARY)
    compiled = search_model._cache_size()
    other = dataclasses.replace(BEAM, penalty="gnmt", length_penalty=1.0, min_new_tokens=3)
    doubled = jax.tree.map(lambda x: 2 * x, params)
    beam_search(build_model(model.config), doubled, [[3] * 9, *SOURCES[:2]], other, VOCABULARY, max_rows=4)
    assert search_model._cache_size() == compiled


@pytest.mark.exhaustive
def test_outputs_on_a_mesh_equal_those_of_one_device(small, monkeypatch):
    model, params = small
    searched = []
    monkeypatch.setattr(beam_model, "search_model", lambda *args: searched.append(search_model(*args)) or searched[-1])
    expected = beam_search(model, params, SOURCES[:3], BEAM, VOCABULARY)
    mesh = make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])
    with on_mesh(mesh):
        sharded = jax.device_put(params, param_shardings(abstract_params(model), mesh))
        assert_same(beam_search(model, sharded, SOURCES[:3], BEAM, VOCABULARY), expected)
        results = [dataclasses.replace(each, cache=None) for each in searched]
        assert all(each.is_fully_replicated for each in jax.tree.leaves(results)), "every process can read them"


def test_sources_are_padded_to_buckets():
    lengths = [0, 1, 8, 9, 16, 17, 24, 25, 33, 49, 65, 97, 129, 193, 257]
    buckets = [8, 8, 8, 16, 16, 24, 24, 32, 48, 64, 96, 128, 192, 256, 384]
    assert [source_bucket(length) for length in lengths] == buckets
    source = pad_sources([[4, 5, 2], []], 3, None, pad_id=9)
    assert source.tokens[0].tolist() == [4, 5, 2, 9, 9, 9, 9, 9]
    assert source.segments.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [0] * 8, [0] * 8]
    assert source.positions[2].tolist() == list(range(8))
    assert pad_sources([[3] * 9], 1, 11, 0).tokens.shape == (1, 11)
    with pytest.raises(UserError, match=r"source 2 has 12 tokens .* 11 positions"):
        pad_sources([[3], [3] * 12], 2, 11, 0)
    assert pad_sources([[3] * 12], 1, None, 0).tokens.shape == (1, 16)


def test_inputs_that_do_not_fit_are_rejected_before_anything_runs(small):
    model, params = small
    call = functools.partial(beam_search, model, params, SOURCES[:1])
    with pytest.raises(UserError, match=r"max_new_tokens=17 exceeds the model's 16 positions"):
        call(dataclasses.replace(BEAM, max_new_tokens=17), VOCABULARY)
    with pytest.raises(UserError, match="prefix 1 has 11 tokens, more than max_new_tokens=10"):
        call(BEAM, VOCABULARY, [[3] * 11])
    with pytest.raises(UserError, match="prefix 1 contains token 2"):
        call(BEAM, VOCABULARY, [[3, EOS]])
    with pytest.raises(UserError, match="prefix 1 contains token 14"):
        call(BEAM, VOCABULARY, [[14]])
    assert beam_search(model, params, [], BEAM, VOCABULARY) == []
