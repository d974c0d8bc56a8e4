"""Encodes all documents of a data source, in order: in this process, in worker processes or with Apache Beam.

Small inputs are encoded in this process. After PATIENCE seconds, worker processes are started, and each encoded part is
written to a file of its own, so that an interrupted build can continue where it stopped. The files do not depend on
which process writes them, and their number and order depend only on the data.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lm.data.storing.beam import write_parts
from lm.data.storing.documents import Documents
from lm.data.storing.encoding import SUFFIX, Chunk, DamagedPart, Encoder, Part, load_part, part_path
from lm.data.storing.workers import WorkerDied, Workers, available_cores
from lm.errors import UserError

PARTS = ".parts"  # suffix of the directory with the parts of an unfinished store
PATIENCE = 0.5  # seconds; starting a worker process takes about as long
SECONDS_KEPT = 7 * 86400.0  # age at which the parts of a build that was never continued are removed
REDRAW_SECONDS, PLAIN_SECONDS = 0.2, 10.0  # intervals between progress lines on a terminal and elsewhere

Task = tuple[str, Chunk | None]  # the name of a part, and its chunk (None if it is already encoded)


@dataclass(frozen=True)
class _PartWriter:
    """The function that a worker runs: it encodes a chunk, writes the part to a file and returns the part's name."""

    encoder: Encoder
    directory: Path

    def __call__(self, task: Task) -> str:
        name, chunk = task
        if chunk is not None:
            self.encoder.part(chunk).save(part_path(self.directory, name))
        return name


@dataclass(frozen=True)
class Engine:
    """Chooses the processes that encode documents (the settings data.store_workers and data.beam)."""

    num_workers: int = 0
    beam: str = ""

    def encode(self, documents: Documents, directory: Path, label: str) -> Generator[Part, None, None]:
        """Yields all parts in order.

        If the build uses Beam or takes longer than PATIENCE seconds, the parts are also stored in files in `directory`.
        Raises UserError if a document cannot be read or encoded, and WorkerDied if a worker was killed.
        """
        if directory.exists():
            found = sum(1 for _ in directory.glob(f"*{SUFFIX}"))
            print(f"{label}: continuing an interrupted build; {found:,} parts are already done", file=sys.stderr)
        if self.beam and documents.source.cuts_texts:
            print(f"{label}: encoding without Beam, because data.holdout='tail' may cut a document", file=sys.stderr)
        elif self.beam:
            names = write_parts(documents, directory, self.beam)
            if not names:
                documents.refuse_if_empty()
            yield from (load_part(directory, name) for name in names)
            return  # without reading the data again
        try:
            yield from self._encode(documents, directory, label)
        except UserError as error:
            if _is_in_data(error):  # another store will be built from the corrected data
                shutil.rmtree(directory, ignore_errors=True)
            raise

    def _encode(self, documents: Documents, directory: Path, label: str) -> Iterator[Part]:
        began, num_workers = time.monotonic(), self.num_workers or available_cores()
        tasks, encoder = _without_finished(documents.all_chunks(), directory, label), documents.encoder
        unsaved: list[tuple[str, Part]] = []
        for name, chunk in tasks:
            if chunk is None:
                yield load_part(directory, name)
            else:
                part = encoder.part(chunk)
                unsaved.append((name, part))
                yield part
            if time.monotonic() - began >= PATIENCE:
                break
        else:
            return
        directory.mkdir(parents=True, exist_ok=True)
        for name, part in unsaved:
            part.save(part_path(directory, name))
        unsaved.clear()
        writer = _PartWriter(encoder, directory)
        if num_workers == 1:
            yield from (load_part(directory, writer(task)) for task in tasks)
            return
        with Workers(writer, num_workers) as workers:
            for task in tasks:
                yield load_part(directory, writer(task))
                if workers.are_ready():
                    break
            yield from (load_part(directory, name) for name in workers.map(tasks))


def _without_finished(chunks: Iterator[tuple[str, Chunk]], directory: Path, label: str) -> Iterator[Task]:
    """Replaces each chunk with None if its part is already in a file. Reports damaged parts."""
    for name, chunk in chunks:
        path = part_path(directory, name)
        if not path.exists():
            yield name, chunk
            continue
        try:
            Part.load(path)
            yield name, None
        except DamagedPart as damage:
            print(f"{label}: part {path} is damaged ({damage}); encoding it again", file=sys.stderr)
            yield name, chunk


def _is_in_data(error: BaseException | None) -> bool:
    """Returns whether an error is caused by the documents. An error caused by the machine may not occur again."""
    while error is not None:
        if isinstance(error, WorkerDied | ImportError) or (isinstance(error, OSError) and error.errno):
            return False
        error = error.__cause__ or error.__context__
    return True


def remove_old_parts(cache: Path) -> None:
    """Removes the parts of builds that were interrupted long ago, e.g. of stores whose data has since changed."""
    for directory in cache.glob(f"*{PARTS}"):
        with contextlib.suppress(FileNotFoundError):  # another process has just finished or removed it
            if time.time() - directory.stat().st_mtime > SECONDS_KEPT:
                shutil.rmtree(directory, ignore_errors=True)


class Progress:
    """Reports progress: on a terminal, by updating one line; elsewhere, by printing a new line from time to time."""

    def __init__(self, label: str, documents: Documents):
        self._label, self._began = label, time.monotonic()
        self._total = documents.estimated_bytes()
        self._is_terminal = sys.stderr.isatty()
        self._shown = self._began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._is_terminal and self._shown > self._began:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self, counts: dict[str, int]) -> None:
        now = time.monotonic()
        if now - self._shown < (REDRAW_SECONDS if self._is_terminal else PLAIN_SECONDS):
            return
        self._shown, megabytes = now, counts["bytes"] / 1e6
        total = f" of about {self._total / 1e6:,.0f}" if self._total else ""
        line = (
            f"tokenising {self._label}: {megabytes:,.0f}{total} MB, {counts['tokens'] / 1e6:,.1f} M tokens, "
            f"{megabytes / (now - self._began):,.1f} MB/s"
        )
        print(
            *(("\r", line, "\x1b[K") if self._is_terminal else (line, "\n")),
            sep="",
            end="",
            file=sys.stderr,
            flush=True,
        )
