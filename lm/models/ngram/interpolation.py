"""Estimates the weights of Jelinek-Mercer interpolation by EM, leaving out each n-gram of the training data in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lm.config.ngram import NgramSettings
from lm.models.ngram.counting import Level

SAMPLE = 1 << 19  # at most this many distinct n-grams, evenly spaced, are left out in turn
ROUNDS = 300  # the maximum number of iterations
ENOUGH = 1e-5  # the iteration stops when every weight changes by less than this
LARGEST = 1 - 1e-6  # the maximum weight, so that no n-gram that is left out gets probability 0


def estimated_lambdas(settings: NgramSettings, levels: Sequence[Level], num_words: int) -> NgramSettings:
    """Returns the settings with weights for all orders, estimated by deleted interpolation (Jelinek & Mercer 1980).

    Each occurrence of an n-gram (h, w) of the highest order is predicted from the counts without this occurrence: the
    relative frequency in order k is (c(h, w) - 1) / (c(h) - 1). The weights maximise the likelihood of these
    predictions. A context that occurs only once is skipped, as an unseen context is in the finished model.
    """
    shares, seen, weights = _left_out(levels)
    order = len(levels)
    lambdas = np.full(order, 0.5)
    for _ in range(ROUNDS):
        before = lambdas.copy()
        # mixed[k] is the probability after interpolating the orders up to k.
        mixed = [np.full(len(weights), 1.0 / num_words)]
        for k in range(order):
            mixed.append(np.where(seen[k], lambdas[k] * shares[k] + (1 - lambdas[k]) * mixed[k], mixed[k]))
        # `reached` is the posterior probability that the token came from order k or a lower one.
        reached = np.ones(len(weights))
        for k in reversed(range(order)):
            own = np.where(seen[k], reached * lambdas[k] * shares[k] / mixed[k + 1], 0.0)
            total = float(np.sum(weights * np.where(seen[k], reached, 0.0)))
            lambdas[k] = min(float(np.sum(weights * own)) / total, LARGEST) if total else 0.0
            reached = reached - own
        if np.max(np.abs(lambdas - before)) < ENOUGH:
            break
    return dataclasses.replace(settings, lambdas=tuple(map(float, lambdas)))


def _left_out(levels: Sequence[Level]) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Returns data for predicting a sample of the highest-order n-grams when one occurrence of each is left out.

    For each n-gram of the sample, the data are its relative frequency in each order (from 1 up), whether its context
    still occurs in that order, and its count.
    """
    top = levels[-1]
    (indices,) = np.nonzero(top.counts)
    indices = indices[:: -(-len(indices) // SAMPLE)]
    weights = top.counts[indices]
    shares, seen = list[np.ndarray](), list[np.ndarray]()
    for level in reversed(levels):
        totals = level.sums(level.counts)[np.searchsorted(level.begins, indices, side="right") - 1] - 1
        is_seen = totals > 0
        shares.append(np.divide(level.counts[indices] - 1, totals, out=np.zeros(len(indices)), where=is_seen))
        seen.append(is_seen)
        indices = level.suffixes[indices]
    return shares[::-1], seen[::-1], weights
