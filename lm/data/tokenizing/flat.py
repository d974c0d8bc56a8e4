"""Token ids of several texts in one flat array, without a Python object per token.

E is the number of texts, and N the total number of tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

Flat = tuple[np.ndarray, np.ndarray]  # all ids, concatenated, int32 (N,), and the number of ids per text, int64 (E,)


def flat_of(rows: Sequence[Sequence[int]]) -> Flat:
    lengths_E = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths_E.sum())), lengths_E


def rows_of(ids_N: np.ndarray, lengths_E: np.ndarray) -> list[list[int]]:
    """Returns the ids of each text; the inverse of `flat_of`."""
    ids, ends = ids_N.tolist(), np.cumsum(lengths_E).tolist()
    return [ids[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def framed(ids_N: np.ndarray, lengths_E: np.ndarray, start: int, eos: int) -> Flat:
    """Adds the token `start` before each text and the token `eos` after it."""
    ends_E = np.cumsum(lengths_E + 2)
    found_N = np.empty(len(ids_N) + 2 * len(lengths_E), np.int32)
    is_text_N = np.ones(len(found_N), bool)
    for index_E, token in ((ends_E - lengths_E - 2, start), (ends_E - 1, eos)):
        found_N[index_E] = token
        is_text_N[index_E] = False
    found_N[is_text_N] = ids_N
    return found_N, lengths_E + 2


def sums_of(values_N: np.ndarray, lengths_E: np.ndarray) -> np.ndarray:
    """Returns, for each text, the sum of the values of its tokens, int64 (E,)."""
    sums_E = np.zeros(len(lengths_E), np.int64)
    has_tokens_E = lengths_E > 0
    if len(values_N):
        begins_E = np.cumsum(lengths_E) - lengths_E
        sums_E[has_tokens_E] = np.add.reduceat(values_N, begins_E[has_tokens_E], dtype=np.int64)
    return sums_E
