"""Rows, losses and counts of word vectors, compared with loops over all pairs of words."""

from itertools import combinations
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest

from lm.batch import Batch, Output
from lm.config import ModelConfig, ObjectiveConfig
from lm.data.examples.contexts import ContextExamples, ContextRows, ContextSampling, kept_share, word_counts
from lm.data.packing.rows import RowLayout
from lm.data.storing.pair_counts import count_pairs, mixed
from lm.data.tokenizing.ngrams import buckets_of, ngram_table, ngrams
from lm.models import build_model
from lm.models.parameters import count_parameters
from lm.models.word_vectors.heads import CbowScores, CountScores, SkipGramScores
from lm.objectives.word_pairs import count_loss, negative_sampling_loss
from tests.small_model import random_params

V, WINDOW, NOISE, LENGTH, BUCKETS = 30, 3, 5, 64, 40
PER_ROW = 2 * NOISE  # random words, for two blocks of 32 words
IS_WORD = np.arange(V) >= 4
OBJECTIVE = ObjectiveConfig(negatives=2, count_limit=4.0)
WORDS = [None] * 4 + [f"word{i}" for i in range(V - 4)]


def store_of(seed, lengths):
    rng = np.random.default_rng(seed)
    tokens = np.minimum(3 + rng.geometric(0.15, sum(lengths)), V - 1).astype(np.uint16)  # 4 is the most frequent
    tokens[rng.random(len(tokens)) < 0.1] = 3
    starts = np.cumsum([0, *lengths])[:-1]
    counts = {"documents": len(lengths), "unknown": 0}
    return SimpleNamespace(
        tokens=tokens, starts=starts, num_tokens=len(tokens), num_documents=len(lengths), counts=counts
    )


STORE = store_of(0, [40, 1, 90, 33, 2, 120, 80])


def sampling(whole_context=False, threshold=0.05, table=None, max_ngrams=0, length=LENGTH):
    counts_V = word_counts([STORE], V, np.flatnonzero(IS_WORD))
    return ContextSampling(counts_V, length, WINDOW, PER_ROW, threshold, whole_context, table, max_ngrams)


def batch_of(draws, rows=4, source_length=PER_ROW):
    found = ContextRows("a", STORE, 0, draws)
    layout = RowLayout(LENGTH, source_length, with_types=True)
    return layout.lay_out([found.row(0, row) for row in range(min(rows, found.num_rows(0)))])


def pairs_of(batch: Batch, row: int):
    """Yields (i, j) for each word j in the context of word i."""
    for i in range(LENGTH):
        for j in range(LENGTH):
            near = 0 < abs(i - j) <= batch.types[row, i]
            if near and batch.segments[row, i] == batch.segments[row, j] > 0:
                yield i, j


def noise_of(batch: Batch, row: int, i: int):
    """Returns the random words with which word i is compared: those of its block."""
    begin = NOISE * (i // 32)
    return batch.source.tokens[row, begin : begin + NOISE]


def softplus(x):
    return np.log1p(np.exp(x))


# --- rows ---------------------------------------------------------------------------------------------------------


def test_kept_share_is_the_formula_of_word2vec():
    counts = np.array([0, 900, 99, 1])
    # f = 0.9, 0.099 and 0.001: sqrt(0.01 / 0.9) + 0.01 / 0.9 = 0.1165, sqrt(0.01 / 0.099) + 0.01 / 0.099 = 0.4188
    np.testing.assert_allclose(kept_share(counts, 0.01), [0, 0.116521, 0.418831, 1], atol=1e-6)
    np.testing.assert_array_equal(kept_share(counts, 0), [0, 1, 1, 1])


def test_words_random_words_and_radii_have_their_distributions():
    draws, rng = sampling(), np.random.default_rng(1)
    tokens, documents = np.tile(STORE.tokens, 60), np.zeros(60 * STORE.num_tokens, np.int64)
    wide = sampling(length=10**6)
    example = wide.example(tokens, documents, rng)
    kept = np.bincount(example.tokens_T, minlength=V) / np.maximum(1, np.bincount(tokens, minlength=V))
    np.testing.assert_allclose(kept, draws.kept_V, atol=0.08)
    assert kept[:4].max() == 0, "special and unknown tokens are dropped"
    np.testing.assert_allclose(np.bincount(example.types_T)[1:] / len(example.types_T), [1 / 3] * 3, atol=0.02)
    noise = np.concatenate([draws.example(tokens[:9], documents[:9], rng).source_S for _ in range(4000)])
    expected = draws.counts_V**0.75 / np.sum(draws.counts_V**0.75)
    np.testing.assert_allclose(np.bincount(noise, minlength=V) / len(noise), expected, atol=0.01)


@pytest.mark.parametrize("whole", [False, True])
def test_weights_count_the_pairs_and_documents_are_kept_apart(whole):
    batch = batch_of(sampling(whole))
    assert batch.shape == (4, LENGTH) and (batch.segments > 1).any()
    for row in range(len(batch.tokens)):
        counts = np.bincount([i for i, _ in pairs_of(batch, row)], minlength=LENGTH)
        np.testing.assert_array_equal(batch.weights[row], np.minimum(counts, 1) if whole else counts)
    assert 0.85 < np.mean(batch.segments > 0) <= 1


@pytest.mark.parametrize("max_ngrams", [0, 300])
def test_evaluation_rows_cover_the_text_once_and_never_change(max_ngrams):
    table = ngram_table(WORDS, (3, 4), BUCKETS) if max_ngrams else None
    draws = sampling(threshold=0.0, table=table, max_ngrams=max_ngrams)
    examples = ContextExamples("a", STORE, 0, draws, (LENGTH, PER_ROW))
    found = [examples.make(0, i) for i in range(len(examples))]
    words = STORE.tokens[IS_WORD[STORE.tokens]]
    np.testing.assert_array_equal(np.concatenate([each.tokens_T for each in found]), words)
    sizes = [table.counts_V[each.tokens_T].sum() if max_ngrams else len(each.tokens_T) for each in found]
    assert max(sizes) <= (max_ngrams or LENGTH) and min(sizes[:-1]) > 0.9 * max(sizes)
    assert examples.num_targets() == sum(each.weights_T.sum() for each in found)
    subsampled = ContextExamples("a", STORE, 0, sampling(), (LENGTH, PER_ROW))
    assert [len(subsampled.make(0, i).tokens_T) for i in range(len(subsampled) - 1)] == [LENGTH] * (len(subsampled) - 1)
    again = ContextExamples("a", STORE, 0, draws, (LENGTH, PER_ROW)).make(7, 3)
    np.testing.assert_array_equal(again.source_S, found[3].source_S)
    np.testing.assert_array_equal(again.types_T, found[3].types_T)


def test_rows_of_a_small_source_are_full_too():
    large = store_of(1, [900, 1100])
    draws = ContextSampling(
        word_counts([STORE, large], V, np.flatnonzero(IS_WORD)), LENGTH, WINDOW, PER_ROW, 0.05, False
    )
    for store in (STORE, large):
        rows = ContextRows("a", store, 0, draws)
        filled = [len(rows.row(0, row)[0].tokens_T) / LENGTH for row in range(rows.num_rows(0))]
        assert 0.85 < np.mean(filled) <= 1


def test_ngrams_and_the_rows_that_hold_them():
    assert ngrams("at", (3, 6)) == ["<at", "at>"]
    assert ngrams("a", (1, 6)) == ["a", "<a", "a>"]
    table = ngram_table(WORDS, (3, 4), BUCKETS)
    assert table.of(np.array([5, 0, 9])).tolist() == buckets_of("word1", (3, 4), BUCKETS) + buckets_of(
        "word5", (3, 4), BUCKETS
    )
    batch = batch_of(sampling(table=table, max_ngrams=400), source_length=PER_ROW + 400)
    for row in range(2):
        for i in np.flatnonzero(batch.segments[row]):
            found = batch.source.tokens[row][batch.source.segments[row] == i + 2]
            assert found.tolist() == buckets_of(WORDS[batch.tokens[row, i]], (3, 4), BUCKETS)
    assert (np.max(batch.source.segments, axis=1) == np.sum(batch.segments > 0, axis=1) + 1).all()


# --- losses -------------------------------------------------------------------------------------------------------


def scored(head, buckets, whole):
    config = ModelConfig(
        architecture="word_vectors", family="encoder", vocab_size=V, max_length=LENGTH, d_model=6, ngram_buckets=buckets
    )
    table = ngram_table(WORDS, (3, 4), buckets) if buckets else None
    batch = batch_of(sampling(whole, table=table, max_ngrams=500), source_length=PER_ROW + 500 * bool(buckets))
    model = build_model(config, head)
    params = random_params(model, 0.7)
    sums = negative_sampling_loss(model.apply({"params": params}, batch), batch, OBJECTIVE)
    vectors = np.array(params["token_embedding"]["embedding"], np.float64)
    for word, text in enumerate(WORDS):
        if buckets and text is not None:
            grams = params["ngram_embedding"]["embedding"][buckets_of(text, (3, 4), buckets)]
            vectors[word] = np.mean([vectors[word], *grams], axis=0)
    counted = model.parameter_counts().total
    assert counted == count_parameters(params)
    return batch, vectors, np.array(params["output_embedding"]["embedding"], np.float64), sums


@pytest.mark.parametrize("buckets", [0, BUCKETS])
def test_skipgram_loss_is_a_sum_over_pairs_and_negatives(buckets):
    batch, inputs, outputs, sums = scored(SkipGramScores(window=WINDOW, num_noise=NOISE), buckets, False)
    loss = weight = correct = 0.0
    for row, words in enumerate(batch.tokens):
        for i, j in pairs_of(batch, row):
            noise = outputs[noise_of(batch, row, i)]
            true, false = inputs[words[i]] @ outputs[words[j]], noise @ inputs[words[i]]
            loss += softplus(-true) + 2 * np.mean(softplus(false))
            correct += 0.5 * (true > -np.log(2)) + 0.5 * np.mean(false < -np.log(2))
            weight += 1
    np.testing.assert_allclose([sums.nll, sums.correct, sums.weight], [loss, correct, weight], rtol=1e-5)


@pytest.mark.parametrize("buckets", [0, BUCKETS])
def test_cbow_loss_uses_the_mean_of_each_context(buckets):
    batch, inputs, outputs, sums = scored(CbowScores(window=WINDOW, num_noise=NOISE), buckets, True)
    loss = weight = 0.0
    for row, words in enumerate(batch.tokens):
        around = {i: [] for i, _ in pairs_of(batch, row)}
        for i, j in pairs_of(batch, row):
            around[i].append(inputs[words[j]])
        for i, vectors in around.items():
            mean = np.mean(vectors, axis=0)
            noise = outputs[noise_of(batch, row, i)] @ mean
            loss += softplus(-outputs[words[i]] @ mean) + 2 * np.mean(softplus(noise))
            weight += 1
    np.testing.assert_allclose([sums.nll, sums.weight], [loss, weight], rtol=1e-5)


def test_glove_loss_and_gradient_match_the_paper():
    counts = np.float32([[1, 2, 4, 9], [3, 1, 0, 0]])
    weights = (counts > 0).astype(np.float32)

    def loss(logits):
        return count_loss(Output(logits), Batch(None, counts, weights, None, None), OBJECTIVE).loss

    logits = np.float32([[0.5, -1, 2, 3], [0, 1, 7, 7]])
    factor = np.minimum(1, counts / 4) ** 0.75
    errors = logits - np.log(np.where(counts > 0, counts, 1))
    np.testing.assert_allclose(loss(logits), np.sum(factor * weights * errors**2), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(logits), 2 * factor * weights * errors, rtol=1e-5)


def test_glove_scores_add_two_biases():
    config = ModelConfig(architecture="word_vectors", family="encoder", vocab_size=V, max_length=LENGTH, d_model=6)
    model = build_model(config, CountScores())
    params = nn.unbox(random_params(model, 0.7))
    batch = batch_of(sampling())
    batch = Batch(**{**vars(batch), "tokens": batch.tokens[:, :PER_ROW]})
    first, second = batch.tokens, batch.source.tokens
    expected = np.sum(
        params["token_embedding"]["embedding"][first] * params["output_embedding"]["embedding"][second], -1
    )
    expected += params["word_bias"]["bias"][first] + params["output_bias"]["bias"][second]
    np.testing.assert_allclose(model.apply({"params": params}, batch).logits, expected, atol=1e-5)
    assert model.parameter_counts().total == count_parameters(params)


# --- co-occurrence counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "part"), [(1 << 18, 1 << 27), (7, 500)])
def test_counts_are_those_of_a_loop_over_all_pairs(tmp_path, chunk, part):
    expected = {}
    for document in np.split(STORE.tokens, STORE.starts[1:]):
        words = [int(word) for word in document if IS_WORD[word]]
        for (i, one), (j, other) in combinations(enumerate(words), 2):
            if j - i <= WINDOW:
                expected[one, other] = expected.get((one, other), 0) + 1 / (j - i)
                expected[other, one] = expected.get((other, one), 0) + 1 / (j - i)
    number = count_pairs(STORE, IS_WORD, WINDOW, tmp_path, chunk, part)
    first, second = (np.fromfile(tmp_path / name, np.int32).astype(int) for name in ("first", "second"))
    counts = np.fromfile(tmp_path / "count", np.float32)
    assert number == len(first) == len(expected) and sorted(each.name for each in tmp_path.iterdir()) == [
        "count",
        "first",
        "second",
    ]
    for one, other, count in zip(first.tolist(), second.tolist(), counts, strict=True):
        np.testing.assert_allclose(count, expected[one, other], rtol=1e-6)
    hashes = mixed(np.uint64(first * V + second))
    assert (hashes[1:] > hashes[:-1]).all(), "the order does not depend on how the text was divided"
