"""Speculative decoding: the distribution of the target model, whatever the draft model is."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch
from lm.config import MeshConfig
from lm.decoding import loop, rows
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, Vocabulary, process_logits, row_keys
from lm.decoding.speculative import Pair, accept
from lm.models import build_model
from lm.models.parameters import with_int8_matrices
from lm.parallel.mesh import make_mesh, on_mesh
from tests.small_model import random_params, small_config

V, NEW, ROWS = 12, 10, 2000
TARGET = small_config(V, 24, num_layers=2, tie_embeddings=False)
DRAFT = small_config(V + 4, 32, d_model=8)
FREE = Vocabulary(size=V, bos_id=1, eos_id=-1)  # texts do not end
PROMPTS = [[1, 5, 6], [1], [1, *range(3, 12)], [1, 9, 9, 4]]
GREEDY = Sampling(temperature=0)


def keys(rows, seed=0):
    return row_keys(seed, np.arange(rows), np.zeros(rows))


@pytest.fixture(scope="module")
def models():
    """A target model, its parameters, and a draft model of another kind of size, alone and with the target model."""
    target, draft = build_model(TARGET), build_model(DRAFT)
    params, draft_params = random_params(target, 0.5, scale=1.0), random_params(draft, 0.5, seed=1, scale=1.0)
    return target, params, Pair(target, draft), {"target": params, "draft": draft_params}


def tolerance(p, rows):
    return 4.5 * np.sqrt(p * (1 - p) / rows) + 1e-9


@pytest.mark.parametrize("n", [1, 2])
def test_accepted_and_replaced_tokens_follow_the_target_distribution(n):
    """All sequences of n + 1 tokens; what a round leaves open is drawn from the target distribution."""
    rows, size = 40_000, 3
    random = np.random.default_rng(n)
    # Each distribution depends on the tokens before it: (V,), (V, V), (V, V, V).
    p, q = ([random.dirichlet(np.ones(size), (size,) * i) for i in range(n + 1)] for _ in range(2))
    q[0][0], q[0][1:] = 0, q[0][1:] / q[0][1:].sum()  # a token that is never drafted
    drafted = np.zeros((rows, n), np.int32)
    for i in range(n):
        uniform = random.random(rows)[:, None]
        drafted[:, i] = (uniform > np.cumsum(q[i][tuple(drafted[:, :i].T)], axis=-1)).sum(axis=1)
    p_BMV, q_BnV = (
        np.stack([np.broadcast_to(each[i][tuple(drafted[:, :i].T)], (rows, size)) for i in range(m)], axis=1)
        for each, m in ((p, n + 1), (q, n))
    )
    tokens, counts = map(np.array, jax.jit(accept)(jnp.float32(p_BMV), jnp.float32(q_BnV), drafted, keys(rows)))
    assert set(counts) == set(range(1, n + 2))
    for i in range(n + 1):  # completes the sequences that ended at the first rejected token
        uniform = random.random(rows)[:, None]
        drawn = (uniform > np.cumsum(p[i][tuple(tokens[:, :i].T)], axis=-1)).sum(axis=1)
        tokens[:, i] = np.where(i < counts, tokens[:, i], drawn)
    for sequence in itertools.product(range(size), repeat=n + 1):
        expected = np.prod([p[i][sequence[: i + 1]] for i in range(n + 1)])
        assert abs(np.mean((tokens == sequence).all(axis=1)) - expected) < tolerance(expected, rows), sequence


@pytest.mark.parametrize("drafted", [pytest.param(1, marks=pytest.mark.exhaustive), 4])
def test_greedy_tokens_equal_those_of_the_target_model(models, drafted):
    """For a draft model that is mostly wrong, one that is always right, and rows replaced by waiting ones."""
    target, params, pair, both = models
    free = Sampler(target, params, GREEDY, FREE, NEW).generate(PROMPTS, keys(4))
    end = free[1][5]  # ends the second row, at the latest, after six tokens
    vocabulary = dataclasses.replace(FREE, eos_id=end)
    expected = [row[: row.index(end) + 1] if end in row else row for row in free]
    for model, held in ((pair, both), (Pair(target, target), {"target": params, "draft": params})):
        sampler = Sampler(model, held, GREEDY, vocabulary, NEW, drafted)
        assert sampler.generate(PROMPTS, keys(4)) == expected
        assert sampler.generate(PROMPTS, keys(4), max_rows=2) == expected
        assert list(sampler.stream(PROMPTS[3], keys(4)[3])) == expected[3]


def test_repetition_penalty_sees_drafted_tokens(models):
    target, params, pair, both = models
    sampling = Sampling(temperature=0, repetition_penalty=1.7)
    expected = Sampler(target, params, sampling, FREE, NEW).generate(PROMPTS, keys(4))
    assert Sampler(pair, both, sampling, FREE, NEW, 3).generate(PROMPTS, keys(4)) == expected
    assert expected != Sampler(target, params, GREEDY, FREE, NEW).generate(PROMPTS, keys(4))


def test_sampled_tokens_do_not_depend_on_the_schedule_or_the_capacity(models, monkeypatch):
    """Alone, streamed, or in rows that are replaced, with a cache that grows and shrinks."""
    *_, pair, both = models
    prompts, vocabulary, n = [*PROMPTS, [1, 3], [1, 8, 8], [1, 2, 10]], dataclasses.replace(FREE, eos_id=7), 9
    sampler = Sampler(pair, both, Sampling(1.1, top_k=6, repetition_penalty=1.2), vocabulary, NEW, n)
    expected = sampler.generate(prompts, keys(7, 7))
    assert len(set(map(len, expected))) > 2
    monkeypatch.setattr(rows, "SMALLEST_CAPACITY", 4)
    admit, capacities = loop._admit, set()

    def admitted(*arguments):
        state = admit(*arguments)
        longest = np.max(np.asarray(state.lengths_B) * ~np.asarray(state.ended_B))
        capacities.add(int(state.capacity))
        assert longest + 1 + n <= state.capacity or state.capacity == pair.max_length, "the next step has to copy it"
        return state

    monkeypatch.setattr(loop, "_admit", admitted)
    for max_rows in (0, 1, 2):
        assert sampler.generate(prompts, keys(7, 7), max_rows) == expected
    assert capacities == {16, 24}
    assert list(sampler.stream(prompts[3], keys(7, 7)[3])) == expected[3]


def test_drafts_of_matrices_in_8_bits_on_a_mesh(models):
    target, _, pair, both = models
    sampling, small = Sampling(temperature=0.9), {name: with_int8_matrices(each) for name, each in both.items()}
    expected = Sampler(pair, small, sampling, FREE, NEW, 3).generate(PROMPTS, keys(4))
    greedy = Sampler(pair, small, GREEDY, FREE, NEW, 3).generate(PROMPTS, keys(4))
    assert greedy == Sampler(target, small["target"], GREEDY, FREE, NEW).generate(PROMPTS, keys(4))
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    with on_mesh(mesh):
        whole = jax.device_put(small, jax.NamedSharding(mesh, jax.P()))
        assert Sampler(pair, whole, sampling, FREE, NEW, 3).generate(PROMPTS, keys(4), max_rows=2) == expected


def test_row_ends_at_the_last_position_of_the_model(models):
    target, params, pair, both = models
    prompts = [[1] * 21, [1, 2], [1] * 24]
    expected = Sampler(target, params, GREEDY, FREE, 20).generate(prompts, keys(3))
    assert [len(row) for row in expected] == [3, 20, 0]
    assert Sampler(pair, both, GREEDY, FREE, 20, 4).generate(prompts, keys(3)) == expected


def test_sampled_tokens_follow_the_target_model(models):
    """Compares the first two tokens of 2000 rows with their exact probabilities under the target model."""
    target, params, pair, both = models
    sampling, prompt = Sampling(temperature=0.8, top_k=5), [1, 5, 6]

    @jax.jit
    def last_logits(tokens_1L):
        positions_1L = jnp.arange(tokens_1L.shape[1])[None]
        ones_1L = jnp.ones_like(positions_1L)
        batch = Batch(tokens_1L, tokens_1L, ones_1L.astype(jnp.float32), positions_1L, ones_1L)
        return target.apply({"params": params}, batch).logits[0, -1]

    def distribution(tokens):
        logits = np.where(np.arange(V) == FREE.bos_id, -np.inf, last_logits(np.array([tokens])))
        return np.asarray(jax.nn.softmax(process_logits(logits[None], None, sampling)))[0]

    sampler = Sampler(pair, both, sampling, FREE, 3, 2)
    made = np.array(sampler.generate([prompt] * ROWS, keys(ROWS)))
    first = distribution(prompt)
    for a in np.flatnonzero(first):
        for b, p in enumerate(first[a] * distribution([*prompt, a])):
            share = np.mean((made[:, 0] == a) & (made[:, 1] == b))
            assert abs(share - p) <= tolerance(p, ROWS), (a, b, share, p)
