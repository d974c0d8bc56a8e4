"""Co-occurrence counts of words, from which GloVe learns (Pennington 2014), in memory-mapped files.

A pair of words at distance d in the same document adds 1/d to the counts of both orders of the pair. Words that are not
in the vocabulary are removed first, so they do not count towards distances.

The pairs of a store are sorted by a hash, so their order is random but always the same for the same text. Counting
takes bounded memory: the pairs of each chunk of text are sorted and summed, then distributed over several files by the
leading bits of their hashes. At the end, each file is sorted and summed on its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.storing.token_store import DamagedStore, TokenStore, locked
from lm.errors import UserError
from lm.files import hash_of, new_directory, parse_json, read_file

FORMAT = 1  # increment this when a change to the code produces different counts from the same tokens
CHUNK = 1 << 18  # number of tokens that are processed at a time
PART_BYTES = 1 << 27  # approximate upper bound on the size of a part before its counts are summed
ENTRY = np.dtype([("key", "<u8"), ("count", "<f8")])
ARRAYS = {"first": "int32", "second": "int32", "count": "float32"}


@dataclass(frozen=True)
class PairCounts:
    """The token store of a text, and the counts of its M pairs as arrays `first`, `second` and `count`, (M,) each."""

    store: TokenStore
    directory: Path

    def __post_init__(self) -> None:
        try:
            manifest: dict[str, Any] = parse_json(read_file(self.directory / "manifest.json"))
            for name, dtype in ARRAYS.items():
                if (self.directory / name).stat().st_size != manifest["pairs"] * np.dtype(dtype).itemsize:
                    raise DamagedStore(f"{name} has the wrong size")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedStore(f"{type(error).__name__}: {error}") from error

    def __len__(self) -> int:
        return (self.directory / "first").stat().st_size // np.dtype(ARRAYS["first"]).itemsize

    def array(self, name: str) -> np.ndarray:
        path = self.directory / name
        return np.memmap(path, ARRAYS[name], mode="r") if path.stat().st_size else np.zeros(0, ARRAYS[name])

    @property
    def fingerprint(self) -> str:
        return hash_of(self.store.fingerprint, self.directory.name)

    @property
    def counts(self) -> dict[str, int]:
        return self.store.counts

    @property
    def notes(self) -> list[str]:
        return self.store.notes

    def sides(self) -> dict[str, TokenStore]:
        return self.store.sides()

    def describe(self, short: Any) -> str:
        return f"{self.store.describe(short)}, {short(len(self))} pairs of words"

    def record(self) -> dict[str, Any]:
        return {**self.store.record(), "pairs": len(self)}

    def hashes_of_examples(self) -> tuple[np.ndarray, np.ndarray]:
        return self.store.hashes_of_examples()


def open_or_count(cache: Path, store: TokenStore, label: str, is_word_V: np.ndarray, window: int) -> PairCounts:
    """Returns the pair counts of a token store from the cache. If they are missing or damaged, counts the pairs.

    Raises UserError if the cache cannot be written.
    """
    words = hashlib.sha256(np.packbits(is_word_V).tobytes()).hexdigest()
    key = hash_of(json.dumps([FORMAT, store.fingerprint, words, window]), "pairs")[:32]
    directory = cache / f"{key}-pairs"
    try:
        with locked(cache / f"{key}.lock"):
            with contextlib.suppress(DamagedStore):
                return PairCounts(store, directory)
            shutil.rmtree(directory, ignore_errors=True)
            began = time.monotonic()
            with contextlib.suppress(FileExistsError), new_directory(directory) as temporary:
                pairs = count_pairs(store, is_word_V, window, temporary)
                (temporary / "manifest.json").write_text(json.dumps({"pairs": pairs}) + "\n")
    except OSError as error:
        raise UserError(
            f"the cache {cache} cannot be written ({error.strerror or error}); "
            "set config.data.cache_dir or LM_CACHE_DIR to a writable directory with enough free space."
        ) from error
    found = PairCounts(store, directory)
    print(f"counted {label}: {len(found):,} pairs of words in {time.monotonic() - began:.1f} s", file=sys.stderr)
    return found


def count_pairs(
    store: TokenStore, is_word_V: np.ndarray, window: int, directory: Path, chunk: int = CHUNK, part: int = PART_BYTES
) -> int:
    """Writes the counts of all pairs to files in `directory`, and returns the number M of pairs."""
    vocab_size, most = len(is_word_V), 2 * window * ENTRY.itemsize * store.num_tokens
    parts = max(1, -(-most // part))
    with tempfile.TemporaryDirectory(dir=directory) as folder, contextlib.ExitStack() as stack:
        paths = [Path(folder) / str(number) for number in range(parts)]
        rest_T, rest_documents_T = np.zeros(0, np.int64), np.zeros(0, np.int64)  # the last `window` words
        for begin in range(0, store.num_tokens, chunk):
            tokens_T = np.asarray(store.tokens[begin : begin + chunk]).astype(np.int64)
            kept_T = np.flatnonzero(is_word_V[tokens_T])
            documents_T = np.searchsorted(store.starts, begin + kept_T, side="right")
            old = len(rest_T)
            words_T = np.concatenate([rest_T, tokens_T[kept_T]])
            documents_T = np.concatenate([rest_documents_T, documents_T])
            found = _summed(_pairs(words_T, documents_T, old, window, vocab_size))
            bounds = np.searchsorted(_part(mixed(found["key"]), parts), np.arange(parts + 1))
            for path, first, end in zip(paths, bounds[:-1], bounds[1:], strict=True):
                if end > first:
                    with path.open("ab") as file:
                        file.write(found[first:end].tobytes())
            rest_T, rest_documents_T = words_T[-window:], documents_T[-window:]
        files = {name: stack.enter_context((directory / name).open("wb")) for name in ARRAYS}
        total = 0
        for path in paths:
            if path.exists():
                found = _summed(np.fromfile(path, ENTRY))
                path.unlink()
                arrays = {"first": found["key"] // vocab_size, "second": found["key"] % vocab_size}
                for name, values in {**arrays, "count": found["count"]}.items():
                    files[name].write(values.astype(ARRAYS[name]).tobytes())
                total += len(found)
    return total


def _pairs(words_T: np.ndarray, documents_T: np.ndarray, old: int, window: int, vocab_size: int) -> np.ndarray:
    """Returns an ENTRY for each of the two orders of each pair, except for pairs among the first `old` words."""
    keys, counts = [], []
    for distance in range(1, window + 1):
        second_P = np.arange(max(old, distance), len(words_T))
        second_P = second_P[documents_T[second_P] == documents_T[second_P - distance]]
        one_P, other_P = words_T[second_P - distance], words_T[second_P]
        keys += [one_P * vocab_size + other_P, other_P * vocab_size + one_P]
        counts.append(np.full(2 * len(second_P), 1.0 / distance))
    entries = np.zeros(sum(map(len, counts)), ENTRY)
    entries["key"], entries["count"] = np.concatenate(keys), np.concatenate(counts)
    return entries


def _summed(entries: np.ndarray) -> np.ndarray:
    """Returns one entry per key with the sum of its counts, sorted by the hash of the key."""
    order = np.argsort(mixed(entries["key"]), kind="stable")
    keys, counts = entries["key"][order], entries["count"][order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    found = np.zeros(len(starts), ENTRY)
    found["key"] = keys[starts]
    found["count"] = np.add.reduceat(counts, starts) if len(starts) else counts
    return found


def mixed(keys: np.ndarray) -> np.ndarray:
    """Returns a distinct hash for each key, uint64 (using the finaliser of SplitMix64, Steele 2014)."""
    x = keys.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _part(hashes: np.ndarray, parts: int) -> np.ndarray:
    """Returns the index of the part to which each hash belongs. Larger hashes never belong to earlier parts."""
    return ((hashes >> np.uint64(32)) * np.uint64(parts)) >> np.uint64(32)
