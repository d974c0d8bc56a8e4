"""Comma-separated values (RFC 4180), by Python's csv module."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path

from lm.data.reading.files import open_text, read_errors
from lm.data.reading.tsv import TabSeparated
from lm.errors import UserError

LONGEST_VALUE = 2**31 - 1  # characters; the csv module's own bound is 131,072


class CommaSeparated(TabSeparated):
    """A quoted value may hold commas, line breaks and, doubled, quotes.

    The separator is a semicolon if the first line names the columns and has more semicolons than commas.
    """

    doc = "values between commas (or semicolons), maybe quoted; the first line names the columns, unless `columns` does"

    def rows(self, path: Path) -> Iterator[tuple[list[str], str]]:
        csv.field_size_limit(LONGEST_VALUE)
        with read_errors(path), open_text(path, self.config.encoding) as file:
            first = file.readline()
            semicolons = not self.config.columns and first.count(";") > first.count(",")
            rows = csv.reader(itertools.chain([first], file), delimiter=";" if semicolons else ",", strict=True)
            while True:
                where = f"{path}, line {rows.line_num + 1}"  # on which the row begins
                try:
                    values = next(rows, None)
                except csv.Error as error:
                    raise UserError(f"{where}: not a row of CSV ({error}).") from error
                if values is None:
                    return
                yield values, where
