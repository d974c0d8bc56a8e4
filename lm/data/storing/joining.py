"""Joins encoded parts, in order, into the files of a token store (see `token_store.py`)."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from lm.data.storing.documents import Documents
from lm.data.storing.encoding import Part

FILES = ("tokens.bin", "starts.bin", "hashes.bin")
COUNTS = ("documents", "tokens", "characters", "bytes", "words", "unknown", "changed")
# The hash of a store's content covers, for each batch of documents in turn, their tokens and then their start indices.
# A batch ends when it reaches either of these limits.
BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 1024


class Joiner:
    """A context manager that writes the files of a store to a directory, part by part."""

    def __init__(self, directory: Path, documents: Documents):
        self._directory, self._rules = directory, documents.rules
        self.counts = dict.fromkeys(COUNTS, 0)
        self.content = hashlib.sha256(documents.encoder.dtype.name.encode())
        self._drops_repeated = documents.encoder.drops_repeated
        self._is_dropped, self._is_changed = False, False  # these describe the last document
        self._starts: list[np.ndarray] = []  # of the documents in the current batch
        self._characters, self._documents = 0, 0  # totals for the current batch

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._files = [stack.enter_context(open(self._directory / name, "wb")) for name in FILES]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._stack:
            if kind is None:
                self._end_batch()
                for file in self._files:
                    file.flush()
                    os.fsync(file.fileno())

    def add(self, part: Part) -> None:
        """Adds the next part. Omits documents that repeat earlier ones if repeated documents are dropped."""
        documents, tokens_N = part.documents, part.tokens
        self._rules.add_counts(*part.counts)
        if part.continues:
            if not self._is_dropped:
                self._count(documents, changed=bool(documents["changed"][0]) and not self._is_changed)
                self._is_changed |= bool(documents["changed"][0])
                self._write(tokens_N)
            return
        if self._drops_repeated:
            kept_E = np.array([not self._rules.repeats(each.tobytes()) for each in documents["digest"]], bool)
            tokens_N, documents = tokens_N[np.repeat(kept_E, documents["tokens"])], documents[kept_E]
            self._is_dropped = not kept_E[-1:].all()
        self._is_changed = bool(documents["changed"][-1:].any())
        starts_E = self.counts["tokens"] + np.cumsum(documents["tokens"]) - documents["tokens"]
        ends_E = np.cumsum(documents["tokens"])
        self._files[1].write(starts_E.tobytes())
        self._files[2].write(documents["hash"].tobytes())
        begin = 0
        while begin < len(documents):
            if self._characters >= BATCH_CHARACTERS or self._documents >= BATCH_DOCUMENTS:
                self._end_batch()
            sizes_E = np.cumsum(documents["characters"][begin : begin + BATCH_DOCUMENTS - self._documents])
            count = min(len(sizes_E), int(np.searchsorted(sizes_E, BATCH_CHARACTERS - self._characters)) + 1)
            end = begin + count
            self._write(tokens_N[ends_E[begin] - documents["tokens"][begin] : ends_E[end - 1]])
            self._starts.append(starts_E[begin:end])
            self._characters += int(sizes_E[count - 1])
            self._documents += count
            begin = end
        self._count(documents, changed=int(documents["changed"].sum()))
        self.counts["documents"] += len(documents)

    def _write(self, tokens_N: np.ndarray) -> None:
        content = tokens_N.tobytes()
        self._files[0].write(content)
        self.content.update(content)

    def _end_batch(self) -> None:
        if self._starts:
            self.content.update(np.concatenate(self._starts).tobytes())
        self._starts, self._characters, self._documents = [], 0, 0

    def _count(self, documents: np.ndarray, changed: int) -> None:
        for name in ("tokens", "characters", "bytes", "words", "unknown"):
            self.counts[name] += int(documents[name].sum())
        self.counts["changed"] += changed
