"""The processed distribution against brute force, samples against that distribution, and the allowed tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Config
from lm.decoding.sampling import (
    BLOCK,
    Sampling,
    Vocabulary,
    choosable,
    choose,
    completes_repeat,
    draw,
    largest,
    process_logits,
    row_keys,
)
from lm.errors import UserError


def softmax(logits):
    p = np.exp(logits - logits.max())
    return p / p.sum()


def brute_force(logits, seen, sampling):
    """Probabilities of one row, token by token, from the definitions."""
    logits = [float(x) for x in logits]
    for token in range(len(logits)):
        if seen[token]:
            factor = sampling.repetition_penalty if logits[token] < 0 else 1 / sampling.repetition_penalty
            logits[token] *= factor
    p = softmax(np.array(logits) / sampling.temperature)
    order = sorted(range(len(p)), key=lambda token: -p[token])
    if sampling.top_k:
        p[[token for token in range(len(p)) if token not in order[: sampling.top_k]]] = 0
        p /= p.sum()
    kept, total = [], 0.0
    for token in order:
        kept.append(token)
        total += p[token]
        if total >= sampling.top_p:
            break
    p[[token for token in range(len(p)) if token not in kept]] = 0
    p[p < sampling.min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(top_k=3),
        Sampling(top_k=100),
        Sampling(top_p=0.8),
        Sampling(top_p=0.01),
        Sampling(min_p=0.2),
        Sampling(min_p=1.0),
        Sampling(repetition_penalty=1.7),
        Sampling(temperature=1.5, top_k=7, top_p=0.85, min_p=0.15, repetition_penalty=1.3),
    ],
)
def test_distribution_equals_the_definitions(sampling):
    rng = np.random.default_rng(0)
    logits_BV = rng.normal(0, 2, (40, 11)).astype(np.float32)
    seen_BV = rng.random((40, 11)) < 0.3
    processed_BV = process_logits(jnp.asarray(logits_BV), jnp.asarray(seen_BV), sampling)
    expected_BV = np.stack([brute_force(*row, sampling) for row in zip(logits_BV, seen_BV, strict=True)])
    np.testing.assert_allclose(jax.nn.softmax(processed_BV, axis=-1), expected_BV, atol=2e-6)
    np.testing.assert_array_equal(np.isfinite(processed_BV), expected_BV > 0)


def test_tokens_that_tie_at_the_limit_are_all_kept():
    logits_1V = jnp.asarray([[2.0, 1.0, 1.0, 0.0]])
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.7)):
        kept = np.isfinite(process_logits(logits_1V, None, sampling))
        np.testing.assert_array_equal(kept, [[True, True, True, False]])


def test_repetition_penalty_lowers_positive_and_negative_logits():
    logits_1V, seen_1V = jnp.asarray([[3.0, -3.0, 0.0, 3.0]]), jnp.asarray([[True, True, True, False]])
    greedy = process_logits(logits_1V, seen_1V, Sampling(temperature=0, repetition_penalty=1.5))
    np.testing.assert_allclose(greedy, [[2.0, -4.5, 0.0, 3.0]], rtol=1e-6)
    assert choose(greedy, row_keys(0, np.arange(1), np.zeros(1)), Sampling(temperature=0)).tolist() == [3]


def test_samples_follow_the_distribution():
    samples, sampling = 20_000, Sampling(temperature=0.8, top_k=5, top_p=0.95)
    logits_V = np.array([0.3, 2.0, -1.0, 1.5, 0.9, -0.2, 1.1], np.float32)
    logits_BV = jnp.broadcast_to(logits_V[None], (samples, 7))
    keys_B = row_keys(3, np.arange(samples), np.zeros(samples))
    chosen_B = choose(process_logits(logits_BV, None, sampling), keys_B, sampling)
    expected_V = samples * brute_force(logits_V, np.zeros(7, bool), sampling)
    counts_V = np.bincount(chosen_B, minlength=7)
    possible = expected_V > 0
    assert counts_V[~possible].sum() == 0
    chi_square = np.sum((counts_V[possible] - expected_V[possible]) ** 2 / expected_V[possible])
    assert possible.sum() == 5 and chi_square < 18.5  # 4 degrees of freedom: exceeded once in a thousand seeds


def test_samples_from_several_blocks_follow_the_distribution():
    """Some blocks, and the ends of others, have no probability."""
    samples, V = 100_000, 4 * BLOCK + 37
    random = np.random.default_rng(1)
    weights_V = random.random(V) ** 8 * (random.random(V) < 0.3)
    weights_V[BLOCK : 2 * BLOCK] = weights_V[3 * BLOCK - 9 :][:20] = 0
    with np.errstate(divide="ignore"):
        logits_BV = jnp.broadcast_to(jnp.float32(np.log(weights_V))[None], (samples, V))
    drawn_B = jax.jit(draw)(logits_BV, row_keys(4, np.arange(samples), np.zeros(samples)))
    expected_V, counts_V = samples * weights_V / weights_V.sum(), np.bincount(drawn_B, minlength=V)
    assert counts_V[weights_V == 0].sum() == 0
    often = expected_V > 20
    deviations = (counts_V[often] - expected_V[often]) ** 2 / expected_V[often]
    assert often.sum() > 50 and deviations.sum() < often.sum() + 4 * np.sqrt(2 * often.sum())


def test_greedy_choice_equals_argmax():
    """The first of equal logits, and of logits that are not numbers, is chosen."""
    logits_BV = np.random.default_rng(2).integers(0, 4, (50, 9)).astype(np.float32)
    logits_BV[10:20, 2:4], logits_BV[20:30, 5:7], logits_BV[30] = np.inf, np.nan, -np.inf
    found_B = choose(jnp.asarray(logits_BV), None, Sampling(temperature=0))
    np.testing.assert_array_equal(found_B, jnp.argmax(logits_BV, axis=-1))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_excluded_token_is_never_drawn_even_if_a_logit_is_not_finite(value):
    logits_BV = jnp.broadcast_to(jnp.asarray([[-jnp.inf, 1.0, value, 2.0]]), (200, 4))
    assert set(np.asarray(draw(logits_BV, row_keys(5, np.arange(200), np.zeros(200))))) == {2}


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.9999, 1 - 1e-7])
def test_nucleus_is_the_smallest_set_of_enough_probability(top_p):
    logits_BV = np.random.default_rng(3).normal(-20, 9, (30, 700)).astype(np.float32)
    logits_BV[:10, 300:] = -np.inf  # as after top-k
    logits_BV[0, :2] = 0.0, -0.0
    processed_BV = np.asarray(process_logits(jnp.asarray(logits_BV), None, Sampling(top_p=top_p)))
    for logits_V, processed_V in zip(logits_BV, processed_BV, strict=True):
        kept, p_V = np.isfinite(processed_V), softmax(logits_V.astype(np.float64))
        assert p_V[kept].min() > p_V[~kept].max(initial=0.0)
        assert p_V[kept].sum() > top_p - 1e-6
        assert p_V[kept].sum() - p_V[kept].min() < top_p + 1e-6


def test_keys_depend_only_on_seed_prompt_and_sample():
    together = jax.random.key_data(row_keys(1, np.array([0, 0, 1, 5]), np.array([0, 1, 0, 2])))
    alone = jax.random.key_data(row_keys(1, np.array([5]), np.array([2])))
    np.testing.assert_array_equal(together[3], alone[0])
    others = jax.random.key_data(row_keys(2, np.array([5]), np.array([2])))
    assert len(np.unique(np.concatenate([together, others]), axis=0)) == 5


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 1e-40}, "temperature=1e-40"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"min_p": -0.5}, "min_p=-0.5"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
    ],
)
def test_values_out_of_range_are_rejected(values, name):
    with pytest.raises(UserError, match=name):
        Sampling(**values).check()
    Sampling().check()


def test_begin_token_padding_and_entries_beyond_the_vocabulary_are_not_choosable():
    def chosen(**values):
        return np.flatnonzero(choosable(Vocabulary(**values), 8)).tolist()

    assert chosen(size=6, bos_id=1, eos_id=2) == [0, 2, 3, 4, 5]
    assert chosen(size=6, bos_id=1, eos_id=2, pad_id=0, pad_is_special=True) == [2, 3, 4, 5]
    assert chosen(size=6, bos_id=2, eos_id=2, pad_id=2, pad_is_special=True) == [0, 1, 2, 3, 4, 5]


def test_largest_values_and_their_indices_equal_those_of_top_k():
    """With ties in and between blocks, with fewer finite values than wanted, and with values that differ by row."""
    random = np.random.default_rng(0)
    shift_Bk = random.normal(size=(4, 3)).astype(np.float32)

    def value(x_BMW, rows_BM):
        return np.take_along_axis(shift_Bk, np.asarray(rows_BM), axis=1)[:, :, None] + x_BMW

    for width, count in ((7 * BLOCK, 3), (6 * BLOCK + 5, 10), (2 * 97, 20), (30, 4)):
        distinct, tied = random.normal(size=(4, 3, width)), random.integers(0, 4, (4, 3, width))
        empty = np.where(np.arange(width) % (width // 2) == 1, tied, -np.inf)
        for x_BkV in map(np.float32, (distinct, tied, empty)):
            for shift, arguments in ((0, ()), (shift_Bk[:, :, None], (value,))):
                expected = jax.lax.top_k((x_BkV + shift).reshape(4, -1), count)
                values_BC, indices_BC = largest(x_BkV, count, *arguments)
                np.testing.assert_array_equal(values_BC, expected[0])
                is_finite = np.asarray(values_BC) > -np.inf
                np.testing.assert_array_equal(np.asarray(indices_BC)[is_finite], np.asarray(expected[1])[is_finite])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_tokens_that_would_repeat_an_n_gram_are_found_at_every_length(n):
    R, T, V = 40, 7, 4
    tokens_RT = np.random.default_rng(n).integers(0, V, (R, T))
    repeats = jax.jit(completes_repeat, static_argnums=(2, 3))
    for length in range(T + 1):
        found_RV = np.asarray(repeats(tokens_RT, np.full(R, length), n, V))
        for row in range(R):
            text = tokens_RT[row, :length].tolist()
            present = {tuple(text[i : i + n]) for i in range(length - n + 1)}
            start = text[length - n + 1 :] if length >= n - 1 else [None]
            assert found_RV[row].tolist() == [(*start, v) in present for v in range(V)]


def test_n_grams_longer_than_the_output_exclude_nothing():
    assert not np.asarray(completes_repeat(np.zeros((2, 3), int), np.full(2, 3), 5, 4)).any()


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("top_p", 0.0, "a probability above 0"),
        ("repetition_penalty", 0.0, "positive"),
        ("temperature", 1e-6, "0 .the most probable token. or at least 0.0001"),
    ],
)
def test_config_with_an_unusable_value_is_refused_by_name(setting, value, rule):
    message = rf"^config.eval.sampling.{setting}={value} is invalid; it must be {rule}"
    with pytest.raises(UserError, match=message):
        Config.from_dict({"eval": {"sampling": {setting: value}}})
