"""Sampling with the cache against full forward passes, alone or in a batch, on one device or a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch
from lm.config import MeshConfig
from lm.decoding import loop, rows
from lm.decoding.loop import Sampler, check_fits
from lm.decoding.sampling import Sampling, Vocabulary, process_logits, row_keys
from lm.errors import UserError
from lm.models import build_model
from lm.models.parameters import abstract_params
from lm.parallel.mesh import make_mesh, on_mesh, param_shardings
from tests.small_model import random_params, small_config

CONFIG = small_config(32, 48, num_layers=2, num_heads=4, num_kv_heads=4, init_std=0.4)
VARIANTS = {  # in addition to those of tests/models/test_attention.py
    "grouped": {"num_kv_heads": 2, "norm": "rmsnorm", "activation": "swiglu", "use_bias": False},
    "interleaved_multi_query_window": {
        "rotary_interleaved": True,
        "num_kv_heads": 1,
        "window": 4,
        "tie_embeddings": False,
    },
    "unrolled_grouped_window": {"scan_layers": False, "num_kv_heads": 2, "window": 5},
    "unrolled_learned": {"scan_layers": False, "positions": "learned"},
    "bfloat16": {"dtype": "bfloat16", "activation_dtype": "compute"},
}
VOCABULARY = Vocabulary(size=32, bos_id=1, eos_id=-1)
GREEDY = Sampling(temperature=0)
PROMPTS = [[1, 5, 6], [1], [1, *range(3, 26)], [1, 9, 9, 4, 17]]


def keys(rows, seed=0):
    return row_keys(seed, np.arange(rows), np.zeros(rows))


NEW = 12  # new tokens: one number, so that the tests share compiled programs


def make(**changes):
    model = build_model(dataclasses.replace(CONFIG, **changes))
    return model, random_params(model, 0.4, scale=1.0)


@pytest.fixture(scope="module")
def small():
    return make()


def as_batch(tokens_BL, positions_BL, segments_BL):
    tokens_BL, positions_BL = jnp.asarray(tokens_BL, jnp.int32), jnp.asarray(positions_BL, jnp.int32)
    weights_BL = jnp.zeros(tokens_BL.shape, jnp.float32)
    return Batch(tokens_BL, tokens_BL, weights_BL, positions_BL, jnp.asarray(segments_BL, jnp.int32))


@functools.partial(jax.jit, static_argnames="model")
def full_forward(model, params, tokens_1L, size):
    positions_1L = jnp.arange(tokens_1L.shape[1])[None]
    return model.apply({"params": params}, as_batch(tokens_1L, positions_1L, positions_1L < size)).logits[0]


def full_logits(model, params, tokens):
    """(L, V) of a single row, without a cache; padded to one length so that it compiles once."""
    padded_1L = np.zeros((1, model.config.max_length), np.int32)
    padded_1L[0, : len(tokens)] = tokens
    return np.array(full_forward(model, params, padded_1L, len(tokens)))[: len(tokens)]


def greedy_by_full_forward(model, params, prompt, new, penalty=1.0):
    """Runs one full forward pass per token."""
    tokens = list(prompt)
    for _ in range(new):
        logits = full_logits(model, params, tokens)[-1]
        logits[VOCABULARY.bos_id] = -np.inf
        for token in set(tokens):
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        tokens.append(int(np.argmax(logits)))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(
    "name",
    [
        "unrolled_grouped_window",
        "bfloat16",
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("interleaved_multi_query_window", "unrolled_learned")
        ),
    ],
)
def test_cached_logits_equal_the_full_forward_at_every_position(name):
    model, params = make(**VARIANTS[name])
    L, sizes_B = 20, np.array([1, 7, 12])  # tokens of each row in the first call; then one per call
    tokens_BL = np.random.default_rng(0).integers(2, 32, (3, L))
    call = jax.jit(lambda batch, cache: model.apply({"params": params}, batch, cache=cache))
    positions_BL = np.broadcast_to(np.arange(12), (3, 12))
    prefix = as_batch(tokens_BL[:, :12], positions_BL, positions_BL < sizes_B[:, None])
    output = call(prefix, model.empty_cache(3, L))
    found_BLV = np.zeros((3, L, 32), np.float32)
    found_BLV[:, :12] = output.logits
    for step in range(L):
        at_B = np.minimum(sizes_B + step, L - 1)  # rows that are complete repeat their last token
        batch = as_batch(tokens_BL[np.arange(3), at_B][:, None], at_B[:, None], np.ones((3, 1)))
        output = call(batch, output.cache)
        found_BLV[np.arange(3), at_B] = output.logits[:, 0]
    tolerance = 0.25 if model.config.dtype == "bfloat16" else 1e-5
    for row in range(3):
        expected_LV = full_logits(model, params, tokens_BL[row])
        assert np.std(expected_LV) > 0.3  # logits worth comparing
        np.testing.assert_allclose(found_BLV[row], expected_LV, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["interleaved_multi_query_window", "unrolled_learned"])
def test_greedy_batch_equals_full_forward_passes_of_each_prompt(name):
    model, params = make(**VARIANTS[name])
    made = Sampler(model, params, GREEDY, VOCABULARY, NEW).generate(PROMPTS, keys(4))
    assert made == [greedy_by_full_forward(model, params, prompt, NEW) for prompt in PROMPTS]
    assert len({token for row in made for token in row}) > 4  # not always the same token


def test_repetition_penalty_sees_prompt_and_new_tokens(small):
    model, params = small
    made = Sampler(model, params, Sampling(temperature=0, repetition_penalty=1.6), VOCABULARY, NEW).generate(
        PROMPTS, keys(4)
    )
    assert made == [greedy_by_full_forward(model, params, prompt, NEW, penalty=1.6) for prompt in PROMPTS]
    assert made != Sampler(model, params, GREEDY, VOCABULARY, NEW).generate(PROMPTS, keys(4))


def test_tokens_are_the_same_alone_streamed_or_in_a_batch(small):
    model, params = small
    sampling = Sampling(temperature=1.2, top_p=0.9, repetition_penalty=1.2)
    made = Sampler(model, params, sampling, VOCABULARY, NEW).generate(PROMPTS, keys(4))
    for row, prompt in enumerate(PROMPTS):
        key = keys(4)[row]
        assert list(Sampler(model, params, sampling, VOCABULARY, NEW).stream(prompt, key)) == made[row]
        assert Sampler(model, params, sampling, VOCABULARY, NEW).generate([prompt], key[None]) == [made[row]]


def test_equal_seeds_give_equal_tokens_and_others_do_not(small):
    model, params = small
    a, b, c = (
        Sampler(model, params, Sampling(), VOCABULARY, NEW).generate(PROMPTS, keys(4, seed)) for seed in (7, 7, 8)
    )
    assert a == b
    assert a != c


def test_sampled_tokens_follow_the_model(small):
    """Compares the first two tokens of 4000 rows with their exact probabilities."""
    model, params = small
    rows, sampling, prompt = 4000, Sampling(temperature=0.5, top_k=4), [1, 5, 6]
    allowed = np.arange(32) != VOCABULARY.bos_id

    def distribution(tokens):
        logits = np.where(allowed, full_logits(model, params, tokens)[-1], -np.inf)
        return np.asarray(jax.nn.softmax(process_logits(logits[None], None, sampling)))[0]

    made = np.array(Sampler(model, params, sampling, VOCABULARY, 2).generate([prompt] * rows, keys(rows)))
    first = distribution(prompt)
    pairs = {(a, b): first[a] * distribution([*prompt, a])[b] for a in np.flatnonzero(first) for b in range(32)}
    for (a, b), p in pairs.items():
        share = np.mean((made[:, 0] == a) & (made[:, 1] == b))
        assert abs(share - p) <= 4.5 * np.sqrt(p * (1 - p) / rows) + 1e-9, (a, b, share, p)


def test_rows_stop_at_their_end_token_while_others_continue(small):
    model, params = small
    free = Sampler(model, params, GREEDY, VOCABULARY, NEW).generate(PROMPTS, keys(4))

    def cut(end):
        return [row[: row.index(end) + 1] if end in row else row for row in free]

    # A token that ends the first row after two or more, and the others elsewhere.
    end = next(end for end in range(32) if 1 < len(cut(end)[0]) < NEW and len(set(map(len, cut(end)))) > 1)
    expected = cut(end)
    stopping = dataclasses.replace(VOCABULARY, eos_id=end)
    assert Sampler(model, params, GREEDY, stopping, NEW).generate(PROMPTS, keys(4)) == expected
    assert list(Sampler(model, params, GREEDY, stopping, NEW).stream(PROMPTS[0], keys(4)[0])) == expected[0]
    # Steps end with the last row, and padding follows the end of a row.
    sampler = Sampler(model, params, GREEDY, stopping, NEW)
    state = sampler.advance(sampler.start(PROMPTS[:1], keys(1), min_rows=3), NEW)
    assert int(state.lengths_B[0]) == len(PROMPTS[0]) - 1 + len(expected[0]) and len(expected[0]) < NEW
    assert np.asarray(state.tokens_BT)[0, len(expected[0]) :].tolist() == [0] * (NEW - len(expected[0]))


def test_begin_token_and_entries_beyond_the_vocabulary_are_never_chosen(small):
    model, params = small
    rows, small_vocabulary = 400, Vocabulary(size=20, bos_id=3, eos_id=-1)
    hot = Sampling(temperature=50.0)
    made = np.array(Sampler(model, params, hot, small_vocabulary, 3).generate([[3]] * rows, keys(rows)))
    assert set(np.unique(made)) == set(range(20)) - {3}
    same = Vocabulary(size=20, bos_id=3, eos_id=3)  # one token for both, as in GPT-2
    lengths = [len(row) for row in Sampler(model, params, hot, same, 3).generate([[3]] * rows, keys(rows))]
    assert min(lengths) < 3


def test_row_ends_at_the_last_position_of_the_model():
    model, params = make(positions="learned")
    prompts = [[1] * 46, [1, 2], [1] * 48]
    made = Sampler(model, params, GREEDY, VOCABULARY, 40).generate(prompts, keys(3))
    assert [len(row) for row in made] == [2, 40, 0]
    assert made[0] == greedy_by_full_forward(model, params, prompts[0], 2)
    assert made[1] == greedy_by_full_forward(model, params, prompts[1], 40)


def test_prompts_that_do_not_fit_are_rejected_before_anything_runs():
    check_fits([[1, 2], [1]], 6, 8)
    with pytest.raises(UserError, match=r"prompt 2 has 3 tokens .* adding 6 new .* 8 positions .* at most 5 new"):
        check_fits([[1, 2], [1, 2, 3]], 6, 8)
    with pytest.raises(UserError, match=r"prompt 1 has 9 tokens .* shorten the prompt"):
        check_fits([[1] * 9], 1, 8)
    with pytest.raises(UserError, match="max_new_tokens=0"):
        check_fits([[1]], 0, 8)
    with pytest.raises(UserError, match="no prompt"):
        check_fits([], 1, 8)


def test_other_parameters_and_prompts_of_one_bucket_share_the_program(small):
    model, params = small
    Sampler(model, params, GREEDY, VOCABULARY, NEW).generate(PROMPTS, keys(4))
    list(Sampler(model, params, GREEDY, VOCABULARY, NEW).stream([1, 2], keys(1)[0]))
    compiled = loop._advance._cache_size(), loop._prefill._cache_size()
    other, prompts = jax.tree.map(lambda x: 2 * x, params), [*PROMPTS[:3], [1, 2]]
    Sampler(build_model(model.config), other, GREEDY, VOCABULARY, NEW).generate(prompts, keys(4, seed=4))
    list(Sampler(model, other, GREEDY, VOCABULARY, NEW).stream([1, 2, 3], keys(1)[0]))
    assert (loop._advance._cache_size(), loop._prefill._cache_size()) == compiled


@pytest.mark.parametrize("max_rows", [4, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_tokens_do_not_change_if_rows_that_ended_are_replaced_by_waiting_ones(small, max_rows, monkeypatch):
    """More prompts than rows, of different lengths, with a cache that grows and shrinks."""
    model, params = small
    random = np.random.default_rng(3)
    prompts = [[1, *random.integers(3, 32, size)] for size in (0, 14, 3, 1, 9, 2, 0, 7, 2, 11, 1)]
    stopping = dataclasses.replace(VOCABULARY, eos_id=9, other_stops=(11, 23))
    sampler = Sampler(model, params, Sampling(temperature=1.2, top_p=0.9, repetition_penalty=1.2), stopping, NEW)
    expected = sampler.generate(prompts, keys(11))
    assert len(set(map(len, expected))) > 2
    monkeypatch.setattr(rows, "SMALLEST_CAPACITY", 16)
    found = list(sampler.generate_each(prompts, keys(11), max_rows))
    assert [tokens for _, tokens in sorted(found)] == expected
    assert max_rows == 1 or [number for number, _ in found] != list(range(11))


@pytest.mark.exhaustive
def test_tokens_on_a_mesh_equal_those_of_one_device():
    model, params = make(**VARIANTS["grouped"])
    sampling = Sampling(top_p=0.9, repetition_penalty=1.2)
    prompts = PROMPTS[:3]  # split over four devices
    expected = Sampler(model, params, sampling, VOCABULARY, NEW).generate(prompts, keys(3))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with on_mesh(mesh):
        sharded = jax.device_put(params, param_shardings(abstract_params(model), mesh))
        sampler = Sampler(model, sharded, sampling, VOCABULARY, NEW)
        state = sampler.start(prompts, keys(3))
        parts = {each.sharding.shard_shape(each.shape)[-4:] for each in jax.tree.leaves(state.cache.layers)}
        assert parts == {(1, model.config.num_kv_heads // 2, 32, 4)}
        assert Sampler(model, sharded, sampling, VOCABULARY, NEW).generate(prompts, keys(3)) == expected
        done = sampler.advance(state, NEW)
        assert all(each.is_fully_replicated for each in (done.tokens_BT, done.num_new_B, done.ended_B))
