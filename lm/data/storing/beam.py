"""Encodes documents with Apache Beam (data.beam), on one or more machines.

The pipeline reads each unit of files, divides it into chunks, and writes one part per chunk and the number of chunks in
the unit. The parts have the same names and contents as those written by worker processes on one machine. Every machine
must see the data and the cache under the same paths.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.data.storing.documents import Documents
from lm.data.storing.encoding import Chunk, DamagedPart, Part, part_name, part_path, write_whole
from lm.errors import UserError


@dataclass(frozen=True)
class UnitReader:
    """Yields those chunks of a unit for which `directory` contains no part yet, with the names of their parts.

    Then writes the total number of chunks in the unit to a file.
    """

    documents: Documents
    directory: Path

    def __call__(self, unit: int) -> Iterator[tuple[str, Chunk]]:
        total = 0
        for name, chunk in self.documents.chunks(unit):
            total += 1
            try:
                Part.load(part_path(self.directory, name))
            except DamagedPart:
                yield name, chunk
        write_whole(_total_path(self.directory, unit), str(total).encode())


@dataclass(frozen=True)
class ChunkWriter:
    """Encodes a chunk and writes its part to `directory`."""

    documents: Documents
    directory: Path

    def __call__(self, named: tuple[str, Chunk]) -> str:
        name, chunk = named
        self.documents.encoder.part(chunk).save(part_path(self.directory, name))
        return name


def write_parts(documents: Documents, directory: Path, options: str) -> list[str]:
    """Writes all parts using a Beam pipeline with the given command-line options. Returns the names of the parts.

    Raises UserError if Beam is missing, if the pipeline fails, or if a part is missing afterwards.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            "config.data.beam: Apache Beam is not installed; run `pip install -r requirements-beam.txt`, or leave this "
            "setting empty."
        ) from None
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with apache_beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
            units: Any = pipeline | "units" >> apache_beam.Create(range(documents.num_units()))
            chunks = units | apache_beam.Reshuffle() | "read" >> apache_beam.FlatMap(UnitReader(documents, directory))
            chunks | "share" >> apache_beam.Reshuffle() | "encode" >> apache_beam.Map(ChunkWriter(documents, directory))
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]  # often a traceback
        raise UserError(f"config.data.beam: the pipeline failed ({lines[-1].strip()[:300]}).") from error
    return names_of_parts(directory, documents.num_units())


def names_of_parts(directory: Path, num_units: int) -> list[str]:
    """Returns the names of the parts of all units, in order. Raises UserError if a part is missing in `directory`."""
    names = []
    for unit in range(num_units):
        try:
            total = int(_total_path(directory, unit).read_bytes())
        except FileNotFoundError:
            raise _missing(_total_path(directory, unit)) from None
        for name in (part_name(unit, number) for number in range(total)):
            if not part_path(directory, name).exists():
                raise _missing(part_path(directory, name))
            names.append(name)
    return names


def _total_path(directory: Path, unit: int) -> Path:
    return directory / f"{unit:06d}.total"


def _missing(path: Path) -> UserError:
    return UserError(
        f"config.data.beam: the pipeline has ended, but {path} is missing on this machine; all machines must see the "
        "cache under the same path (config.data.cache_dir)."
    )
