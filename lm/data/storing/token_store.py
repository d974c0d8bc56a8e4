"""Stores tokenised documents in memory-mapped files with a manifest. Pairs of texts are kept in two stores.

A store is a directory in the cache with four files: `tokens.bin` (all documents as `[bos] tokens [eos]`, one after
another, uint16 or uint32), `starts.bin` (int64, the index of each document's first token), `hashes.bin` (uint64, a hash
of each document's text) and `manifest.json`. The name of the directory is a hash of everything that determines its
content, so a store may be missing but is never outdated.

Counts in the manifest: `bytes` is the UTF-8 size of the cleaned text; `words` is the number of whitespace-separated
words plus the number of line breaks (the convention of WikiText's published perplexities); `unknown` is the number of
unknown tokens, whose text cannot be recovered; `changed` is the number of documents that differ from the text decoded
from their tokens.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.storing.building import PARTS, Engine, Progress, remove_old_parts
from lm.data.storing.documents import Documents
from lm.data.storing.joining import FILES, Joiner
from lm.data.storing.overlap import combined
from lm.errors import UserError
from lm.files import hash_of, new_directory, parse_json, read_file

FORMAT = 2  # increment this when a change to the code produces a different store from the same inputs


class DamagedStore(Exception):
    """The files of a store do not match its manifest."""


class TokenStore:
    """A finished store with a `manifest` (a dict), `tokens` (num_tokens,) and `starts` (num_documents,).

    Only the directory name is pickled, so all worker processes map the same files into memory.
    """

    def __init__(self, directory: Path | str):
        self.directory = Path(directory)
        try:
            self.manifest: dict[str, Any] = parse_json(read_file(self.directory / "manifest.json"))
            for name, size in self.manifest["files"].items():
                found = (self.directory / name).stat().st_size
                if found != size:
                    raise DamagedStore(f"{name} has {found} bytes, but the manifest says {size}")
            self.counts: dict[str, int] = self.manifest["counts"]
            self.num_documents, self.num_tokens = self.counts["documents"], self.counts["tokens"]
            self.num_tokens_of_text = self.num_tokens - 2 * self.num_documents  # excluding BOS and EOS
            self.fingerprint: str = self.manifest["content"]  # hash of tokens and document starts
            self.tokens = _map(self.directory / "tokens.bin", self.manifest["dtype"])
            self.starts = _map(self.directory / "starts.bin", "int64")
            self.hashes = _map(self.directory / "hashes.bin", "uint64")
            sizes = len(self.tokens), len(self.starts), len(self.hashes)
            if sizes != (self.num_tokens, self.num_documents, self.num_documents):
                raise DamagedStore("the counts in manifest.json do not match the files")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedStore(f"{type(error).__name__}: {error}") from error

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        return TokenStore, (self.directory,)

    @property
    def text_lengths(self) -> np.ndarray:
        """The number of tokens in each document, excluding BOS and EOS, int64 (num_documents,)."""
        return np.diff(np.append(self.starts, self.num_tokens)) - 2

    @property
    def notes(self) -> list[str]:
        """The number of dropped documents for each reason."""
        return [f"{number:,} {reason}" for reason, number in self.manifest["dropped"].items() if number]

    def sides(self) -> dict[str, TokenStore]:
        return {"": self}

    def describe(self, short: Callable[[float], str]) -> str:
        sizes = ", ".join(f"{short(self.counts[name])} {name}" for name in ("bytes", "tokens"))
        return f"{self.num_documents:,} documents, {sizes}"

    def record(self) -> dict[str, Any]:
        return {"hash": self.fingerprint, **self.counts}

    def hashes_of_examples(self) -> tuple[np.ndarray, np.ndarray]:
        return self.hashes, self.hashes

    def document(self, index: int) -> np.ndarray:
        """Returns the tokens of a document, including BOS and EOS."""
        end = self.starts[index + 1] if index + 1 < self.num_documents else self.num_tokens
        return self.tokens[self.starts[index] : end]

    def text(self, index: int) -> np.ndarray:
        """Returns the tokens of a document, excluding BOS and EOS."""
        return self.document(index)[1:-1]


def _map(path: Path, dtype: str) -> np.ndarray:
    # An empty file cannot be mapped. Slicing a plain array is faster than slicing a memmap.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if path.stat().st_size else np.zeros(0, dtype)


@dataclass(frozen=True)
class PairStore:
    """Two stores; document i of `source` and document i of `target` form pair i."""

    source: TokenStore
    target: TokenStore

    @property
    def fingerprint(self) -> str:
        return hash_of(self.source.fingerprint, self.target.fingerprint)

    @property
    def counts(self) -> dict[str, int]:
        return self.target.counts

    def sides(self) -> dict[str, TokenStore]:
        return {"source": self.source, "target": self.target}

    def describe(self, short: Callable[[float], str]) -> str:
        source, target = self.source.counts, self.target.counts
        sizes = f"{short(source['bytes'] + target['bytes'])} bytes, {short(source['tokens'])}"
        return f"{source['documents']:,} pairs, {sizes} and {short(target['tokens'])} tokens"

    def record(self) -> dict[str, Any]:
        return {"source": self.source.record(), "target": self.target.record()}

    def hashes_of_examples(self) -> tuple[np.ndarray, np.ndarray]:
        return self.source.hashes, combined(self.source.hashes, self.target.hashes)


def open_or_build(
    cache: Path, identity: dict[str, Any], label: str, documents: Documents, engine: Engine
) -> TokenStore:
    """Returns the store for `identity` in `cache`; builds it from the documents if it is missing or damaged.

    If several processes request the same store at once, one builds it and the others wait. `label` names the store in
    messages. Documents that an interrupted build has encoded are not encoded again. Raises UserError if the cache
    cannot be written.
    """
    key = hashlib.sha256(json.dumps([FORMAT, identity], sort_keys=True).encode()).hexdigest()[:32]
    directory = cache / key
    try:
        if store := _open(directory, label):
            return store
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f"{key}.lock") as exclusive:
            if exclusive:  # while the lock is held, any leftover files come from builders that were killed
                for leftover in cache.glob(f"{key}.tmp-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            if store := _open(directory, label):
                return store
            shutil.rmtree(directory, ignore_errors=True)
            # Without locks, another process may be encoding the same parts, so each process uses its own directory.
            builder = "" if exclusive else f"-{uuid.uuid4().hex[:8]}"
            parts = cache / f"{key}-{documents.layout()}{builder}{PARTS}"
            with contextlib.suppress(FileNotFoundError):
                os.utime(parts)  # so that no process removes them as old
            remove_old_parts(cache)
            try:
                _build(directory, parts, identity, label, documents, engine)
            finally:
                if not exclusive:
                    shutil.rmtree(parts, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"the cache {cache} cannot be written ({error.strerror or error}); "
            "set config.data.cache_dir or LM_CACHE_DIR to a writable directory with enough free space."
        ) from error
    return TokenStore(directory)


def _open(directory: Path, label: str) -> TokenStore | None:
    if not directory.exists():
        return None
    try:
        return TokenStore(directory)
    except DamagedStore as damage:
        print(f"{label}: the token store in {directory} is damaged ({damage}); rebuilding it", file=sys.stderr)
        return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a file lock, which is released even if the process is killed.

    Yields whether the file system supports locks.
    """
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _build(
    directory: Path, parts: Path, identity: dict[str, Any], label: str, documents: Documents, engine: Engine
) -> None:
    began = time.monotonic()
    # Without locks, another process may have built the store first.
    with contextlib.suppress(FileExistsError), new_directory(directory) as temporary:
        with (
            Joiner(temporary, documents) as joiner,
            Progress(label, documents) as progress,
            contextlib.closing(engine.encode(documents, parts, label)) as encoded,
        ):
            for part in encoded:
                joiner.add(part)
                progress.show(joiner.counts)
        manifest = {
            "format": FORMAT,
            "label": label,
            "identity": identity,
            "counts": joiner.counts,
            "dropped": documents.rules.dropped,
            "dtype": documents.encoder.dtype.name,
            "files": {name: (temporary / name).stat().st_size for name in FILES},
            "content": joiner.content.hexdigest(),
            "versions": {"python": sys.version.split()[0], "numpy": np.__version__},
            "seconds": round(time.monotonic() - began, 3),
        }
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(parts, ignore_errors=True)
    counts = joiner.counts
    print(
        f"tokenised {label}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['bytes']:,} bytes "
        f"in {time.monotonic() - began:.1f} s",
        *(f"note: {label}: {note}" for note in documents.rules.notes()),
        sep="\n",
        file=sys.stderr,
    )
