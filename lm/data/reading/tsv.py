"""Tab-separated values, and what all tables in text files have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lm.data.reading.fields import Field, Record, columns_of
from lm.data.reading.files import read_lines
from lm.data.reading.format import FileFormat, Format
from lm.errors import UserError


class TabSeparated(FileFormat):
    """The first row names the columns, unless the setting `columns` does. Further values of a row have no name."""

    doc = "values between tabs, without quotes; the first line names the columns, unless `columns` does"
    holds = ("documents", "pairs", "labels", "numbers")
    settings = (*Format.settings, "columns")

    def options(self) -> list[str]:
        # `columns` only if it is set: stores that were made before this setting existed are still found.
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
            hint = "" if self.config.columns else "; `columns` names them where that line does not"
            raise UserError(f"{error} (They are read from {origin}{hint}.)") from error
        for values, where in rows:
            if values in ([], [""]):  # an empty line
                continue
            if max(needed) >= len(values):
                raise UserError(f"{where}: has {len(values)} fields, {origin} {len(names)}.")
            yield dict(zip(names, values, strict=False)), where
