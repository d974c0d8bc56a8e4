"""Cuts windows out of a stream of documents: one window, divided into its parts, or all windows of a batch at once.

R is the number of rows, L their length, N the number of document boundaries in all rows together, and G the number of
segments.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from lm.data.examples.example import Example, numbered
from lm.data.storing.token_store import TokenStore


def windows_of(store: TokenStore, starts_R: np.ndarray, length: int) -> tuple[np.ndarray, ...]:
    """Returns tokens, targets, weights, positions and segments, (R, L) each, of windows that begin at tokens starts_R.

    A window that reaches the end of the stream continues at the beginning of the stream. The target of each token is
    the next token, except that the last token of a document has no target (weight 0), so a BOS token is never predicted
    from the previous document. Each document in a window is a separate segment.
    """
    tokens = np.empty((len(starts_R), length + 1), np.int32)
    for row, start in zip(tokens, starts_R.tolist(), strict=True):
        found = store.tokens[start : start + length + 1]
        row[: len(found)] = found
        if len(found) <= length:
            row[len(found) :] = store.tokens[: length + 1 - len(found)]
    targets, weights = tokens[:, 1:].copy(), np.ones((len(starts_R), length), np.float32)
    row_N, column_N = _boundaries(store, starts_R, length)
    targets[row_N, column_N - 1] = 0
    weights[row_N, column_N - 1] = 0.0
    # Each row, and each document within a row, begins a segment. begins_G indexes the flattened rows.
    shape, is_inside_N = (len(starts_R), length), column_N < length
    rows_R = np.arange(len(starts_R)) * length
    begins_G = np.sort(np.concatenate([rows_R, (row_N * length + column_N)[is_inside_N]]))
    sizes_G = np.diff(begins_G, append=targets.size)
    numbers_G = np.arange(1, len(begins_G) + 1) - np.searchsorted(begins_G, rows_R)[begins_G // length]
    positions = np.arange(targets.size, dtype=np.int32) - np.repeat(begins_G.astype(np.int32), sizes_G)
    segments = np.repeat(numbers_G.astype(np.int32), sizes_G)
    return tokens[:, :-1].copy(), targets, weights, positions.reshape(shape), segments.reshape(shape)


def most_segments(store: TokenStore, length: int) -> int:
    """Returns the largest number of segments in any window of `length` tokens, wherever it begins."""
    starts = np.concatenate([store.starts, store.starts + store.num_tokens])  # a window may continue at the beginning
    # With the most segments, a window begins one token before a document, and its last token may begin another one.
    first_D = np.arange(len(store.starts))
    return 1 + int(np.max(np.searchsorted(starts, starts[first_D] + length - 1) - first_D))


def _boundaries(store: TokenStore, starts_R: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row and the column, from 1 to L, of each token that begins a document, int64 (N,) each.

    The first token of a window is left out; the token after the window, which has column L, is included.
    """
    first_R, last_R = np.searchsorted(store.starts, (starts_R, starts_R + length), side="right")
    row_N, nth_N = numbered(last_R - first_R)
    column_N = store.starts[first_R[row_N] + nth_N] - starts_R[row_N]
    wrapping_W = np.flatnonzero(starts_R + length >= store.num_tokens)
    if len(wrapping_W):
        lengths_W = store.num_tokens - starts_R[wrapping_W]  # lengths of the parts before the end of the stream
        counts_W = np.searchsorted(store.starts, length - lengths_W, side="right")  # at least 1: document 0
        window_N, nth_wrapped_N = numbered(counts_W)
        row_N = np.concatenate([row_N, wrapping_W[window_N]])
        column_N = np.concatenate([column_N, lengths_W[window_N] + store.starts[nth_wrapped_N]])
    return row_N, column_N


def next_tokens(store: TokenStore, begin: int, end: int) -> Example:
    """Returns tokens [begin, end) of one document, each with the next token as its target.

    The last token of a document has no target, so a BOS token is never predicted from the previous document.
    """
    tokens_T = np.array(store.tokens[begin:end], np.int32)
    targets_T, weights_T = np.zeros_like(tokens_T), np.zeros(len(tokens_T), np.float32)
    after = np.searchsorted(store.starts, end)
    is_end = end == store.num_tokens if after == len(store.starts) else store.starts[after] == end
    scored = len(tokens_T) - int(is_end)
    targets_T[:scored] = store.tokens[begin + 1 : begin + 1 + scored]
    weights_T[:scored] = 1.0
    return Example(tokens_T, targets_T, weights_T)


def cut(store: TokenStore, start: int, end: int) -> list[tuple[int, int]]:
    """Splits the tokens [start, end) of the stream at document boundaries and returns the bounds of the parts."""
    first, last = np.searchsorted(store.starts, (start + 1, end))
    return list(pairwise([start, *store.starts[first:last].tolist(), end]))
