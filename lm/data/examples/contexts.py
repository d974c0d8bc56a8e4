"""Examples for word vectors: a stretch of text from which some words are dropped, and random words as negative samples.

A row is made from R consecutive tokens of the store. Frequent words are dropped at random before contexts are formed,
as in word2vec (Mikolov 2013, section 2.3), so contexts reach across the gaps; unknown words and special tokens are
always dropped. In training, R is fixed and chosen such that rows are almost full on average; words that do not fit are
omitted. In evaluation, each row is made from as many tokens as fit. Contexts do not extend beyond a document.

T is the number of words in a row, N the number of random words per row, and V the size of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lm.data import order
from lm.data.examples.example import Example, Examples
from lm.data.packing.rows import SingleRows
from lm.data.storing.token_store import TokenStore
from lm.data.tokenizing.ngrams import NgramTable

NOISE_POWER = 0.75  # random words are drawn in proportion to count^0.75 (Mikolov 2013)
FILLED = 0.95  # average share of a row that is filled
COUNTED = 1 << 22  # number of tokens counted at a time


def word_counts(stores: Iterable[TokenStore], vocab_size: int, words: np.ndarray) -> np.ndarray:
    """Returns how often each token occurs in all stores together, int64 (V,); 0 for tokens not in `words`."""
    counts_V = np.zeros(vocab_size, np.int64)
    for store in stores:
        counts_V += token_counts(store, vocab_size)
    is_word_V = np.zeros(vocab_size, bool)
    is_word_V[words] = True
    return np.where(is_word_V, counts_V, 0)


def token_counts(store: TokenStore, vocab_size: int) -> np.ndarray:
    """Returns how often each token occurs in a store, int64 (V,)."""
    counts_V = np.zeros(vocab_size, np.int64)
    for begin in range(0, store.num_tokens, COUNTED):
        counts_V += np.bincount(store.tokens[begin : begin + COUNTED], minlength=vocab_size)
    return counts_V


def kept_share(counts_V: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the probability of keeping each word, float64 (V,): min(1, sqrt(t / f) + t / f), or 0 for count 0.

    t is `threshold`, and f is the relative frequency of the word. If `threshold` is 0, every word that occurs is kept.
    This is the formula in word2vec's code; the paper gives 1 - sqrt(t / f) as the probability of dropping a word.
    """
    if not threshold:
        return (counts_V > 0).astype(np.float64)
    ratio_V = threshold * counts_V.sum() / np.maximum(counts_V, 1)
    return np.where(counts_V > 0, np.minimum(1.0, np.sqrt(ratio_V) + ratio_V), 0.0)


@dataclass(frozen=True)
class ContextSampling:
    """The settings for drawing rows. `kept_V` and `noise_V` are computed from the word counts `counts_V`."""

    counts_V: np.ndarray
    length: int  # maximum number of words in a row
    window: int
    num_noise: int  # number of random words per row
    threshold: float
    whole_context: bool  # whether a word is one target given its whole context (CBOW), or one per context word
    ngrams: NgramTable | None = None
    max_ngrams: int = 0  # maximum number of n-grams in a row

    @cached_property
    def kept_V(self) -> np.ndarray:
        return kept_share(self.counts_V, self.threshold)

    @cached_property
    def noise_V(self) -> np.ndarray:
        """The cumulative distribution of random words, float64 (V,)."""
        powers_V = self.counts_V.astype(np.float64) ** NOISE_POWER * (self.counts_V > 0)
        return np.cumsum(powers_V) / powers_V.sum()

    def span(self, store: TokenStore) -> int:
        """Returns R, the number of tokens of a store from which a training row is made."""
        num_tokens, kept_V = store.num_tokens, token_counts(store, len(self.counts_V)) * self.kept_V
        shares = [self.length * num_tokens / max(kept_V.sum(), 1.0)]
        if self.ngrams is not None:
            shares.append(self.max_ngrams * num_tokens / max((kept_V * self.ngrams.counts_V).sum(), 1.0))
        return max(1, math.floor(FILLED * min(shares)))

    def fitting(self, tokens_R: np.ndarray, rng: np.random.Generator) -> int:
        """Returns the number of tokens, at least 1, from which `example` can make a row without omitting words.

        `rng` must be in the same state as for `example`. A single word whose n-grams fill more than a row counts as
        fitting.
        """
        kept_T = np.flatnonzero(rng.random(len(tokens_R)) < self.kept_V[tokens_R])
        fitting = self.length
        if self.ngrams is not None:
            sizes_T = self.ngrams.counts_V[tokens_R[kept_T]]
            fitting = min(fitting, int(np.searchsorted(np.cumsum(sizes_T), self.max_ngrams, side="right")))
        return max(1, int(kept_T[fitting])) if fitting < len(kept_T) else len(tokens_R)

    def example(self, tokens_R: np.ndarray, documents_R: np.ndarray, rng: np.random.Generator) -> Example:
        """Makes a row from consecutive tokens and the index of each token's document."""
        kept_T = np.flatnonzero(rng.random(len(tokens_R)) < self.kept_V[tokens_R])[: self.length]
        tokens_T, documents_T = tokens_R[kept_T].astype(np.int32), documents_R[kept_T]
        radius_T = rng.integers(1, self.window + 1, len(tokens_T)).astype(np.int32)
        source, source_segments = [np.searchsorted(self.noise_V, rng.random(self.num_noise), side="right")], []
        if self.ngrams is not None:
            sizes_T = self.ngrams.counts_V[tokens_T]
            fitting = int(np.searchsorted(np.cumsum(sizes_T), self.max_ngrams, side="right"))
            tokens_T, documents_T, radius_T = tokens_T[:fitting], documents_T[:fitting], radius_T[:fitting]
            source.append(self.ngrams.of(tokens_T))
            source_segments = [self.num_noise, *sizes_T[:fitting].tolist()]
        bounds = [0, *(np.flatnonzero(np.diff(documents_T)) + 1).tolist(), len(tokens_T)]
        segments = np.diff(bounds)
        begin_T, end_T = np.repeat(bounds[:-1], segments), np.repeat(bounds[1:], segments)
        index_T = np.arange(len(tokens_T))
        pairs_T = np.minimum(radius_T, index_T - begin_T) + np.minimum(radius_T, end_T - 1 - index_T)
        return Example(
            tokens_T,
            tokens_T,
            (np.minimum(pairs_T, 1) if self.whole_context else pairs_T).astype(np.float32),
            radius_T,
            source_S=np.concatenate(source).astype(np.int32),
            segments=segments.tolist(),
            source_segments=source_segments,
        )


def stretch(store: TokenStore, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens [begin, end) of a store and the index of each token's document."""
    documents_R = np.searchsorted(store.starts, np.arange(begin, end), side="right") - 1
    return np.asarray(store.tokens[begin:end]), documents_R


class ContextRows(SingleRows):
    """The training rows of one data source, each made from R tokens, shuffled anew in each epoch.

    Each epoch has its own random offset. The last row may wrap around to the beginning of the store.
    """

    kind = "row of words"

    def __init__(self, name: str, store: TokenStore, seed: int, sampling: ContextSampling):
        self._store, self._key, self._sampling = store, (seed, name), sampling
        self._span = min(sampling.span(store), store.num_tokens)
        self._count = store.num_tokens // self._span
        self._seed = order.number("shuffle", *self._key, below=2**32)

    def num_rows(self, epoch: int) -> int:
        return self._count

    def locate(self, index: int) -> tuple[int, int]:
        return order.shuffled(index, self._count, self._seed)

    def row(self, epoch: int, row: int) -> list[Example]:
        store = self._store
        begin = order.number("offset", *self._key, epoch, below=store.num_tokens) + row * self._span
        begin %= store.num_tokens
        end = begin + self._span
        tokens_R, documents_R = stretch(store, begin, min(end, store.num_tokens))
        if end > store.num_tokens:
            wrapped_R, wrapped_documents_R = stretch(store, 0, end - store.num_tokens)
            tokens_R = np.concatenate([tokens_R, wrapped_R])
            documents_R = np.concatenate([documents_R, wrapped_documents_R + store.num_documents])
        return [self._sampling.example(tokens_R, documents_R, order.generator("contexts", *self._key, epoch, row))]


class ContextExamples(Examples):
    """The evaluation rows of one data source. Each example fills a row, and its random draws are always the same.

    Every word that is not dropped by subsampling is in exactly one row.
    """

    def __init__(self, name: str, store: TokenStore, seed: int, sampling: ContextSampling, capacities: tuple[int, ...]):
        self.store, self._key, self._sampling, self._capacities = store, (seed, name), sampling, capacities
        self._begins = [0]  # the first token of each row, and the end of the last row
        most = 2 * sampling.span(store)
        while (begin := self._begins[-1]) < store.num_tokens:
            tokens_R = np.asarray(store.tokens[begin : begin + most])
            self._begins.append(begin + sampling.fitting(tokens_R, self._draws(len(self))))

    def __len__(self) -> int:
        return len(self._begins) - 1

    def _draws(self, index: int) -> np.random.Generator:
        return order.generator("contexts", *self._key, "evaluation", index)

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        return tuple(np.full(len(self), capacity, np.int64) for capacity in self._capacities)

    def make(self, epoch: int, index: int) -> Example:
        begin, end = self._begins[index : index + 2]
        return self._sampling.example(*stretch(self.store, begin, end), self._draws(index))

    def num_targets(self) -> int:
        """Returns the sum of the weights: the number of pairs or, for CBOW, of words that have a context."""
        return sum(int(self.make(0, i).weights_T.sum()) for i in range(len(self)))
