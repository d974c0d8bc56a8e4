"""The choice of masked tokens: its frequencies over many tokens, and its equality to a loop over words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.examples.masked import Masking, choose_words
from lm.errors import UserError

MASK, BOS, EOS, V = 99, 1, 2, 100
TEXT_IDS = np.arange(4, 90, dtype=np.int32)  # 90 to 98 are extra ids as well
STARTS = np.arange(V) % 4 == 0  # which tokens begin words


def rng(seed=0):
    return np.random.default_rng(seed)


def example(length, seed=0):
    """Returns bos, text, eos, text, eos, and whether each token is text."""
    tokens = rng(seed).choice(TEXT_IDS, length)
    special = [0, length // 2, length - 1]
    tokens[special] = BOS, EOS, EOS
    is_text = np.ones(length, bool)
    is_text[special] = False
    return tokens, is_text


def within(count, total, share, tolerance=5):
    return abs(count - share * total) < tolerance * np.sqrt(total * share * (1 - share))


def test_15_percent_are_masked_and_of_these_80_are_read_as_mask_10_as_random_and_10_as_they_are():
    masking = Masking(0.15, MASK, TEXT_IDS)
    total = masks = kept = 0
    drawn, where = [], np.zeros(203)
    for seed in range(1500):
        tokens, is_text = example(203, seed)
        read, targets, weights = masking.mask(tokens, is_text, rng(seed))
        masked = weights > 0
        assert masked.sum() == 30 and not masked[~is_text].any(), "15 % of 200, and no special token"
        assert np.array_equal(read[~masked], tokens[~masked]) and not targets[~masked].any()
        assert np.array_equal(targets[masked], tokens[masked])
        assert (read.dtype, targets.dtype, weights.dtype) == (np.int32, np.int32, np.float32)
        where += masked
        total, masks = total + masked.sum(), masks + (read == MASK).sum()
        kept += (masked & (read == tokens)).sum()
        drawn.append(read[masked & (read != tokens) & (read != MASK)])
    others = np.concatenate(drawn)
    same = 1 / len(TEXT_IDS)  # probability that the random token is the masked one itself
    assert within(masks, total, 0.8) and within(kept, total, 0.1 + 0.1 * same)
    assert within(len(others), total, 0.1 * (1 - same))
    assert set(others.tolist()) == set(TEXT_IDS.tolist()), "any ordinary token, and no other"
    counts = np.bincount(others, minlength=V)[TEXT_IDS]
    assert np.sum((counts - counts.mean()) ** 2 / counts.mean()) < 86 + 5 * np.sqrt(2 * 86), "chi-squared"
    text = is_text.nonzero()[0]
    assert within(where[text].min(), 1500, 0.15) and within(where[text].max(), 1500, 0.15), "all positions equally"


@pytest.mark.parametrize(("length", "masked"), [(1, 1), (3, 1), (9, 1), (11, 2), (20, 3), (30, 4), (50, 8), (512, 77)])
def test_the_number_of_masked_tokens_is_the_rounded_share_and_at_least_one(length, masked):
    _, _, weights = Masking(0.15, MASK, TEXT_IDS).mask(np.full(length, 5), np.ones(length, bool), rng())
    assert weights.sum() == masked


@pytest.mark.parametrize("starts", [None, STARTS])
def test_an_example_without_text_is_not_changed(starts):
    tokens = np.array([BOS, EOS, EOS])
    read, targets, weights = Masking(0.15, MASK, TEXT_IDS, starts).mask(tokens, np.zeros(3, bool), rng())
    assert np.array_equal(read, tokens) and not targets.any() and not weights.any()


def test_the_input_is_not_changed_and_the_generator_decides():
    tokens, is_text = example(100)
    before = tokens.copy()
    for starts in (None, STARTS):
        masking = Masking(0.15, MASK, TEXT_IDS, starts)
        one, same, other = (masking.mask(tokens, is_text, rng(seed)) for seed in (3, 3, 4))
        assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
        assert not np.array_equal(one[2], other[2]) and np.array_equal(tokens, before)


def by_hand(starts, wanted, order):
    """Follows BERT's rule word by word: a word with too many tokens is skipped."""
    words = []
    for i, begins in enumerate(starts):
        if i == 0 or begins:
            words.append([])
        words[-1].append(i)
    chosen = []
    for number in order(len(words)):
        if len(chosen) + len(words[number]) <= wanted:
            chosen += words[number]
    if not chosen:
        chosen = words[min(order(len(words)), key=lambda number: len(words[number]))]
    return sorted(chosen)


@settings(max_examples=200, deadline=None)
@given(starts=st.lists(st.booleans(), min_size=1, max_size=60), wanted=st.integers(1, 20), seed=st.integers(0, 9))
def test_whole_words_are_chosen_as_in_a_loop(starts, wanted, seed):
    chosen = np.flatnonzero(choose_words(np.array(starts), wanted, rng(seed)))
    assert chosen.tolist() == by_hand(starts, wanted, lambda count: rng(seed).permutation(count).tolist())


def test_whole_words_are_masked_also_around_a_special_token():
    masking = Masking(0.15, MASK, TEXT_IDS, STARTS)
    masked = wanted = across = 0
    for seed in range(400):
        tokens, is_text = example(103, seed)
        _, _, weights = masking.mask(tokens, is_text, rng(seed))
        text = np.flatnonzero(is_text)
        word = np.cumsum(STARTS[tokens[text]] | (np.arange(len(text)) == 0))
        shares = np.bincount(word, weights[text]) / np.maximum(np.bincount(word), 1)
        assert set(shares.tolist()) <= {0.0, 1.0} and not weights[~is_text].any()
        masked, wanted = masked + weights.sum(), wanted + 15
        assert 0 < weights.sum() <= 15
        across += weights[50] and weights[52] and not STARTS[tokens[52]]  # the special token is the 51st
    assert masked > 0.98 * wanted and across > 5


def test_if_all_words_are_too_long_a_shortest_one_is_masked():
    assert choose_words(np.array([1, 0, 0, 1, 0, 1, 0, 0]), 1, rng()).tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert choose_words(np.zeros(7, bool), 1, rng()).all(), "one word alone"
    seconds = [choose_words(np.array([1, 0, 1, 0]), 1, rng(seed))[2] for seed in range(200)]
    assert within(sum(seconds), 200, 0.5), "any of those that are equally short"


def test_the_arguments_decide_density_mask_and_whole_words():
    masking = Masking(0.5, 5, TEXT_IDS)
    tokens = np.full(1000, 7)
    read, _, weights = masking.mask(tokens, np.ones(1000, bool), rng())
    assert weights.sum() == 500 and within((read == 5).sum(), 500, 0.8), "5 is the mask and never a random token"
    whole = Masking(0.15, MASK, TEXT_IDS, np.arange(V) == 8)
    _, _, weights = whole.mask(np.where(np.arange(1000) % 50, 7, 8), np.ones(1000, bool), rng())
    assert np.isin(weights.reshape(20, 50).sum(axis=1), (0, 50)).all() and weights.sum() == 150


def test_a_vocabulary_that_does_not_mark_words_is_refused():
    with pytest.raises(UserError, match=r"config.objective.whole_words"):
        Masking(0.15, MASK, TEXT_IDS, np.zeros(V, bool))
