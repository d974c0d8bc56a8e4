"""Records with named fields: lines of JSON, tables in text files (TSV, CSV) and Parquet."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lm.data.reading.fields import Field, Record, columns_of
from lm.data.reading.format import FileFormat, Format, open_text, read_errors, read_lines
from lm.errors import UserError

LONGEST_VALUE = 2**31 - 1  # characters; the csv module's default limit is 131,072
ROWS = 1024  # of Parquet, per read


class JsonLines(FileFormat):
    doc = "a JSON object per line"
    endings = (".jsonl", ".ndjson")

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        for number, line in enumerate(read_lines(path, self.config.encoding), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where}: not valid JSON ({error}).") from error
            if not isinstance(record, dict):
                raise UserError(f"{where}: expected a JSON object, got {type(record).__name__}.")
            yield record, where


class TabSeparated(FileFormat):
    """The header row names the columns unless `columns` is set. Values beyond the last named column are ignored."""

    doc = "tab-separated values without quoting; the first line is a header unless `columns` is set"
    endings = (".tsv", ".tab")
    holds = ("documents", "pairs", "labels", "numbers", "words")
    settings = (*Format.settings, "columns")

    def options(self) -> list[str]:
        # `columns` is added only if set, so that stores made before this setting existed are still found.
        return super().options() + ([f"columns={self.config.columns}"] if self.config.columns else [])

    def rows(self, path: Path) -> Iterator[tuple[list[str], str]]:
        """Yields the values of each row and its position."""
        for number, line in enumerate(read_lines(path, self.config.encoding), start=1):
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
    endings = (".csv",)

    def rows(self, path: Path) -> Iterator[tuple[list[str], str]]:
        csv.field_size_limit(LONGEST_VALUE)
        with read_errors(path), open_text(path, self.config.encoding) as file:
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
    endings = (".parquet",)
    notes_encoding = False

    def options(self) -> list[str]:
        return [self.config.field]

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
                columns = columns_of(fields, file.schema_arrow.names, str(path))
                batches = file.iter_batches(batch_size=ROWS, columns=columns)
                records = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
                for row, record in enumerate(records, start=1):
                    yield record, f"{path}, row {row}"
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}).") from error
