"""Counts the n-grams of token stores in bounded memory, using NumPy sorts and merges instead of loops over tokens.

The n-grams of each order k form a level of a trie: an n-gram is identified by the index of its first k - 1 tokens in
the level below and by its last token. A level is counted in three passes over chunks of the tokens:

1. Each chunk is sorted by (prefix, last token). Its distinct n-grams and their counts are written to temporary files.
2. The sorted chunks are merged, one range of keys at a time.
3. Each token is assigned the index of the n-gram of order k that ends there. In the next level, this index identifies
   a prefix.

Besides the finished levels, memory holds one chunk and one range of keys.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 1 << 22  # tokens per chunk, and n-grams per range of keys
NONE = -1  # the index for a token at which no n-gram of the order ends: too few tokens of its document precede it

Report = Callable[[int, int], None]  # called with (number of tokens read in all passes, total)


@dataclass(frozen=True)
class Level:
    """The N n-grams of one order k, sorted by their first k - 1 tokens and then by their last token.

    Attributes:
        begins: int64 (M + 1,), where M is the number of n-grams of order k - 1: the n-grams that continue n-gram i of
            order k - 1 are begins[i] to begins[i + 1] - 1. For k = 1, the only prefix is empty.
        words: int32 (N,): the last tokens. In order 1, they are all the tokens of the vocabulary.
        counts: int32 (N,).
        suffixes: int32 (N,): the index, in order k - 1, of the n-gram without its first token.
        initial: bool (N,): whether the n-gram begins with the token that precedes each document.
    """

    begins: np.ndarray
    words: np.ndarray
    counts: np.ndarray
    suffixes: np.ndarray
    initial: np.ndarray

    @property
    def parents(self) -> np.ndarray:
        """The index, in order k - 1, of the prefix of each n-gram, int32 (N,)."""
        return np.repeat(np.arange(len(self.begins) - 1, dtype=np.int32), np.diff(self.begins))

    def blocks(self, size: int) -> Iterator[tuple[slice, slice]]:
        """Yields (slice of the prefixes, slice of their n-grams) for consecutive parts of about `size` n-grams."""
        cuts = np.searchsorted(self.begins, np.arange(0, self.begins[-1], size)[1:])
        for first, last in itertools.pairwise(np.unique([0, *cuts, len(self.begins) - 1])):
            yield slice(first, last), slice(self.begins[first], self.begins[last])

    def part(self, prefixes: slice, ngrams: slice) -> Level:
        """Returns the part of the level that consists of the given prefixes and their n-grams."""
        begins = self.begins[prefixes.start : prefixes.stop + 1] - self.begins[prefixes.start]
        return Level(begins, self.words[ngrams], self.counts[ngrams], self.suffixes[ngrams], self.initial[ngrams])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Returns, for each prefix, the sum of the values (N,) of its n-grams, (M,)."""
        total = np.append(0, np.cumsum(values))
        return total[self.begins[1:]] - total[self.begins[:-1]]


def count_ngrams(
    stores: Sequence[Any], order: int, vocab_size: int, start_id: int, directory: Path, report: Report | None = None
) -> list[Level]:
    """Counts the n-grams of orders 1 to `order` within documents. Returns one level per order.

    The token that precedes each document is part of contexts but is never counted as a prediction, so its count is 0
    in order 1, unless the same token also ends documents.

    Args:
        stores: token stores (see `lm.data.storing.token_store.TokenStore`).
        start_id: the token that precedes each document.
        directory: an existing directory for temporary files (about 30 bytes per token).
    """
    text = _Text(stores)
    with tempfile.TemporaryDirectory(prefix="ngrams-", dir=directory) as folder:
        scratch = _Scratch(Path(folder))
        ids_T = scratch.array("ids_1", np.int32, text.num_tokens)
        counts_V = np.zeros(vocab_size, np.int64)
        for begin, tokens, is_start in text.chunks():
            ids_T[begin : begin + len(tokens)] = tokens
            counts_V += np.bincount(tokens[~is_start], minlength=vocab_size)
        words = np.arange(vocab_size, dtype=np.int32)
        begins = np.array([0, vocab_size])
        levels = [Level(begins, words, counts_V.astype(np.int32), np.zeros(vocab_size, np.int32), words == start_id)]
        for k in range(2, order + 1):
            # Two index files are used alternately; the chunks of each order have their own folder.
            local_T = scratch.array(f"ids_{k % 2}", np.int32, text.num_tokens if k < order else 0)
            with tempfile.TemporaryDirectory(dir=folder) as inner:
                chunks = _Scratch(Path(inner))
                runs = list(_sorted_chunks(text, ids_T, local_T, vocab_size, chunks, report, k, order))
                level, maps = _merge(runs, levels[-1], vocab_size, chunks)
                levels.append(level)
                for (begin, tokens, _), found in zip(text.chunks(), maps, strict=True) if k < order else ():
                    part = local_T[begin : begin + len(tokens)]
                    part[:] = np.append(found, NONE)[part]  # the index -1, NONE, selects the last element
            ids_T = local_T
    return levels


@dataclass(frozen=True)
class _Text:
    """The tokens of all stores, one store after another."""

    stores: Sequence[Any]

    @property
    def num_tokens(self) -> int:
        return sum(store.num_tokens for store in self.stores)

    def chunks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (index of the first token, tokens as int64, whether each token begins a document)."""
        before = 0
        for store in self.stores:
            for begin in range(0, store.num_tokens, CHUNK):
                tokens = np.asarray(store.tokens[begin : begin + CHUNK], np.int64)
                is_start = np.zeros(len(tokens), bool)
                first, last = np.searchsorted(store.starts, (begin, begin + len(tokens)))
                is_start[store.starts[first:last] - begin] = True
                yield before + begin, tokens, is_start
            before += store.num_tokens


@dataclass(frozen=True)
class _Scratch:
    """Arrays in temporary files, so that the operating system can keep them out of memory."""

    folder: Path

    def array(self, name: str, dtype: Any, size: int) -> np.ndarray:
        return np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", dtype, (max(size, 1),))

    def keep(self, name: str, values: np.ndarray) -> np.ndarray:
        """Writes an array to a file and returns a memory-mapped array that reads this file."""
        path = self.folder / f"{name}.npy"
        np.save(path, values)
        return np.load(path, mmap_mode="r") if values.size else values


@dataclass(frozen=True)
class _Run:
    """The distinct n-grams of a chunk, sorted by their keys. A key is prefix * vocab_size + last token."""

    keys: np.ndarray
    counts: np.ndarray
    suffixes: np.ndarray


def _sorted_chunks(
    text: _Text,
    ids_T: np.ndarray,
    local_T: np.ndarray,
    vocab_size: int,
    scratch: _Scratch,
    report: Report | None,
    k: int,
    order: int,
) -> Iterator[_Run]:
    """Yields the distinct n-grams of order k of each chunk.

    `ids_T` holds the index of the n-gram of order k - 1 that ends at each token. Unless k is the highest order, the
    index of each token's n-gram of order k among the distinct n-grams of its chunk is written to `local_T`.
    """
    for number, (begin, tokens, is_start) in enumerate(text.chunks()):
        end = begin + len(tokens)
        # The very first token has no prefix. The index at the last token is read in its place, but is not used.
        prefixes = ids_T[np.arange(begin - 1, end - 1)] if begin == 0 else ids_T[begin - 1 : end - 1]
        (found,) = np.nonzero((prefixes != NONE) & ~is_start)
        keys = prefixes[found].astype(np.int64) * vocab_size + tokens[found]
        order_of_keys = np.argsort(keys)
        keys = keys[order_of_keys]
        firsts, groups = _distinct(keys)
        if k < order:
            part = local_T[begin:end]
            part[:] = NONE
            part[found[order_of_keys]] = groups
        counts = np.diff(np.append(firsts, len(keys))).astype(np.int32)
        suffixes = np.asarray(ids_T[begin:end])[found[order_of_keys[firsts]]]
        named = (("keys", keys[firsts]), ("counts", counts), ("suffixes", suffixes))
        yield _Run(**{name: scratch.keep(f"{name}_{k}_{number}", values) for name, values in named})
        if report is not None:
            total = text.num_tokens * (order - 1)
            report(text.num_tokens * (k - 2) + end, total)


def _distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for sorted keys, the index of the first key in each group of equal keys, and the group of each key."""
    is_first = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    return np.nonzero(is_first)[0], np.cumsum(is_first) - 1


def _merge(runs: Sequence[_Run], below: Level, vocab_size: int, scratch: _Scratch) -> tuple[Level, list[np.ndarray]]:
    """Merges sorted runs into a level. Returns the level and, for each run, the indices of its n-grams in the level."""
    cuts = [np.searchsorted(run.keys, _splitters(runs)) for run in runs]
    bounds = [np.concatenate([[0], cut, [len(run.keys)]]) for cut, run in zip(cuts, runs, strict=True)]
    maps = [scratch.array(f"map_{number}", np.int32, len(run.keys)) for number, run in enumerate(runs)]
    parts: list[tuple[np.ndarray, ...]] = []
    size = 0
    for n in range(len(bounds[0]) - 1):
        slices = [slice(bound[n], bound[n + 1]) for bound in bounds]
        keys = np.concatenate([run.keys[each] for run, each in zip(runs, slices, strict=True)])
        merged = np.argsort(keys, kind="stable")  # a merge, since the parts are sorted
        firsts, groups = _distinct(keys[merged])
        counts = np.concatenate([run.counts[each] for run, each in zip(runs, slices, strict=True)])[merged]
        suffixes = np.concatenate([run.suffixes[each] for run, each in zip(runs, slices, strict=True)])
        indices = np.empty(len(keys), np.int32)
        indices[merged] = groups + size
        for index, each, found in zip(maps, slices, _split(indices, slices), strict=True):
            index[each] = found
        if len(keys):
            kept = keys[merged[firsts]]
            words, parents = (kept % vocab_size).astype(np.int32), (kept // vocab_size).astype(np.int32)
            parts.append((parents, words, np.add.reduceat(counts, firsts, dtype=np.int32), suffixes[merged[firsts]]))
        size += len(firsts)
    empty = [np.zeros(0, np.int32)] * 4
    parents, words, counts, suffixes = map(np.concatenate, zip(empty, *parts, strict=True))
    begins = np.append(0, np.cumsum(np.bincount(parents, minlength=len(below.words))))
    return Level(begins, words, counts, suffixes, below.initial[parents]), maps


def _splitters(runs: Sequence[_Run]) -> np.ndarray:
    """Returns keys that split the runs into ranges with about CHUNK n-grams each."""
    ranges = -(-sum(len(run.keys) for run in runs) // CHUNK)
    sample = np.sort(np.concatenate([run.keys[:: max(1, CHUNK // 1024)] for run in runs]))
    return np.unique(sample[(np.arange(1, ranges) * len(sample)) // max(ranges, 1)])


def _split(values: np.ndarray, slices: Sequence[slice]) -> list[np.ndarray]:
    sizes = [each.stop - each.start for each in slices]
    return [values[end - size : end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
