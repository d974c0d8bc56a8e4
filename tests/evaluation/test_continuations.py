"""Scores of continuations against a sum over the log-probabilities of each pair alone, without padding."""

import functools

import jax
import numpy as np
import pytest

from lm.batch import Batch, Source
from lm.config import MeshConfig
from lm.data.tokenizing.special_tokens import TEXT, SpecialTokens, Template
from lm.errors import UserError
from lm.evaluation.continuations import ContinuationScorer, cut_left, rolling_windows, token_scores
from lm.models import build_model
from lm.models.parameters import abstract_params
from lm.parallel.mesh import make_mesh, on_mesh, param_shardings
from tests.small_model import random_params, small_config

CONFIG = small_config(40, 32, num_layers=2)
OURS = SpecialTokens(1, 2)  # a source is `text eos`, and a target starts after bos
BART = SpecialTokens(0, 2, first_of_target=2, one=Template.of_one(0, TEXT, 2))
PAIRS = [
    ([1], [5, 6, 7]),
    ([1, 9, 9, 4], [17]),
    ([1, *range(10, 24)], [3, 8]),
    ([1, 8, 3], list(range(20, 38))),
    ([1, 5], [6, 7]),
]


def make(special=OURS, config=CONFIG, batch_size=3, max_length=32, **changes):
    model = build_model(config if not changes else small_config(40, 32, num_layers=2, **changes))
    return ContinuationScorer(model, random_params(model, 0.4, scale=1.0), special, 0, max_length, batch_size)


@pytest.fixture(scope="module")
def decoder():
    return make()


@pytest.fixture(scope="module")
def encoder_decoder():
    return make(family="encoder_decoder", num_encoder_layers=1)


def row(tokens):
    return np.array([tokens], np.int32), np.arange(len(tokens), dtype=np.int32)[None], np.ones((1, len(tokens)), int)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, batch):
    return model.apply({"params": params}, batch).logits


def logits_of(scorer, tokens, source=None):
    """Returns the logits of one row without padding, float32 (L, V)."""
    tokens_BL, positions_BL, segments_BL = row(tokens)
    encoder = None if source is None else Source(*row(source))
    weights_BL = np.ones(tokens_BL.shape, np.float32)
    batch = Batch(tokens_BL, tokens_BL, weights_BL, positions_BL, segments_BL, encoder)
    return np.asarray(apply(scorer.model, scorer.params, batch))[0]


def expected(scorer, tokens, continuation, source=None):
    """Returns the score of a continuation that is predicted from the last `len(continuation)` of `tokens`."""
    logits_LV = logits_of(scorer, tokens, source)[-len(continuation) :].astype(np.float64)
    log_p_LV = logits_LV - np.log(np.exp(logits_LV).sum(axis=-1, keepdims=True))
    total = log_p_LV[np.arange(len(continuation)), continuation].sum()
    return float(total), logits_LV.argmax(axis=-1).tolist() == list(continuation)


def assert_scores(found, wanted):
    np.testing.assert_allclose([each[0] for each in found], [each[0] for each in wanted], rtol=1e-5, atol=1e-5)
    assert [each[1] for each in found] == [each[1] for each in wanted]


def greedy(scorer, context, length):
    """Returns the most probable continuation, with a full forward pass for each token."""
    tokens = list(context)
    for _ in range(length):
        tokens.append(int(logits_of(scorer, tokens)[-1].argmax()))
    return tokens[len(context) :]


def test_scores_of_a_decoder_equal_sums_of_log_probabilities(decoder):
    pairs = [*PAIRS, ([1, 9, 9], greedy(decoder, [1, 9, 9], 2))]
    wanted = [expected(decoder, [*context, *new[:-1]], new) for context, new in pairs]
    assert_scores(decoder.score(pairs), wanted)
    assert [each[1] for each in wanted] == [False] * len(PAIRS) + [True]


@pytest.mark.exhaustive
def test_scores_of_an_encoder_decoder_equal_sums_of_log_probabilities(encoder_decoder):
    wanted = [expected(encoder_decoder, [1, *new[:-1]], new, context) for context, new in PAIRS]
    assert_scores(encoder_decoder.score(PAIRS), wanted)
    assert not np.allclose(*([encoder_decoder.score([(source, [5])])[0][0]] for source in ([4, 2], [7, 2])))


def test_target_of_a_published_encoder_decoder_begins_with_its_special_tokens(encoder_decoder):
    scorer = make(BART, family="encoder_decoder", num_encoder_layers=1)
    context, new = [0, 9, 8, 2], [5, 6]
    assert_scores(scorer.score([(context, new)]), [expected(scorer, [2, 0, 5], new, context)])


def test_continuations_that_differ_in_their_last_token_share_a_row(decoder):
    letters = [([1, 9, 9, 4], [letter]) for letter in (17, 5, 20)]
    pairs = [*letters, ([1, 9, 9], [4, 17]), ([1], [5, 6, 7])]
    wanted = [expected(decoder, [*context, *new[:-1]], new) for context, new in pairs]
    rows = []
    assert_scores(decoder.score(pairs, report=lambda done, total: rows.append((done, total))), wanted)
    assert rows == [(2, 2)] and wanted[3] != wanted[0]


@pytest.mark.parametrize("family", ["decoder", pytest.param("encoder_decoder", marks=pytest.mark.exhaustive)])
def test_scores_depend_neither_on_the_batch_size_nor_on_the_mesh(family, request):
    scorer = request.getfixturevalue(family)
    wanted = scorer.score(PAIRS)
    for size in (1, 8):
        other = ContinuationScorer(scorer.model, scorer.params, OURS, 0, 32, size)
        assert_scores(other.score(PAIRS), wanted)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with on_mesh(mesh):
        sharded = jax.device_put(scorer.params, param_shardings(abstract_params(scorer.model), mesh))
        assert_scores(ContinuationScorer(scorer.model, sharded, OURS, 0, 32, 3).score(PAIRS), wanted)


def test_long_context_is_cut_on_the_left_and_keeps_bos(decoder):
    scorer = ContinuationScorer(decoder.model, decoder.params, OURS, 0, 8, 3)
    context, new = [1, *range(10, 30)], [5, 6, 7]
    assert_scores(scorer.score([(context, new)]), [expected(scorer, [1, 25, 26, 27, 28, 29, 5, 6], new)])
    without = SpecialTokens(None, 2)
    scorer = ContinuationScorer(decoder.model, decoder.params, without, 0, 8, 3)
    assert_scores(scorer.score([(context[1:], new)]), [expected(scorer, [24, 25, 26, 27, 28, 29, 5, 6], new)])
    longest = list(range(10, 18))  # as long as the model reads: only BOS remains of the context
    assert_scores(scorer.score([([1], longest)]), [expected(scorer, [1, *longest[:-1]], longest)])
    with pytest.raises(UserError, match="a continuation has 9 tokens, but the model scores at most 8"):
        scorer.score([([1], [*longest, 3])])


def test_long_source_is_cut_on_the_left_and_keeps_its_special_tokens():
    scorer = make(BART, family="encoder_decoder", num_encoder_layers=1, max_length=6)
    found = scorer.score([([0, *range(10, 30), 2], [5, 6])])
    assert_scores(found, [expected(scorer, [2, 0, 5], [5, 6], [0, 26, 27, 28, 29, 2])])
    with pytest.raises(UserError, match="a continuation has 6 tokens, but the model scores at most 5"):
        scorer.score([([0, 4, 2], [5] * 6)])


def test_nothing_to_score_is_certain(decoder):
    assert decoder.score([]) == []
    found = decoder.score([([1, 5], []), PAIRS[0]])
    assert found[0] == (0.0, True)
    assert_scores(found[1:], [expected(decoder, [1, 5, 6], [5, 6, 7])])


def test_cut_left():
    assert cut_left([1, 2, 3], 3, 1) == [1, 2, 3]
    assert cut_left([1, 2, 3, 4], 3) == [2, 3, 4]
    assert cut_left([1, 2, 3, 4], 3, 1) == [1, 3, 4]
    assert cut_left([1, 2, 3, 4], 2, 3) == [1, 2]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16, 17, 30])
def test_windows_score_each_token_once(length):
    tokens, windows = list(range(100, 100 + length)), list(rolling_windows(range(100, 100 + length), 1, 8))
    assert [token for _, new in windows for token in new] == tokens
    whole = [1, *tokens]
    for context, new in windows:
        end = whole.index(new[0])
        assert context == whole[:end][-len(context) :]
        assert len(context) + len(new) == min(9, length + 1)  # the last token is no input


def test_windows_of_a_text_that_fits_add_up_to_its_log_probability(decoder):
    tokens = [5, 9, 30, 4, 17, 3]
    (window,) = rolling_windows(tokens, 1, 32)
    assert_scores(decoder.score([window]), [expected(decoder, [1, *tokens[:-1]], tokens)])


def test_few_programs_are_compiled():
    scorer = make(num_heads=4)
    before = token_scores._cache_size()
    scorer.score([([1], [5] * length) for length in range(1, 31)])
    assert token_scores._cache_size() - before <= 4  # rows of 8, 16, 24 and 32 tokens
