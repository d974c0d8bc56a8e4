"""Parquet files, read by columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lm.data.reading.fields import Field, Record, columns_of
from lm.data.reading.format import FileFormat
from lm.errors import UserError

ROWS = 1024  # read at a time


class Parquet(FileFormat):
    doc = "Parquet files"

    def options(self) -> list[str]:
        return [self.config.field]

    def notes(self) -> list[str]:
        return []

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
                columns = columns_of(fields, file.schema_arrow.names, str(path))
                row = 0
                for batch in file.iter_batches(batch_size=ROWS, columns=columns):
                    for record in batch.to_pylist():
                        row += 1
                        yield record, f"{path}, row {row}"
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}).") from error
