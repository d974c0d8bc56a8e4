"""Beam search against brute force over every output of a toy model, and against a search in plain Python."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decoding.beam import BeamSettings, Rules, first_beams, search
from lm.decoding.sampling import Vocabulary
from lm.errors import UserError

V, T, EOS = 4, 5, 3
WORDS = [token for token in range(V) if token != EOS]
TOY = Vocabulary(size=V, bos_id=V, eos_id=EOS)
HISTORIES = sum((V + 1) ** n for n in range(T))  # more than a toy table needs; every history has its own number
PENALTIES = list(itertools.product(("power", "gnmt"), (-1.0, 0.0, 0.6, 1.0, 2.0)))
ROWS = 6  # of every batch, so that the tests share compiled programs
# All possible outputs: 1 + 3 + 9 + 27 + 81 that end and 243 that do not. (A step has at most 324 candidates.)
ALL = 364


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))).astype(np.float32)


def tables(sources, seed=0, end=0.0, spread=1.5):
    """Logits of the next token after every history, for each source; `end` is added to those of the end token."""
    tables_BHV = np.random.default_rng(seed).normal(0, spread, (sources, HISTORIES, V)).astype(np.float32)
    tables_BHV[..., EOS] += end
    return tables_BHV


def history_after(history, token):
    return history * (V + 1) + token + 1


def log_probability(table_HV, tokens):
    """Sum in the order of decoding, in float32."""
    total, history = np.float32(0), 0
    for token in tokens:
        total = np.float32(total + table_HV[history, token])
        history = history_after(history, token)
    return total


@functools.partial(jax.jit, static_argnames=("k", "n", "ngram"))
def run(tables_BHV, forced_BT, used_B, rules, k, n, ngram):
    """Searches with a toy model whose cache is the history of a row, so that errors in its reordering show."""
    B = tables_BHV.shape[0]

    def step(tokens_R, positions_R, history_R):
        history_R = jnp.where(positions_R == 0, 0, history_after(history_R, tokens_R))
        logits_BkV = jax.vmap(lambda table, rows: table[rows])(tables_BHV, history_R.reshape(B, k))
        return logits_BkV.reshape(B * k, V), history_R

    beams = first_beams(jnp.zeros(B * k, jnp.int32), forced_BT, used_B, k, n, TOY.pad_id)
    return search(step, jnp.take, beams, rules, TOY, ngram, min_alive=0, capacity=T)


def searched(tables_BHV, settings, prefixes=()):
    """(tokens, score, log-probability) of the hypotheses of each row, and the number of steps."""
    settings = dataclasses.replace(settings, max_new_tokens=T)
    settings.check()
    B = len(tables_BHV)
    forced_BT = np.full((ROWS, T), -1, np.int32)
    for row, prefix in enumerate(prefixes):
        forced_BT[row, : len(prefix)] = prefix
    padded_BHV = np.concatenate([tables_BHV, np.zeros((ROWS - B, HISTORIES, V), np.float32)])
    used_B, sizes = np.arange(ROWS) < B, (settings.num_beams, settings.num_kept, settings.no_repeat_ngram)
    beams = run(padded_BHV, forced_BT, used_B, Rules.of(settings), *sizes)
    found = jax.tree.map(np.asarray, beams.finished)
    rows = []
    for tokens_nT, lengths_n, totals_n, scores_n in zip(*dataclasses.astuple(found), strict=True):
        there = np.flatnonzero(scores_n > -np.inf)[: settings.num_hypotheses]
        rows.append([(tokens_nT[i, : lengths_n[i]].tolist(), scores_n[i], totals_n[i]) for i in there])
    assert rows[B:] == [[]] * (ROWS - B)  # rows that only fill up the batch find nothing
    return rows[:B], int(beams.lengths_B.max())


def penalty_of(settings, length):
    a = settings.length_penalty
    return length**a if settings.penalty == "power" else ((5 + length) / 6) ** a


def obeys(tokens, settings, prefix):
    """Whether the rules allow an output."""
    if tokens[: len(prefix)] != list(prefix):
        return False
    if EOS in tokens and len(tokens) - 1 < settings.min_new_tokens:
        return False
    n = settings.no_repeat_ngram
    grams = [tuple(tokens[end - n : end]) for end in range(n, len(tokens) + 1)] if n else []
    # N-grams within the prefix may repeat.
    return all(gram not in grams[:i] for i, gram in enumerate(grams) if i + n > len(prefix))


def brute_force(logits_HV, settings, prefix=()):
    """Every output that the rules allow, best first."""
    table_HV, outputs = log_softmax(logits_HV), []
    for length in range(1, T + 1):
        for words in itertools.product(WORDS, repeat=length - 1):
            for last in range(V) if length == T else [EOS]:
                tokens = [*words, last]
                if obeys(tokens, settings, prefix):
                    total = log_probability(table_HV, tokens)
                    outputs.append((tokens, total / penalty_of(settings, length), total))
    return sorted(outputs, key=lambda output: -output[1])


def plain_search(logits_HV, settings):
    """Beam search with lists; if exact, up to the last step in any case. Ties go by beam, then token."""
    table_HV, k = log_softmax(logits_HV), settings.num_beams
    alive, finished = [([], np.float32(0))], []
    for step in range(T):
        candidates = []
        for tokens, total in alive:
            for token in range(V):
                longer = [*tokens, token]
                candidates.append((longer, np.float32(total + table_HV[history_of(tokens), token])))
        candidates = sorted(candidates, key=lambda candidate: -candidate[1])[: 2 * k if k > 1 else 1]
        over = [candidate[0][-1] == EOS or step == T - 1 for candidate in candidates]
        for (tokens, total), is_over in list(zip(candidates, over, strict=True))[:k]:
            if is_over:
                finished.append((tokens, total / penalty_of(settings, len(tokens)), total))
        alive = [candidate for candidate, is_over in zip(candidates, over, strict=True) if not is_over][:k]
        kept = sorted((output[1] for output in finished), reverse=True)[:k]
        full = alive and len(kept) == k
        # No live hypothesis would be kept if it ended with the next token.
        if not settings.exact and full and alive[0][1] / penalty_of(settings, min(step + 2, T)) <= kept[-1]:
            break
    return sorted(finished, key=lambda output: -output[1])[: settings.num_hypotheses]


def history_of(tokens):
    return functools.reduce(history_after, tokens, 0)


def assert_equal(found, expected):
    assert [tokens for tokens, _, _ in found] == [tokens for tokens, _, _ in expected]
    for i in (1, 2):
        np.testing.assert_allclose([each[i] for each in found], [each[i] for each in expected], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("penalty", "a"), PENALTIES)
def test_with_as_many_beams_as_outputs_search_equals_brute_force(penalty, a):
    tables_BHV = tables(2)
    settings = BeamSettings(ALL, penalty, a, num_hypotheses=ALL)
    rows, _ = searched(tables_BHV, settings)
    for found, logits_HV in zip(rows, tables_BHV, strict=True):
        expected = brute_force(logits_HV, settings)
        assert len(found) == len(expected) == ALL
        assert_equal(found, expected)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_early_stopping_does_not_change_outputs(k):
    """The plain search never stops early. For length penalties of either sign."""
    early = 0
    for end, (penalty, a), n in itertools.product((0.0, 2.0), PENALTIES, sorted({1, k})):
        settings = BeamSettings(k, penalty, a, num_hypotheses=n)
        tables_BHV = tables(6, seed=k, end=end)
        rows, _ = searched(tables_BHV, settings)
        alone, length = searched(tables_BHV[:1], settings)
        assert alone == rows[:1]
        early += length < T
        for found, logits_HV in zip(rows, tables_BHV, strict=True):
            assert_equal(found, plain_search(logits_HV, settings))
    assert early > 0


def test_inexact_search_ends_when_no_hypothesis_can_win_at_the_next_token():
    sooner = 0
    for end, (penalty, a), n in itertools.product((0.0, 2.0), PENALTIES, (1, 3)):
        settings = BeamSettings(3, penalty, a, num_hypotheses=n, exact=False)
        tables_BHV = tables(6, seed=5, end=end)
        for logits_HV in tables_BHV:
            (found,), length = searched(logits_HV[None], settings)
            exact, exact_length = searched(logits_HV[None], dataclasses.replace(settings, exact=True))
            assert_equal(found, plain_search(logits_HV, settings))
            if a <= 0:  # then the next length has the best penalty, so the outputs are equal
                assert [found] == exact
            sooner += length < exact_length
    assert sooner > 0


def test_search_ends_as_soon_as_no_hypothesis_can_win():
    """The end token follows the first word almost surely."""
    logits_1HV = np.zeros((1, HISTORIES, V), np.float32)
    logits_1HV[0, history_of([]), 0] = 12
    logits_1HV[0, history_of([0]), EOS] = 12
    for a in (-1.0, 0.0, 1.0):
        (((tokens, _, _),),), length = searched(logits_1HV, BeamSettings(2, "power", a))
        assert (tokens, length) == ([0, EOS], 2)
    # If two are kept, the second may come late: a large penalty outweighs improbable tokens.
    settings = BeamSettings(2, "power", 2.0, num_hypotheses=2)
    (found,), length = searched(logits_1HV, settings)
    assert length == T
    assert_equal(found, plain_search(logits_1HV[0], settings))


def test_ties_go_to_the_earlier_hypothesis_the_better_beam_and_the_lower_token():
    logits_1HV = np.zeros((1, HISTORIES, V), np.float32)  # all outputs of a length have the same score
    for k, (penalty, a) in itertools.product((2, 3, 7), PENALTIES):
        settings = BeamSettings(k, penalty, a, num_hypotheses=k)
        (found,), _ = searched(logits_1HV, settings)
        assert_equal(found, plain_search(logits_1HV[0], settings))


@pytest.mark.parametrize("ngram", [0, 1, 2, 3])
def test_rules_allow_the_same_outputs_as_a_filtered_brute_force(ngram):
    prefixes = [[], [1], [0, 0], [2, 1, 2, 1], [1, 1, 1, 1, 0]]  # two repeat n-grams themselves
    tables_BHV = tables(len(prefixes), seed=5)
    for minimum, a in itertools.product((0, 2, 4, 5), (-1.0, 0.6)):
        settings = BeamSettings(
            ALL, "gnmt", a, min_new_tokens=minimum, no_repeat_ngram=ngram, num_hypotheses=ALL, max_new_tokens=T
        )
        rows, _ = searched(tables_BHV, settings, prefixes)
        for found, logits_HV, prefix in zip(rows, tables_BHV, prefixes, strict=True):
            expected = brute_force(logits_HV, settings, prefix)
            assert_equal(found, expected)
            # With three words, each at most once, there cannot be four before the end.
            assert expected or (ngram == 1 and minimum >= 4)


def test_one_beam_is_greedy_and_stops_at_the_end_token():
    tables_BHV = tables(6, seed=9, end=1.0)
    for a in (-1.0, 2.0):  # without influence
        rows, length = searched(tables_BHV, BeamSettings(1, "power", a))
        for ((tokens, _, _),), logits_HV in zip(rows, tables_BHV, strict=True):
            expected = []
            while len(expected) < T and expected[-1:] != [EOS]:
                expected.append(int(logits_HV[history_of(expected)].argmax()))
            assert tokens == expected
        assert length == max(len(found[0][0]) for found in rows)


def test_another_penalty_or_minimum_shares_the_program():
    tables_BHV = tables(2)
    searched(tables_BHV, BeamSettings(2))
    compiled = run._cache_size()
    searched(tables_BHV, BeamSettings(2, "gnmt", 0.3, min_new_tokens=2), [[1], [2, 2]])
    assert run._cache_size() == compiled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 0}, "num_beams=0"),
        ({"num_beams": 2, "num_hypotheses": 3}, "num_hypotheses=3 is invalid; it must be from 1 to num_beams=2"),
        ({"penalty": "none"}, "penalty='none' is invalid; it must be one of power, gnmt"),
        ({"length_penalty": float("nan")}, "length_penalty=nan"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        (
            {"max_new_tokens": 4, "min_new_tokens": 5},
            "min_new_tokens=5 is invalid; it must be from 0 to max_new_tokens=4",
        ),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram=-1"),
    ],
)
def test_settings_out_of_range_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        BeamSettings(**changes).check()


def test_penalties_equal_the_published_formulas():
    np.testing.assert_allclose(BeamSettings(length_penalty=0.6, max_new_tokens=4).penalties()[3], 4**0.6, rtol=1e-6)
    gnmt = BeamSettings(penalty="gnmt", length_penalty=0.6, max_new_tokens=4).penalties()
    np.testing.assert_allclose(gnmt, [1, (7 / 6) ** 0.6, (8 / 6) ** 0.6, (9 / 6) ** 0.6], rtol=1e-6)
