"""Formats whose records have named fields: JSON lines, tables in text files (TSV, CSV) and Parquet."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lm.data.reading.fields import Field, Record, columns_of
from lm.data.reading.format import FileFormat, Format, open_text, read_lines
from lm.errors import UserError
from lm.files import DEEPEST_JSON, TOO_DEEP, check_depth

ROWS = 1024  # number of rows read from a Parquet file at a time
NARROW = re.compile(r"\b(halffloat|float)\b")  # the Arrow types float16 and float32, possibly nested
QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')  # a quoted CSV value


def parse_json(text: str, where: str, *, finite: bool = False) -> Any:
    """Parses JSON text.

    Raises UserError if the text is not valid JSON or a name occurs twice in an object. If `finite` is true, the numbers
    NaN and Infinity, which Python accepts but the standard does not, also raise UserError.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{where}: the name {twice!r:.60} occurs more than once in an object; remove all but one.")
        return found

    def refuse(constant: str) -> None:
        raise UserError(f"{where}: {constant} is not a usable number; replace it.")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse if finite else None)
        if text.count("[") + text.count("{") > DEEPEST_JSON:
            check_depth(value)
    except (ValueError, RecursionError) as error:
        reason = TOO_DEEP if isinstance(error, RecursionError) else error
        raise UserError(f"{where}: this is not valid JSON ({reason}).") from error
    return value


class JsonLines(FileFormat):
    doc = "one JSON object per line"
    endings = (".jsonl", ".ndjson")

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        for number, line in enumerate(read_lines(path, self.config), start=1):
            if line.strip():
                record = parse_json(line, where := f"{path}, line {number}")
                if not isinstance(record, dict):
                    raise UserError(f"{where}: expected a JSON object, but got {type(record).__name__}.")
                yield record, where


class TabSeparated(FileFormat):
    """Reads tab-separated values. The header row names the columns unless the setting `columns` is set.

    If `columns` is set, any additional columns in the file are ignored. Quotation marks are part of the text, so a file
    whose values seem to be quoted as in CSV raises UserError (see `Quotes`).
    """

    doc = "tab-separated values without quoting; the first line is a header unless `columns` is set"
    endings: ClassVar[Collection[str]] = (".tsv", ".tab")
    holds = ("documents", "pairs", "labels", "numbers", "words")
    settings = (*Format.settings, "columns")
    quotes_are_text: ClassVar[bool] = True

    def options(self) -> list[str]:
        # `columns` is included only if it is set, so that stores that predate this setting are still found.
        return super().options() + ([f"columns={self.config.columns}"] if self.config.columns else [])

    def rows(self, path: Path) -> Iterator[tuple[list[str], str]]:
        """Yields the values and the position of each row."""
        for number, line in enumerate(read_lines(path, self.config, rows=True), start=1):
            yield line.split("\t"), f"{path}, line {number}"

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        rows, quotes = self.rows(path), Quotes()
        setting, csv_format = self.wording.name("columns", "`"), self.wording.assign("kind", "csv")
        if self.config.columns:
            names, origin = [name.strip() for name in self.config.columns.split(",")], setting
        else:
            names, origin = next(rows, ([""], ""))[0], "the first line"
        try:
            needed = [names.index(name) for name in columns_of(fields, names, str(path))]
        except UserError as error:
            hint = "" if self.config.columns else f"; if it is not a header, set {setting}"
            if self.quotes_are_text and any(map(QUOTED.fullmatch, names)):
                hint = f"; they are quoted as in CSV: use {csv_format}, which also accepts tabs"
            raise UserError(f"{error} (The column names come from {origin}{hint}.)") from error
        for values, where in rows:
            if values in ([], [""]):  # an empty line
                continue
            if max(needed) >= len(values) or (not self.config.columns and any(values[len(names) :])):
                has_quotes = self.quotes_are_text and any('"' in value for value in values)
                hint = f" If quoted values contain tabs or line breaks, use {csv_format}." if has_quotes else ""
                raise UserError(f"{where}: this row has {len(values)} fields, but {origin} has {len(names)}.{hint}")
            if _is_header(values, names, needed):
                remedy = f"do not set {setting}" if self.config.columns else "remove it"
                raise UserError(f"{where}: this line repeats the column names, so it is a header, not a row; {remedy}.")
            if self.quotes_are_text:
                quotes.count([values[index] for index in needed])
            yield dict(zip(names, values, strict=False)), where
        example = quotes.evidence()
        found = f"values are quoted as in CSV, e.g. {example!r:.60}"
        if example and quotes.stray:
            self.remarks.add(
                f"{path}: {quotes.quoted:,} {found}, but {quotes.stray!r:.60} is not, so quotation marks are read as "
                f"text; if they are not part of the text, use {csv_format}"
            )
        elif example:
            raise UserError(
                f"{path}: the {found}; use {csv_format}, which removes the quotation marks and also accepts tabs. If "
                "the marks belong to the text, convert the file to JSON lines."
            )


def _is_header(values: Sequence[str], names: Sequence[str], needed: Sequence[int]) -> bool:
    """Returns whether a row repeats the column names.

    Each needed column must contain its own name. At least two columns in total must do so, because a single match may
    be a coincidence.
    """
    columns, cells = ([each.strip().casefold() for each in row] for row in (names, values))
    same = [cell == column for cell, column in zip(cells, columns, strict=False)]
    named = sum(cell == column != "" for cell, column in zip(cells, columns, strict=False))
    return all(same[index] for index in needed) and (named > 1 or (len(same) == len(names) > 1 and all(same)))


class Quotes:
    """Determines whether the values of a tab-separated file are quoted as in CSV.

    Some programs quote only values that contain quotation marks, and double these marks. Other programs quote all
    values of a column. A value that merely begins and ends with a quotation mark, e.g. direct speech, proves nothing.
    """

    def __init__(self) -> None:
        self.quoted, self.stray = 0, ""  # number of quoted values; the first other value with a quotation mark
        self._rows = 0
        self._doubled = ""  # a quoted value with doubled quotation marks inside
        self._examples: dict[int, str] = {}  # the first quoted value of each column
        self._plain: set[int] = set()  # columns with at least one value without quotation marks

    def count(self, values: Sequence[str]) -> None:
        self._rows += 1
        for column, value in enumerate(values):
            if '"' not in value:
                self._plain.add(column)
            elif not QUOTED.fullmatch(value):
                self.stray = self.stray or value
            else:
                self.quoted += 1
                self._examples.setdefault(column, value)
                self._doubled = self._doubled or value * ('"' in value[1:-1])

    def evidence(self) -> str:
        """Returns a value that indicates that the file is quoted as in CSV, or "" if there is none.

        If there is a `stray` value, the returned value is only a hint.
        """
        if self._rows < 2:
            return ""
        return self._doubled or next((self._examples[each] for each in self._examples if each not in self._plain), "")


class CommaSeparated(TabSeparated):
    """Reads CSV (RFC 4180). Quoted values may contain separators, line breaks and doubled quotation marks.

    The separator is a tab if the header contains a tab, a semicolon if it contains more semicolons than commas, and a
    comma otherwise. Characters in quoted column names are not counted. If `columns` is set, there is no header, and the
    separator is a tab if the file name ends in .tsv or .tab, and a comma otherwise.
    """

    doc = (
        "comma-, semicolon- or tab-separated values, quoted or not; the first line is a header unless `columns` is set"
    )
    endings = (".csv",)
    quotes_are_text = False

    def rows(self, path: Path) -> Iterator[tuple[list[str], str]]:
        with open_text(path, self.config) as file:
            lines = (line + "\n" for line in itertools.chain.from_iterable(file.groups()))
            first = next(lines, "")
            rows = csv.reader(itertools.chain([first], lines), delimiter=self._separator(path, first), strict=True)
            where = f"{path}, line 1"  # where the row begins
            try:
                while (values := self._next(rows)) is not None:
                    yield values, where
                    where = f"{path}, line {rows.line_num + 1}"
            except csv.Error as error:
                raise UserError(f"{where}: this is not a valid CSV row ({error}).") from error

    def _next(self, rows: Iterator[list[str]]) -> list[str] | None:
        """Returns the next row, or None at the end.

        The csv module's limit on the length of values is global, so it is changed only during this call.
        """
        limit = csv.field_size_limit(self.config.longest_line)
        try:
            return next(rows, None)
        finally:
            csv.field_size_limit(limit)

    def _separator(self, path: Path, first: str) -> str:
        if self.config.columns:
            return "\t" if path.name.removesuffix(".gz").endswith((".tsv", ".tab")) else ","
        header = QUOTED.sub("", first)
        return "\t" if "\t" in header else ";" if header.count(";") > header.count(",") else ","


class Parquet(FileFormat):
    doc = "Parquet files"
    endings = (".parquet",)
    reads = ()

    def options(self) -> list[str]:
        narrow = ["labels in their own width"] if any(map(self._has_narrow_labels, self.files.found)) else []
        return [self.config.field, *narrow]  # earlier versions read such labels as float64

    def _has_narrow_labels(self, path: Path) -> bool:
        """Returns whether the label column holds float16 or float32 numbers."""
        import pyarrow
        import pyarrow.parquet

        names = self.config.label_field, self.config.label_field.partition(".")[0]
        try:
            schema = pyarrow.parquet.read_schema(path) if names[0] else []
        except (pyarrow.ArrowException, OSError, ValueError):
            return False  # reading the file raises a clearer error
        return any(NARROW.search(str(each.type)) for each in schema if each.name in names)

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
            raise UserError(f"{path}: a column name is not valid UTF-8 ({error.reason}).") from error
        except (pyarrow.ArrowException, ValueError) as error:  # ValueError: a struct has two fields with the same name
            raise UserError(f"{path} is not a readable Parquet file ({str(error).splitlines()[0]}).") from error


def _as_records(batch: Any, where: str, before: int) -> list[Record]:
    """Returns the rows of a batch as records. `before` is the number of rows in earlier batches.

    Raises UserError if a string is not valid UTF-8.
    """
    try:
        records = batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                try:
                    column[row].as_py()
                except UnicodeDecodeError as error:
                    problem = f"field {name!r} is not valid UTF-8 at byte {error.start} ({error.reason})"
                    raise UserError(f"{where} {before + row + 1}: {problem}.") from error
        raise
    for field in batch.schema:
        if NARROW.search(str(field.type)):
            for record in records:
                record[field.name] = _in_own_width(record[field.name], field.type)
    return records


def _in_own_width(value: Any, kind: Any) -> Any:
    """Converts float16 and float32 numbers in a value to NumPy numbers.

    NumPy prints the shortest string that restores the number at its own precision, e.g. 0.1, not 0.10000000149011612.
    """
    from pyarrow import types

    if value is None:
        return None
    if types.is_float16(kind) or types.is_float32(kind):
        return kind.to_pandas_dtype()(value)
    if types.is_struct(kind):
        return {each.name: _in_own_width(value[each.name], each.type) for each in kind}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [_in_own_width(each, kind.value_type) for each in value]
    return _in_own_width(value, kind.value_type) if types.is_dictionary(kind) else value
