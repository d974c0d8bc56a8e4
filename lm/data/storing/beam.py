"""Encodes documents with Apache Beam (data.beam), on one machine or on many. TFDS prepares data sets with it, too.

The pipeline reads each unit of files, divides it into chunks and writes a part for each chunk, with the same names and
contents as the worker processes of one machine. Every machine must see the data and the cache under the same paths.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.data.storing.documents import Documents
from lm.data.storing.encoding import Chunk, DamagedPart, Part, part_path
from lm.errors import UserError


@dataclass(frozen=True)
class UnitReader:
    """Yields the chunks of a unit whose parts are not in `directory` yet, and the names of these parts."""

    documents: Documents
    directory: Path

    def __call__(self, unit: int) -> Iterator[tuple[str, Chunk]]:
        for name, chunk in self.documents.chunks(unit):
            try:
                Part.load(part_path(self.directory, name))
            except DamagedPart:
                yield name, chunk


@dataclass(frozen=True)
class ChunkWriter:
    """Encodes a chunk and writes its part to `directory`."""

    documents: Documents
    directory: Path

    def __call__(self, named: tuple[str, Chunk]) -> str:
        name, chunk = named
        self.documents.encoder.part(chunk).save(part_path(self.directory, name))
        return name


def write_parts(documents: Documents, directory: Path, options: str) -> None:
    """Writes all parts with a pipeline that is run with these command-line options of Beam.

    Raises UserError if Beam is missing, or if the pipeline fails.
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
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"config.data.beam: the pipeline failed ({reason}).") from error
