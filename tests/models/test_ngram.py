"""n-gram models: counts, five kinds of smoothing against brute force and KenLM, and look-ups in packed rows."""

import itertools
import json
import math
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.ngram_parity import GOLDEN, SMALL_ORDER, differences, drawn, entries, our_arpa
from lm.batch import Batch
from lm.config import ModelConfig
from lm.config.ngram import NgramSettings
from lm.errors import UserError
from lm.models.heads import NextToken
from lm.models.ngram import counting
from lm.models.ngram import smoothing as smoothing_module
from lm.models.ngram.arpa import params_of, read_arpa
from lm.models.ngram.interpolation import estimated_lambdas
from lm.models.ngram.model import NgramModel
from lm.models.ngram.smoothing import estimates, kneser_ney_discounts, numbers_of
from lm.models.ngram.table import ZERO, fitted

PAD, BOS, EOS, UNK, V = 0, 1, 2, 3, 10
POSSIBLE = np.arange(V) >= EOS
SETTINGS = {
    "maximum_likelihood": {},
    "add_k": {"add": 0.3},
    "jelinek_mercer": {"lambdas": (0.9, 0.6, 0.3)},
    "absolute_discounting": {"discount": 0.6},
    "kneser_ney": {"fallback_discounts": (0.4, 0.9, 1.3)},
}


def documents():
    random = np.random.default_rng(0)
    return [[BOS, *(4 + random.geometric(0.4, random.integers(0, 9)) % 6).tolist(), EOS] for _ in range(40)]


def store_of(texts):
    starts = np.cumsum([0, *map(len, texts)])
    return SimpleNamespace(tokens=np.concatenate(texts), starts=starts[:-1], num_tokens=int(starts[-1]))


def levels_of(texts, order, folder):
    half = len(texts) // 2
    return counting.count_ngrams([store_of(texts[:half]), store_of(texts[half:])], order, V, BOS, folder)


def spelled(levels):
    """Returns the n-grams of each order as tuples."""
    found = [[(word,) for word in range(V)]]
    for level in levels[1:]:
        found.append([(*found[-1][p], int(word)) for p, word in zip(level.parents, level.words, strict=True)])
    return found


def occurrences(texts, n):
    return Counter(tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1))


@pytest.mark.parametrize("chunk", [5, 50, 1 << 22])
def test_counts_do_not_depend_on_the_chunks_and_equal_brute_force(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(counting, "CHUNK", chunk)
    levels = levels_of(documents(), 4, tmp_path)
    names = spelled(levels)
    for n, (level, ngrams) in enumerate(zip(levels[1:], names[1:], strict=True), start=2):
        assert dict(zip(ngrams, level.counts.tolist(), strict=True)) == occurrences(documents(), n)
        assert ngrams == sorted(ngrams)
        assert [names[n - 2][i] for i in level.suffixes] == [each[1:] for each in ngrams]
        assert level.initial.tolist() == [each[0] == BOS for each in ngrams]
    assert levels[0].counts[BOS] == 0 and levels[0].counts.sum() == sum(len(each) - 1 for each in documents())
    assert not list(tmp_path.iterdir())  # the temporary files are gone


class BruteForce:
    """Chen & Goodman's formulas, one probability at a time."""

    def __init__(self, texts, order, smoothing, add=1.0, lambdas=(), discount=0.0, fallback_discounts=()):
        self.order, self.smoothing, self.add, self.lambdas = order, smoothing, add, lambdas
        self.fixed, self.fallback = (0, *[discount] * 3), (0, *fallback_discounts)
        self.words = np.nonzero(POSSIBLE)[0].tolist()
        self.counts = {n: occurrences(texts, n) for n in range(1, order + 1)}
        del self.counts[1][(BOS,)]
        if smoothing == "kneser_ney":
            for n in range(1, order):
                before = Counter(each[1:] for each in occurrences(texts, n + 1))
                own = {each: c for each, c in self.counts[n].items() if each[0] == BOS}
                self.counts[n] = before | Counter(own)

    def after(self, context):
        return {w: c for w in self.words if (c := self.counts[len(context) + 1].get((*context, w), 0))}

    def discounts(self, n):
        """Returns equation 26 of Chen & Goodman, or the fallback if it does not apply."""
        if self.smoothing != "kneser_ney":
            return self.fixed
        number = Counter(self.counts[n].values())
        if not (number[1] and number[2] and number[3]):
            return self.fallback
        y = number[1] / (number[1] + 2 * number[2])
        found = (0, *(i - (i + 1) * y * number[i + 1] / number[i] for i in (1, 2, 3)))
        return found if all(0 <= each <= i for i, each in enumerate(found)) else self.fallback

    def probability(self, word, context):
        context = tuple(context)[-(self.order - 1) :] if self.order > 1 else ()
        found = self.after(context)
        lower = self.probability(word, context[1:]) if context else 1 / len(self.words)
        if not found:
            return lower
        total, count = sum(found.values()), found.get(word, 0)
        if self.smoothing == "maximum_likelihood":
            return count / total
        if self.smoothing == "add_k":
            return (count + self.add) / (total + self.add * len(self.words))
        if self.smoothing == "jelinek_mercer":
            weight = self.lambdas[len(context)]
            return weight * count / total + (1 - weight) * lower
        discounts = self.discounts(len(context) + 1)
        taken = sum(min(discounts[min(c, 3)], c) for c in found.values())
        return max(count - discounts[min(count, 3)], 0) / total + taken / total * lower


def model_of(params, order, smoothing):
    sizes = tuple(len(params[f"order_{k}"]["words"]) for k in range(2, order + 1))
    ngram = NgramSettings(order=order, smoothing=smoothing, sizes=sizes)
    vocab_size = len(params["order_1"]["log_probs"])
    config = ModelConfig(architecture="ngram", vocab_size=vocab_size, ngram=ngram, max_length=64)
    return NgramModel.build(config, NextToken())


def logits_of(model, params, batch):
    return np.asarray(jax.jit(lambda *given: model.apply(*given).logits)({"params": params}, batch), np.float64)


def rows(tokens, segments=None):
    tokens = np.array(tokens, np.int32)
    segments = np.ones_like(tokens) if segments is None else np.array(segments, np.int32)
    return Batch(tokens, tokens, np.ones(tokens.shape, np.float32), tokens * 0, segments)


@pytest.mark.parametrize(("smoothing", "order"), [*itertools.product(SETTINGS, (3,)), ("kneser_ney", 1), ("add_k", 2)])
def test_every_probability_equals_brute_force(tmp_path, monkeypatch, smoothing, order):
    monkeypatch.setattr(smoothing_module, "BLOCK", 7)
    settings = SETTINGS[smoothing] | (
        {"lambdas": SETTINGS[smoothing]["lambdas"][:order]} if "lambdas" in SETTINGS[smoothing] else {}
    )
    levels = levels_of(documents(), order, tmp_path)
    params, _ = fitted(levels, NgramSettings(order=order, smoothing=smoothing, **settings), POSSIBLE)
    expected = BruteForce(documents(), order, smoothing, **settings)
    contexts = [[BOS, 4, 5, 4, 9, UNK, 4, 5], [4, 4, 4, 6, 7, 8, 9, 5], [UNK, 9, 8, 4, 5, 6, 4, 4]]
    model = model_of(params, order, smoothing)
    logits_BLV = logits_of(model, params, rows(contexts))
    for row, end in itertools.product(range(3), range(8)):
        found = np.exp(logits_BLV[row, end])
        wanted = [expected.probability(w, contexts[row][: end + 1]) if POSSIBLE[w] else 0.0 for w in range(V)]
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-30)
        assert sum(wanted) == pytest.approx(1, abs=1e-9)
    assert logits_BLV.min() >= ZERO - 1e-3  # finite, so that the loss of an impossible token is finite too


@pytest.mark.parametrize("smoothing", SETTINGS)
def test_the_probabilities_of_every_context_sum_to_one(tmp_path, smoothing):
    levels = levels_of(documents(), 3, tmp_path)
    names = spelled(levels)
    settings = NgramSettings(order=3, smoothing=smoothing, **SETTINGS[smoothing])
    found = list(estimates(levels, settings, POSSIBLE))
    assert found[0].probabilities.sum() == pytest.approx(1, abs=1e-9)
    lower = dict(zip(names[0], found[0].probabilities, strict=True))
    for n, (level, estimate) in enumerate(zip(levels[1:], found[1:], strict=True), start=2):
        listed = dict(zip(names[n - 1], estimate.probabilities, strict=True))
        for context, reserved, size in zip(names[n - 2], estimate.reserved, np.diff(level.begins), strict=True):
            if n == 3 and not size:
                continue  # an unseen context is shortened
            shares = {w: 1 / POSSIBLE.sum() if smoothing == "add_k" else lower.get((*context[1:], w)) for w in range(V)}
            if None in shares.values():
                continue  # of a lower context that is itself incomplete, which the test above covers
            total = sum(listed.get((*context, w), reserved * shares[w]) for w in np.nonzero(POSSIBLE)[0])
            assert total == pytest.approx(1, abs=1e-9), context
        lower = listed


def test_kneser_ney_equals_kenlm_for_every_ngram():
    golden = json.loads(GOLDEN.read_text())
    ours = our_arpa(drawn(), SMALL_ORDER)
    assert max(differences(entries(ours), entries(golden["arpa"]))) < 2e-6


def test_an_arpa_file_of_kenlm_scores_sentences_as_kenlm_does():
    golden = json.loads(GOLDEN.read_text())
    arpa = read_arpa(golden["arpa"].splitlines())
    ids = {word: number for number, word in enumerate(arpa.words)}
    params = params_of(arpa, np.arange(len(ids)), len(ids), ids["<s>"])
    model = model_of(params, SMALL_ORDER, "arpa")
    sentences = [
        [ids["<s>"], *(ids.get(word, ids["<unk>"]) for word in sentence.split()), ids["</s>"]]
        for sentence in golden["scores"]
    ]
    longest = max(map(len, sentences))
    logits_BLV = logits_of(model, params, rows([each + [0] * (longest - len(each)) for each in sentences]))
    for words, logits_LV, scores in zip(sentences, logits_BLV, golden["scores"].values(), strict=True):
        found = [logits_LV[i, word] / math.log(10) for i, word in enumerate(words[1:])]
        np.testing.assert_allclose(found, scores, atol=1e-4)


def test_texts_of_a_packed_row_do_not_see_each_other_and_decoding_equals_one_pass(tmp_path):
    settings = NgramSettings(order=4, fallback_discounts=(0.5, 1.0, 1.5))
    params, _ = fitted(levels_of(documents(), 4, tmp_path), settings, POSSIBLE)
    model = model_of(params, 4, "kneser_ney")
    params = jax.tree.map(jnp.asarray, params)
    apply = jax.jit(lambda batch, cache=None: model.apply({"params": params}, batch, cache=cache))
    tokens = [BOS, 4, 5, 4, 6, BOS, 5, 4, 4, 6, 5, PAD]
    packed = apply(rows([tokens], [[1] * 5 + [2] * 6 + [0]])).logits[0]
    alone = [
        apply(rows([part + [PAD] * (12 - len(part))], [[1] * len(part) + [0] * (12 - len(part))])).logits[0]
        for part in (tokens[:5], tokens[5:11])
    ]
    np.testing.assert_array_equal(packed[:5], alone[0][:5])
    np.testing.assert_array_equal(packed[5:11], alone[1][:6])
    # Two rows of different lengths: a prefill with padding on the right, then one token at a time, with rows swapped.
    cache = apply(rows([[BOS, 4, 5], [BOS, 5, PAD]], [[1, 1, 1], [1, 1, 0]]), model.empty_cache(2, 12)).cache
    step = apply(rows([[4], [4]]), cache.take_rows(np.array([1, 0])))
    swapped = apply(rows([[BOS, 5, 4, PAD], [BOS, 4, 5, 4]], [[1, 1, 1, 0], [1, 1, 1, 1]])).logits
    np.testing.assert_array_equal(step.logits[0, 0], swapped[0, 2])
    np.testing.assert_array_equal(step.logits[1, 0], swapped[1, 3])
    assert cache.repeat_rows(2).tokens_BC.tolist() == [[BOS, 4, 5], [BOS, 4, 5], [-1, BOS, 5], [-1, BOS, 5]]


def test_discounts_are_those_of_the_formula_and_refused_where_kenlm_refuses_them(tmp_path):
    def discounts(numbers, *fallback):
        """Returns the discounts of 2-grams of which `numbers[i]` occur i + 1 times."""
        repeated = np.repeat(np.arange(1, len(numbers) + 1), numbers)
        return kneser_ney_discounts(NgramSettings(fallback_discounts=fallback), 2, numbers_of(repeated))

    y = 40 / (40 + 2 * 20)
    wanted = [0, 1 - 2 * y * 20 / 40, 2 - 3 * y * 10 / 20, 3 - 4 * y * 5 / 10]
    np.testing.assert_allclose(discounts((40, 20, 10, 5, 9)), wanted, rtol=1e-12)
    for numbers, reason in (((40, 20, 0, 5), "no 2-gram has the count 3"), ((40, 2, 30, 9), "count 2 would be -")):
        with pytest.raises(UserError, match=reason):
            discounts(numbers)
        assert discounts(numbers, 0.5, 1, 1.5).tolist() == [0, 0.5, 1, 1.5]


def test_deleted_interpolation_maximises_the_likelihood_of_what_is_left_out(tmp_path):
    levels = levels_of(documents(), 2, tmp_path)
    found = estimated_lambdas(NgramSettings(order=2, smoothing="jelinek_mercer"), levels, int(POSSIBLE.sum())).lambdas

    def likelihood(lambdas):
        pairs, total = occurrences(documents(), 2), 0.0
        ones = Counter(token for text in documents() for token in text[1:])
        heads = Counter(first for first, _ in pairs.elements())
        for (first, second), count in pairs.items():
            p = (1 - lambdas[0]) / POSSIBLE.sum() + lambdas[0] * (ones[second] - 1) / (ones.total() - 1)
            if heads[first] > 1:
                p = (1 - lambdas[1]) * p + lambdas[1] * (count - 1) / (heads[first] - 1)
            total += count * math.log(p)
        return total

    best = likelihood(found)
    for change in itertools.product((-0.02, 0, 0.02), repeat=2):
        assert likelihood([min(max(a + b, 0), 0.999) for a, b in zip(found, change, strict=True)]) <= best + 1e-3
