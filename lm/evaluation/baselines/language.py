"""Baselines for causal language models: unigrams, bigrams and xz.

V is the size of the vocabulary, N is a number of tokens, and K is the number of distinct bigrams.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping

import numpy as np

from lm.data.storing.token_store import TokenStore
from lm.evaluation.baselines.baseline import Baseline, BaselineSetup, NotComputed, Scores, by_source
from lm.evaluation.token_metrics import Sums, language_metrics, missing_metrics, xz_bits_per_byte

MOST_TOKENS = 100_000_000  # of training text; bounds the cost
AT_ONCE = 1 << 22  # tokens


class NgramBaseline(Baseline):
    """Base class for n-gram models of tokens. Each target is predicted from the token before it in its document."""

    @abc.abstractmethod
    def fit(self, train: Iterator[tuple[np.ndarray, np.ndarray]], vocab_size: int) -> Unigrams | Bigrams:
        """Returns a model fitted to arrays of (tokens before the targets, targets), each int64 (N,)."""

    def score(self, setup: BaselineSetup) -> Scores:
        total = sum(map(_num_targets, setup.train.values()))
        model, note = self.fit(_first_targets(setup, min(total, MOST_TOKENS)), setup.tokenizer.vocab_size), ""
        if total > MOST_TOKENS:
            note = f"; fitted to the first {MOST_TOKENS:,} of {total:,} training tokens"
        sums = {source: _sums(model, store) for source, store in setup.stores.items()}
        metrics = by_source(sums, sum(sums.values(), Sums()), language_metrics)
        return Scores(metrics, {self.name: f"{model.description}{note}"})


class UnigramBaseline(NgramBaseline):
    name = "unigram"

    def fit(self, train: Iterator[tuple[np.ndarray, np.ndarray]], vocab_size: int) -> Unigrams:
        counts_V = np.zeros(vocab_size, np.int64)
        for _, targets_N in train:
            counts_V += np.bincount(targets_N, minlength=vocab_size)
        return Unigrams(counts_V)


class BigramBaseline(NgramBaseline):
    name = "bigram"

    def fit(self, train: Iterator[tuple[np.ndarray, np.ndarray]], vocab_size: int) -> Bigrams:
        counts_V = np.zeros(vocab_size, np.int64)
        keys_K, counts_K = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for before_N, targets_N in train:
            counts_V += np.bincount(targets_N, minlength=vocab_size)
            found, numbers = np.unique(before_N * vocab_size + targets_N, return_counts=True)
            keys_K, inverse = np.unique(np.concatenate([keys_K, found]), return_inverse=True)
            counts_K = np.bincount(inverse, np.concatenate([counts_K, numbers]), len(keys_K)).astype(np.int64)
        return Bigrams(Unigrams(counts_V), keys_K, counts_K)


class Unigrams:
    """The probability of a token w is (c(w) + T / V) / (N + T).

    c(w) is the number of times that w occurs among the N training tokens, T of which are distinct. This is the
    interpolation of Witten and Bell (1991) with the uniform distribution.
    """

    description = "Witten-Bell smoothing with the uniform distribution"

    def __init__(self, counts_V: np.ndarray):
        types = np.count_nonzero(counts_V)
        self.probabilities_V = (counts_V + types / len(counts_V)) / (counts_V.sum() + types)

    def predict(self, before_N: np.ndarray, targets_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the probability of each target, and whether it is the most probable token, both (N,)."""
        return self.probabilities_V[targets_N], targets_N == self.probabilities_V.argmax()


class Bigrams:
    """The probability of a token w after v is (c(v, w) + T(v) P(w)) / (c(v) + T(v)).

    c counts occurrences in the training data, T(v) is the number of distinct tokens that follow v there, and P is the
    unigram model (Witten and Bell 1991; Chen and Goodman 1998, section 2.5). If no token follows v in the training
    data, the probability is P(w).
    """

    description = "interpolated Witten-Bell smoothing"

    def __init__(self, unigrams: Unigrams, keys_K: np.ndarray, counts_K: np.ndarray):
        """`keys_K` holds v * V + w for each bigram, in ascending order; `counts_K` holds their counts."""
        self._keys_K, self._counts_K, self._size = keys_K, counts_K, len(unigrams.probabilities_V)
        self._unigram_V = unigrams.probabilities_V
        before_K = keys_K // self._size
        self._types_V = np.bincount(before_K, minlength=self._size)
        self._totals_V = np.bincount(before_K, counts_K, self._size)
        self._best_V = self._most_probable(before_K)

    def _most_probable(self, before_K: np.ndarray) -> np.ndarray:
        """Returns the most probable next token after each token, (V,). Ties go to the lowest id."""
        usual = int(self._unigram_V.argmax())
        targets_K = self._keys_K % self._size
        weights_K = self._counts_K + self._types_V[before_K] * self._unigram_V[targets_K]
        best_V, weight_V = np.full(self._size, usual), self._types_V * self._unigram_V[usual]
        order_K = np.lexsort((targets_K, -weights_K, before_K))
        firsts = order_K[np.unique(before_K[order_K], return_index=True)[1]]
        better = firsts[weights_K[firsts] >= weight_V[before_K[firsts]]]
        best_V[before_K[better]] = targets_K[better]
        return best_V

    def predict(self, before_N: np.ndarray, targets_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the probability of each target, and whether it is the most probable token, both (N,)."""
        keys_N = before_N * self._size + targets_N
        at_N = np.minimum(np.searchsorted(self._keys_K, keys_N), len(self._keys_K) - 1)
        counts_N = np.where(self._keys_K[at_N] == keys_N, self._counts_K[at_N], 0)
        types_N, totals_N, unigram_N = self._types_V[before_N], self._totals_V[before_N], self._unigram_V[targets_N]
        seen_N = (counts_N + types_N * unigram_N) / np.maximum(totals_N + types_N, 1)
        return np.where(types_N > 0, seen_N, unigram_N), targets_N == self._best_V[before_N]


class XzBaseline(Baseline):
    """The compressor xz at its highest compression level. It reads only the evaluated text."""

    name = "xz -9"
    needs_train = False

    def score(self, setup: BaselineSetup) -> Scores:
        text = sum((_text(store) for store in setup.stores.values()), Sums())
        if reason := missing_metrics(text).get("bits_per_byte"):
            raise NotComputed(reason)

        def metrics(stores: Mapping[str, TokenStore]) -> dict[str, float]:
            return {"bits_per_byte": xz_bits_per_byte(stores, setup.tokenizer)}

        return Scores(by_source({name: {name: each} for name, each in setup.stores.items()}, setup.stores, metrics))


def _num_targets(store: TokenStore) -> int:
    return store.num_tokens - store.num_documents


def _targets(store: TokenStore) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (tokens before targets, targets), int64 (N,) each. Every token except a document's first is a target."""
    for begin in range(0, store.num_tokens - 1, AT_ONCE):
        tokens = np.asarray(store.tokens[begin : begin + AT_ONCE + 1], np.int64)
        is_target_N = np.ones(len(tokens) - 1, bool)
        first, end = np.searchsorted(store.starts, (begin + 1, begin + len(tokens)))
        is_target_N[store.starts[first:end] - begin - 1] = False
        yield tokens[:-1][is_target_N], tokens[1:][is_target_N]


def _first_targets(setup: BaselineSetup, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the first `most` targets of the training split and the tokens before them, and reports the progress."""
    done = 0
    for store in setup.train.values():
        for before_N, targets_N in _targets(store):
            if done < most:
                yield before_N[: most - done], targets_N[: most - done]
                done = min(most, done + len(targets_N))
                if setup.report is not None:
                    setup.report(done, most, "tokens")


def _text(store: TokenStore) -> Sums:
    return Sums(**{name: store.counts[name] for name in ("bytes", "words", "unknown", "changed")})


def _sums(model: Unigrams | Bigrams, store: TokenStore) -> Sums:
    nll, correct, weight = 0.0, 0, 0
    for before_N, targets_N in _targets(store):
        probabilities_N, is_best_N = model.predict(before_N, targets_N)
        nll -= float(np.log(probabilities_N).sum())
        correct += int(is_best_N.sum())
        weight += len(targets_N)
    assert weight == _num_targets(store), (weight, store.counts)
    return _text(store) + Sums(nll=nll, correct=correct, weight=weight)
