"""Chunks: the documents of a store, without bos and eos, cut into stretches that fit a row.

Shape letters: E chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lm.data.storing.token_store import TokenStore


class Chunks(NamedTuple):
    """All int64 (E,)."""

    first_E: np.ndarray  # first token, as an index into the store
    length_E: np.ndarray
    document_E: np.ndarray  # number of the document that the chunk was cut from


def cut_documents(store: TokenStore, longest: int, shortest: int = 1) -> Chunks:
    """Returns each document as chunks of `longest` tokens and a rest, in order; `shortest` is 1 or 2.

    If `shortest` is 2 and the rest is a single token, it takes over a second token from the chunk before it (and is
    left out if that chunk has only two). Documents shorter than `shortest` give no chunk.
    """
    assert 1 <= shortest <= min(2, longest), (shortest, longest)
    lengths = text_lengths(store)
    counts = -(-lengths // longest)
    rests = lengths - (counts - 1) * longest  # length of each document's last chunk
    lone = (lengths > 0) & (rests < shortest)
    counts -= lone & (lengths < 2)
    helped = lone & (lengths >= 2) & (longest > 2)
    counts -= lone & (lengths >= 2) & (longest == 2)  # nothing can be given, so the token is left out
    document_E = np.repeat(np.arange(len(lengths)), counts)
    nth_E = np.arange(len(document_E)) - np.repeat(np.cumsum(counts) - counts, counts)
    left_E = lengths[document_E] - nth_E * longest
    is_last_E = nth_E == counts[document_E] - 1
    helped_E = helped[document_E]
    first_E = np.asarray(store.starts)[document_E] + 1 + nth_E * longest - (helped_E & is_last_E)
    length_E = np.minimum(left_E, longest) + (helped_E & is_last_E)
    length_E -= helped_E & (nth_E == counts[document_E] - 2)
    return Chunks(first_E, length_E, document_E)


def text_lengths(store: TokenStore) -> np.ndarray:
    """Returns the number of tokens of each document without its bos and eos, int64."""
    return np.diff(np.append(store.starts, store.num_tokens)) - 2


def text_counts(store: TokenStore, documents: int, *, whole: bool) -> dict[str, int]:
    """Returns `documents`, `bytes`, `words` and `unknown` of a store's text; bytes and words are 0 unless all of the
    text is scored (`whole`)."""
    text = {name: store.counts[name] if whole else 0 for name in ("bytes", "words")}
    return {"documents": documents, **text, "unknown": store.counts["unknown"]}
