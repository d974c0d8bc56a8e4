"""Checks that the probabilities of an imported n-gram model sum to 1 in each context."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

SAMPLE = 50  # contexts checked per order, evenly spaced among those that change the probabilities
TOLERANCE = 1e-3  # the numbers in files are rounded


def wrong_sum(params: Mapping[str, Any]) -> tuple[list[int], float] | None:
    """Returns a context (as token ids) whose probabilities do not sum to 1, together with their sum.

    Returns None if no such context is found. Checks the empty context and a sample of the contexts of each order, from
    the shortest up.
    """
    model = _Tables(params)
    contexts = (model.tokens(k, index) for k in range(1, len(params)) for index in model.sample(k))
    for context in itertools.chain([[]], contexts):
        total = float(model.probabilities(context).sum())
        if not abs(total - 1) <= TOLERANCE:
            return context, total
    return None


class _Tables:
    """The back-off tables of a model (see table.py). An n-gram of order k is identified by k and its index."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._levels = [params[f"order_{k}"] for k in range(1, len(params) + 1)]
        self._unigrams_V = np.exp(self._levels[0]["log_probs"].astype(np.float64))

    def sample(self, k: int) -> np.ndarray:
        """Returns the indices of a sample of the contexts of k tokens."""
        level = self._levels[k - 1]
        (found,) = np.nonzero((np.diff(level["begins"]) > 0) | (level["back_offs"] != 0))
        return found[np.linspace(0, len(found) - 1, min(SAMPLE, len(found))).astype(np.int64)]

    def tokens(self, k: int, index: int) -> list[int]:
        """Returns the tokens of an n-gram."""
        found: list[int] = []
        for level, below in zip(self._levels[1:k][::-1], self._levels[: k - 1][::-1], strict=True):
            found.append(int(level["words"][index]))
            index = int(np.searchsorted(below["begins"], index, side="right")) - 1
        return [int(index), *found[::-1]]

    def probabilities(self, context: list[int]) -> np.ndarray:
        """Returns the probability of each token after a context, float64 (V,)."""
        found_V = self._unigrams_V.copy()
        for length in range(1, len(context) + 1):
            index = self._find(context[-length:])
            if index is None:
                continue
            level, above = self._levels[length - 1], self._levels[length]
            listed = slice(level["begins"][index], level["begins"][index + 1])
            found_V *= np.exp(np.float64(level["back_offs"][index]))
            found_V[above["words"][listed]] = np.exp(above["log_probs"][listed].astype(np.float64))
        return found_V

    def _find(self, tokens: list[int]) -> int | None:
        """Returns the index of an n-gram, or None if it is not listed."""
        index = tokens[0]
        for below, level, token in zip(self._levels, self._levels[1:], tokens[1:], strict=False):
            begin, end = below["begins"][index], below["begins"][index + 1]
            index = int(begin + np.searchsorted(level["words"][begin:end], token))
            if index == end or level["words"][index] != token:
                return None
        return index
