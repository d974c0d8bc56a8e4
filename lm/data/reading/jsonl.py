"""Lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lm.data.reading.fields import Field, Record
from lm.data.reading.files import read_lines
from lm.data.reading.format import FileFormat
from lm.errors import UserError


class JsonLines(FileFormat):
    doc = "a JSON object per line"

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
