"""Corruption compared with the papers' layouts, sizes with those of actual examples, frequencies with distributions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.examples.denoising import (
    Infilling,
    PrefixLm,
    SpanCorruption,
    Ul2,
    corrupt,
    noise_counts,
    noise_mask,
    permute_sentences,
    random_segments,
)
from lm.errors import UserError

EOS = 1
EXTRA = [1099 - i for i in range(103)]  # <extra_id_0> is the last token of the vocabulary, as in T5
TEXT = 2  # ids from this one to 996 are ordinary tokens


def rng(seed=0):
    return np.random.default_rng(seed)


def chunk(length, seed=0):
    return rng(seed).integers(TEXT, 900, length).astype(np.int32)


def t5(density=0.15, mean=3.0, sentinels=EXTRA):
    return SpanCorruption(density, mean, sentinels, EOS)


def uncorrupted(source, target):
    """Reconstructs the text from source and target alone."""
    assert source[-1] == target[-1] == EOS
    spans, current = {}, None
    for token in target[:-1].tolist():
        if token in EXTRA:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    text = []
    for token in source[:-1].tolist():
        text += spans.pop(token) if token in EXTRA else [token]
    assert not any(spans.values()), "the target has a span that the source does not have"
    return text


# The sentence of figure 2 of Raffel 2020; X, Y and Z are sentinels 0, 1 and 2.
SENTENCE = "Thank you for inviting me to your party last week ."
MASKED = {"for", "inviting", "last"}


def test_the_layout_is_that_of_the_t5_papers_figure():
    words = SENTENCE.split()
    names = [*words, "<X>", "<Y>", "<Z>", "</s>"]
    mask = np.array([word in MASKED for word in words])
    first = len(words)
    source, target = corrupt(np.arange(first), mask, np.arange(first, first + 3), eos_id=first + 3)
    assert " ".join(names[i] for i in source) == "Thank you <X> me to your party <Y> week . </s>"
    assert " ".join(names[i] for i in target) == "<X> for inviting <Y> last <Z> </s>"
    assert source.dtype == target.dtype == np.int32


def test_no_sentinel_closes_a_target_when_the_last_token_is_masked():
    source, target = corrupt(np.array([10, 11, 12, 13]), np.array([0, 1, 0, 1], bool), np.array([99, 98, 97]), EOS)
    assert source.tolist() == [10, 99, 12, 98, EOS]
    assert target.tolist() == [99, 11, 98, 13, EOS]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_any_mask_can_be_undone(mask):
    tokens = chunk(len(mask))
    assert uncorrupted(*corrupt(tokens, np.array(mask), np.array(EXTRA), EOS)) == tokens.tolist()


@pytest.mark.parametrize(("length", "density", "mean"), [(512, 0.15, 3.0), (568, 0.5, 3.0), (40, 0.15, 8.0)])
def test_masks_have_the_given_share_and_the_given_number_of_spans(length, density, mean):
    generator = rng()
    masks = np.array([noise_mask(length, density, mean, generator) for _ in range(400)])
    noise, spans = (int(each) for each in noise_counts(np.array(length), density, mean))
    assert (masks.sum(axis=1) == noise).all() and noise == round(length * density)
    begins = masks & ~np.pad(masks, ((0, 0), (1, 0)))[:, :-1]
    assert (begins.sum(axis=1) == spans).all() and spans == max(1, round(noise / mean))
    assert not masks[:, 0].any() and masks[:, -1].all()


def test_short_chunks_have_one_span_and_one_token_left():
    noise, spans = noise_counts(np.array([2, 3, 4, 10]), 0.15, 3.0)
    assert noise.tolist() == [1, 1, 1, 2] and spans.tolist() == [1, 1, 1, 1]
    assert [int(each) for each in noise_counts(np.array(10), 0.9, 1.0)] == [9, 1], "no more spans than gaps"
    assert noise_mask(2, 0.9, 3.0, rng()).tolist() == [False, True]


def test_fifteen_percent_and_a_mean_span_of_three_hold_over_a_corpus():
    lengths = rng(5).integers(30, 569, 3000)
    noise, spans = noise_counts(lengths, 0.15, 3.0)
    # The numbers of masked tokens and spans are rounded without bias, so only sampling error remains.
    assert noise.sum() / lengths.sum() == pytest.approx(0.15, rel=0.005)
    assert noise.sum() / spans.sum() == pytest.approx(3.0, rel=0.01)


def test_every_way_to_cut_into_segments_is_equally_likely():
    generator = rng()
    draws = [tuple(random_segments(6, 3, generator).tolist()) for _ in range(6000)]
    counts = {cut: draws.count(cut) for cut in set(draws)}
    assert len(counts) == math.comb(5, 2) and all(sum(cut) == 6 and min(cut) >= 1 for cut in counts)
    assert all(abs(count - 600) < 5 * math.sqrt(600) for count in counts.values())
    assert random_segments(1, 1, generator).tolist() == [1] and random_segments(3, 3, generator).tolist() == [1, 1, 1]


def test_equal_keys_give_equal_masks_and_others_do_not():
    tokens = chunk(200)
    one, same, other = (t5().make(tokens, np.zeros(0), rng(seed)) for seed in (7, 7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])


def test_chunk_lengths_are_those_of_t5():
    assert t5().longest_chunk(512, 114) == 568
    assert t5().longest_chunk(512, 512) == 568
    assert t5().longest_chunk(512, 113) < 568
    assert [int(size[0]) for size in t5().sizes(np.array([568]), np.zeros((1, 0)))] == [512, 114]
    assert int(t5().sizes(np.array([569]), np.zeros((1, 0)))[0][0]) == 513


DENOISERS = {
    "t5": t5(),
    "few_sentinels": t5(sentinels=EXTRA[:3]),
    "dense": t5(density=0.5, mean=3.0),
    "ul2": Ul2(EXTRA, EOS),
    "infilling": Infilling(0.3, 3.0, EXTRA[0], EOS),
    "infilling_short": Infilling(0.3, 1.3, EXTRA[0], EOS),
    "prefix_lm": PrefixLm(EOS),
}


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize(("source_length", "target_length"), [(64, 64), (64, 20), (20, 64)])
def test_examples_have_the_predicted_sizes_and_fit_the_row(name, source_length, target_length):
    denoiser = DENOISERS[name]
    longest = denoiser.longest_chunk(source_length, target_length)
    lengths = np.concatenate([np.arange(2, longest + 1), np.full(200, longest)])
    draws = denoiser.draw(lengths, rng(1))
    source_sizes, target_sizes = denoiser.sizes(lengths, draws)
    assert source_sizes.max() <= source_length and target_sizes.max() <= target_length
    for i, length in enumerate(lengths):
        source, target = denoiser.make(chunk(length, i), draws[i], rng(i))
        assert (len(source), len(target)) == (source_sizes[i], target_sizes[i])
        assert source[-1] == target[-1] == EOS and source.dtype == target.dtype == np.int32
    assert not denoiser.fits(np.array([longest + 1]), source_length, target_length).any(), "a longer one would fit too"


@pytest.mark.parametrize("denoiser", [t5(), t5(0.5, 3.0), t5(0.3, 1.0)])
def test_source_and_target_together_give_the_text(denoiser):
    for length in [2, 3, 7, 50, 100]:
        tokens = chunk(length, length)
        assert uncorrupted(*denoiser.make(tokens, np.zeros(0), rng(length))) == tokens.tolist()


def test_ul2_mixes_seven_denoisers_evenly_and_names_the_mode():
    denoiser, lengths = Ul2(EXTRA, EOS), np.full(7000, 400)
    draws = denoiser.draw(lengths, rng())
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in np.bincount(draws[:, 0], minlength=7))
    seen = {}
    for i in range(300):
        tokens = chunk(400, i)
        source, target = denoiser.make(tokens, draws[i], rng(i))
        mode = {EXTRA[100]: "R", EXTRA[101]: "S", EXTRA[102]: "X"}[int(source[0])]
        if mode == "S":
            assert source[1:-1].tolist() + target[:-1].tolist() == tokens.tolist()
        else:
            assert uncorrupted(source[1:], target) == tokens.tolist()
            spans = int(np.isin(target, EXTRA).sum())
            seen.setdefault(mode, set()).add((len(target) - 1 - spans, spans))
    # (masked tokens, spans) for 400 tokens: 15 % of them are 60, half are 200.
    assert seen == {"R": {(60, 20), (60, 8)}, "X": {(200, 67), (200, 25), (60, 1), (200, 3)}}


def test_a_prefix_is_cut_anywhere():
    denoiser, tokens = PrefixLm(EOS), chunk(6)
    draws = denoiser.draw(np.full(5000, 6), rng())
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in np.bincount(draws[:, 0])[1:])
    assert np.bincount(draws[:, 0])[0] == 0 and draws.max() == 5
    source, target = denoiser.make(tokens, np.array([4]), rng())
    assert source.tolist() == [*tokens[:4], EOS] and target.tolist() == [*tokens[4:], EOS]


def spans_of(source, tokens, mask):
    """Returns (number of omitted tokens, number of masks) for each run of masks in a source.

    No token may occur twice in the text.
    """
    index = {token: i for i, token in enumerate(tokens.tolist())}
    lengths, last, waiting = [], -1, 0
    for token in [*source[:-1].tolist(), None]:
        if token == mask:
            waiting += 1
            continue
        here = len(tokens) if token is None else index[token]
        masked = here - last - 1
        assert waiting or not masked, "tokens are missing where there is no mask"
        lengths += [(masked, waiting)] if waiting else []
        last, waiting = here, 0
    return lengths


def test_infilling_masks_its_share_in_poisson_spans_and_asks_for_the_whole_text():
    length, density, mean = 300, 0.3, 3.0
    denoiser, tokens = Infilling(density, mean, EXTRA[0], EOS), np.arange(TEXT, TEXT + length, dtype=np.int32)
    draws = denoiser.draw(np.full(600, length), rng())
    singles, masks, masked = [], 0, 0
    for i, draw in enumerate(draws):
        source, target = denoiser.make(tokens, draw, rng(i))
        assert target.tolist() == [*tokens, EOS]
        spans = spans_of(source, tokens, EXTRA[0])
        assert sum(each for each, _ in spans) == round(density * length)
        masks, masked = masks + sum(count for _, count in spans), masked + sum(each for each, _ in spans)
        singles += [each for each, count in spans if count == 1]
    assert masked / masks == pytest.approx(mean, rel=0.02), "the last span of a text is cut, so a little less"
    frequency = np.bincount(singles)[:7] / len(singles)
    poisson = [math.exp(-mean) * mean**k / math.factorial(k) for k in range(7)]
    assert np.abs(frequency - poisson).max() < 0.015 and singles.count(0) > 0


def test_the_number_of_spans_is_that_of_drawing_lengths_until_enough_is_masked():
    length, density, mean, trials = 40, 0.3, 3.0, 20_000
    denoiser = Infilling(density, mean, EXTRA[0], EOS)
    noise = round(length * density)
    source_sizes, _ = denoiser.sizes(np.full(trials, length), denoiser.draw(np.full(trials, length), rng()))
    spans = source_sizes - 1 - (length - noise)
    sums = np.cumsum(rng(1).poisson(mean, (trials, 60)), axis=1)
    drawn = np.minimum(np.argmax(sums >= noise, axis=1) + 1, noise)
    one, other = (np.bincount(each, minlength=noise + 1) / trials for each in (spans, drawn))
    assert np.abs(one - other).max() < 0.02


def test_whole_sentences_are_shuffled_in_the_source_only():
    ends = np.zeros(1100, bool)
    ends[5] = True
    tokens = np.array([10, 11, 5, 20, 5, 30, 31, 32, 5, 40], np.int32)  # the last sentence has no end token
    sentences = ["10 11 5", "20 5", "30 31 32 5", "40"]
    seen = set()
    for seed in range(300):
        shuffled = permute_sentences(tokens, ends, rng(seed))
        text = " ".join(map(str, shuffled))
        assert sorted(shuffled) == sorted(tokens) and all(f" {each} " in f" {text} " for each in sentences)
        seen.add(text)
    assert len(seen) == math.factorial(4)
    assert permute_sentences(np.array([7, 5]), ends, rng()).tolist() == [7, 5]

    denoiser = Infilling(0.01, 3.0, EXTRA[0], EOS, ends)
    draws = denoiser.draw(np.full(20, len(tokens)), rng())
    made = [denoiser.make(tokens, draw, rng(i)) for i, draw in enumerate(draws)]
    assert all(target.tolist() == [*tokens, EOS] for _, target in made)
    assert any(source[0] in (20, 30, 40) for source, _ in made)


def test_rows_too_short_for_any_chunk_are_refused():
    with pytest.raises(UserError, match="sequence_length"):
        t5().longest_chunk(2, 2)
