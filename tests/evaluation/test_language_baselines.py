"""Unigrams, bigrams and xz against counts by hand, NLTK's smoothing and lzma; chunks change nothing."""

import itertools
import lzma
import math
import random
from collections import Counter

import numpy as np
import pytest
from nltk.lm import WittenBellInterpolated

from lm.data.tokenizing.bytes import ByteTokenizer
from lm.data.tokenizing.vocabularies import WordTokenizer
from lm.evaluation.baselines import language
from lm.evaluation.baselines.baseline import BaselineSetup, NotComputed
from lm.evaluation.baselines.language import BigramBaseline, Bigrams, UnigramBaseline, Unigrams, XzBaseline
from tests.data.examples.stores import make_store

WORDS = WordTokenizer(list("abcdef"))


def sentences(number, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices("aaabbc" + "de" * seed, k=draw.randint(1, 12))) for _ in range(number)]


TRAIN, VALID, OTHER = sentences(40, 0), sentences(15, 1), sentences(5, 2)


@pytest.fixture
def setup(tmp_path):
    stores = {"one": make_store(tmp_path, VALID, WORDS), "two": make_store(tmp_path, OTHER, WORDS)}
    train = {"s": make_store(tmp_path, TRAIN[:25], WORDS), "t": make_store(tmp_path, TRAIN[25:], WORDS)}
    return BaselineSetup(None, None, WORDS, train, {}, stores, {})


def targets(texts):
    """(token before, target) of every target, with the special tokens of documents."""
    for text in texts:
        ids = [WORDS.start_id, *WORDS.encode(text), WORDS.eos_id]
        yield from itertools.pairwise(ids)


def by_hand(texts):
    """Returns functions for the probabilities of a token alone and after another token."""
    alone, pairs = Counter(target for _, target in targets(TRAIN)), Counter(targets(TRAIN))
    V, N, T = WORDS.vocab_size, alone.total(), len(alone)

    def unigram(w):
        return (alone[w] + T / V) / (N + T)

    def bigram(v, w):
        followers = {b: count for (a, b), count in pairs.items() if a == v}
        count, types = sum(followers.values()), len(followers)
        return (followers.get(w, 0) + types * unigram(w)) / (count + types) if types else unigram(w)

    return unigram, bigram


@pytest.mark.parametrize("at_once", [1 << 22, 7, 1])
def test_losses_equal_counts_by_hand_for_any_chunk_size(setup, monkeypatch, at_once):
    monkeypatch.setattr(language, "AT_ONCE", at_once)
    unigram, bigram = by_hand(TRAIN)
    vocabulary = range(WORDS.vocab_size)
    for baseline, p in ((UnigramBaseline(), lambda _, w: unigram(w)), (BigramBaseline(), bigram)):
        metrics = baseline.score(setup).metrics
        for prefix, texts in (("one/", VALID), ("two/", OTHER), ("", VALID + OTHER)):
            pairs = list(targets(texts))
            losses = [-math.log(p(v, w)) for v, w in pairs]
            hits = [w == max(vocabulary, key=lambda each, v=v: p(v, each)) for v, w in pairs]
            assert metrics[f"{prefix}tokens"] == len(pairs)
            assert metrics[f"{prefix}loss"] == pytest.approx(np.mean(losses), rel=1e-12)
            assert metrics[f"{prefix}token_accuracy"] == np.mean(hits)
            assert metrics[f"{prefix}perplexity"] == pytest.approx(math.exp(np.mean(losses)))
        size = sum(len(text.encode()) for text in VALID + OTHER)
        loss = metrics["loss"] * metrics["tokens"]
        assert metrics["bits_per_byte"] == pytest.approx(loss / math.log(2) / size)


def test_probabilities_of_every_context_sum_to_one():
    tokens = np.array([v for pair in targets(TRAIN) for v in pair]).reshape(-1, 2).T
    V = WORDS.vocab_size
    for baseline in (UnigramBaseline(), BigramBaseline()):
        model = baseline.fit(iter([tuple(tokens)]), V)
        for before in range(V):
            p_V, best_V = model.predict(np.full(V, before), np.arange(V))
            assert p_V.sum() == pytest.approx(1, abs=1e-12) and (p_V > 0).all()
            assert best_V.sum() == 1 and p_V[best_V] == p_V.max()


def test_smoothing_equals_nltk():
    """NLTK's lowest order is not smoothed, so only its weights are compared: alpha + gamma * P(w)."""
    padded = [["<s>", *text.split(), "</s>"] for text in TRAIN]
    oracle = WittenBellInterpolated(order=2)
    grams = [[(word,) for word in words[1:]] + list(itertools.pairwise(words)) for words in padded]
    oracle.fit(grams, vocabulary_text=[word for words in padded for word in words])
    name = {WORDS.start_id: "<s>", WORDS.eos_id: "</s>", **dict(enumerate("abcdef", start=4))}
    unigram, _ = by_hand(TRAIN)
    pairs = np.array(list(targets(TRAIN + VALID)))
    model = BigramBaseline().fit(iter([tuple(np.array(list(targets(TRAIN))).T)]), WORDS.vocab_size)
    found, _ = model.predict(*pairs.T)
    for (v, w), p in zip(pairs.tolist(), found, strict=True):
        if oracle.counts[[name[v]]].N():
            alpha, gamma = oracle.estimator.alpha_gamma(name[w], (name[v],))
            assert p == pytest.approx(alpha + gamma * unigram(w), rel=1e-12)


def test_ties_go_to_the_lowest_id():
    assert Unigrams(np.array([2, 5, 5])).predict(np.zeros(3, int), np.arange(3))[1].tolist() == [False, True, False]
    model = Bigrams(Unigrams(np.array([1, 1, 1])), np.array([1, 2]), np.array([4, 4]))  # 0 is followed by 1 and 2
    assert model.predict(np.zeros(3, int), np.arange(3))[1].tolist() == [False, True, False]


def test_training_text_is_bounded(setup, monkeypatch):
    monkeypatch.setattr(language, "MOST_TOKENS", 50)
    scores = UnigramBaseline().score(setup)
    counts = Counter([target for _, target in targets(TRAIN)][:50])
    want = -np.mean(
        [math.log((counts[w] + len(counts) / WORDS.vocab_size) / (50 + len(counts))) for _, w in targets(VALID + OTHER)]
    )
    assert scores.metrics["loss"] == pytest.approx(want)
    total = len(list(targets(TRAIN)))
    assert scores.signatures["unigram"].endswith(f"; fitted to the first 50 of {total:,} training tokens")


def test_xz_equals_lzma(tmp_path):
    store = make_store(tmp_path, VALID, ByteTokenizer())
    scores = XzBaseline().score(BaselineSetup(None, None, ByteTokenizer(), {}, {}, {"s": store}, {}))
    text = "".join(VALID).encode()
    assert scores.metrics == {"bits_per_byte": 8 * len(lzma.compress(text, preset=9)) / len(text)}


def test_xz_needs_a_tokenizer_that_restores_the_text(tmp_path):
    store = make_store(tmp_path, ["a z"], WORDS)
    with pytest.raises(NotComputed, match="the tokenizer replaced text with 1 unknown tokens"):
        XzBaseline().score(BaselineSetup(None, None, WORDS, {}, {}, {"s": store}, {}))
