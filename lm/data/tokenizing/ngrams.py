"""Character n-grams of words, assigned to a fixed number of buckets by a hash (Bojanowski 2017)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class NgramTable(NamedTuple):
    """The n-grams of each word in a vocabulary of V words: those of word v are ids_N[starts_V1[v]:starts_V1[v + 1]]."""

    ids_N: np.ndarray  # int32, below the number of buckets
    starts_V1: np.ndarray  # int64 (V + 1,)

    @property
    def counts_V(self) -> np.ndarray:
        return np.diff(self.starts_V1)

    def of(self, words_T: np.ndarray) -> np.ndarray:
        """Returns the n-grams of several words, concatenated, int32."""
        counts_T = self.counts_V[words_T]
        ends_T = np.cumsum(counts_T)
        offsets_T = self.starts_V1[words_T] - (ends_T - counts_T)
        return self.ids_N[np.arange(counts_T.sum()) + np.repeat(offsets_T, counts_T)]


def ngrams(word: str, lengths: Sequence[int]) -> list[str]:
    """Returns the n-grams of <word> for all n from lengths[0] to lengths[1], except <word>, "<" and ">"."""
    marked = f"<{word}>"
    found = [marked[i : i + n] for n in range(lengths[0], lengths[1] + 1) for i in range(len(marked) - n + 1)]
    return [each for each in found if each not in (marked, "<", ">")]


def buckets_of(word: str, lengths: Sequence[int], buckets: int) -> list[int]:
    """Returns the bucket of each n-gram of a word: the CRC-32 of its UTF-8 bytes, modulo the number of buckets."""
    return [zlib.crc32(each.encode("utf-8", "surrogatepass")) % buckets for each in ngrams(word, lengths)]


def ngram_table(words: Sequence[str | None], lengths: Sequence[int], buckets: int) -> NgramTable:
    """Returns the n-grams of each word of a vocabulary. None stands for a token without text, which has no n-grams."""
    found = [[] if word is None else buckets_of(word, lengths, buckets) for word in words]
    starts_V1 = np.concatenate([[0], np.cumsum([len(each) for each in found], dtype=np.int64)])
    return NgramTable(np.array([each for ids in found for each in ids], np.int32), starts_V1)
