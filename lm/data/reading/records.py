"""Records with named fields: lines of JSON, tables in text files (TSV, CSV) and Parquet."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm.data.reading.fields import Field, Record, columns_of
from lm.data.reading.format import FileFormat, Format
from lm.errors import UserError
from lm.files import parse_json

ROWS = 1024  # of Parquet, per read


class JsonLines(FileFormat):
    doc = "a JSON object per line"

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        for number, line in enumerate(self.lines(path), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = parse_json(line)
            except ValueError as error:
                raise UserError(f"{where}: not valid JSON ({error}).") from error
            if not isinstance(record, dict):
                raise UserError(f"{where}: expected a JSON object, got {type(record).__name__}.")
            yield record, where


class TabSeparated(FileFormat):
    """The header row names the columns unless `columns` is set. Values beyond the last named column are ignored."""

    doc = "tab-separated values without quoting; the first line is a header unless `columns` is set"
    holds = ("documents", "pairs", "labels", "numbers")
    settings = (*Format.settings, "columns")

    def options(self) -> list[str]:
        # `columns` is added only if set, so that stores made before this setting existed are still found.
        return super().options() + ([f"columns={self.config.columns}"] if self.config.columns else [])

    def rows(self, path: Path) -> Iterator[tuple[list[str], str]]:
        """Yields the values of each row and its position."""
        for number, line in enumerate(self.lines(path, rows=True), start=1):
            yield line.split("\t"), f"{path}, line {number}"

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        rows = self.rows(path)
        if self.config.columns:
            names, origin = [name.strip() for name in self.config.columns.split(",")], "`columns`"
        else:
            names, origin = next(rows, ([""], ""))[0], "the first line"
        try:
            needed = [names.index(name) for name in columns_of(fields, names, str(path))]
        except UserError as error:
            hint = "" if self.config.columns else "; if it is not a header, set `columns`"
            raise UserError(f"{error} (The column names come from {origin}{hint}.)") from error
        for values, where in rows:
            if values in ([], [""]):  # an empty line
                continue
            if max(needed) >= len(values):
                raise UserError(f"{where}: has {len(values)} fields, but {origin} has {len(names)}.")
            yield dict(zip(names, values, strict=False)), where


class CommaSeparated(TabSeparated):
    """RFC 4180, read by Python's csv module: quoted values may contain commas, line breaks and doubled quotes.

    The separator is a semicolon if the first line is a header with more semicolons than commas.
    """

    doc = "comma- or semicolon-separated values, optionally quoted; the first line is a header unless `columns` is set"

    def rows(self, path: Path) -> Iterator[tuple[list[str], str]]:
        csv.field_size_limit(self.config.longest_line)  # the default is 131,072
        with self.open(path) as file:
            first = file.readline()
            semicolons = not self.config.columns and first.count(";") > first.count(",")
            rows = csv.reader(itertools.chain([first], file), delimiter=";" if semicolons else ",", strict=True)
            while True:
                where = f"{path}, line {rows.line_num + 1}"  # where the row begins
                try:
                    values = next(rows, None)
                except csv.Error as error:
                    raise UserError(f"{where}: not a valid CSV row ({error}).") from error
                if values is None:
                    return
                yield values, where


class Parquet(FileFormat):
    doc = "Parquet files"
    notes_encoding = is_text = False

    def options(self) -> list[str]:
        return [self.config.field]

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
                columns = columns_of(fields, file.schema_arrow.names, str(path))
                row = 0
                for batch in file.iter_batches(batch_size=ROWS, columns=columns):
                    for record in _as_records(batch, f"{path}, row", row):
                        row += 1
                        yield record, f"{path}, row {row}"
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: the name of a column is not valid UTF-8 ({error.reason}).") from error
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}).") from error


def _as_records(batch: Any, where: str, before: int) -> list[Record]:
    """Returns the rows of a batch, which follows `before` others. Raises UserError at a text that is not UTF-8."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                try:
                    column[row].as_py()
                except UnicodeDecodeError as error:
                    problem = f"field {name!r} is not valid UTF-8 at byte {error.start} ({error.reason})"
                    raise UserError(f"{where} {before + row + 1}: {problem}.") from error
        raise
