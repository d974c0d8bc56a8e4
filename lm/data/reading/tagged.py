"""Words with a tag for each: files of one word a line, and records with a list of words and a list of tags.

Tags are labels and nothing more here: neither BIO nor BMES is checked, and an I- that follows no B- is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import SourceConfig
from lm.data.reading.fields import Field, as_text
from lm.data.reading.files import Files, read_lines
from lm.data.reading.labelled_base import LabelledSource, Tagged, encoding_notes, label_text
from lm.data.reading.records import FileRecords, open_records
from lm.errors import UserError

NEW_DOCUMENT = "-DOCSTART-"


class Conll(LabelledSource):
    """A line is a word and further columns, one of them the tag; an empty one ends a sentence.

    Columns are separated by tabs, in a line without tab by spaces. All lines of a file have as many. The tag is
    in the last one, or in column `label_field`, counted from 1, which is the word.
    """

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self._files = Files(config.path)
        self._column = -1
        if config.label_field:
            if not config.label_field.isdecimal() or int(config.label_field) < 2:
                raise UserError(
                    f"label_field: {config.label_field!r} is not the number of a column of tags: 2 or more, since "
                    "column 1 is the word; or leave it empty for the last one."
                )
            self._column = int(config.label_field) - 1

    def iterate(self) -> Iterator[Tagged]:
        yield from self._files.read_each(self._read)

    def _read(self, path: Path) -> Iterator[Tagged]:
        words: list[str] = []
        tags: list[str] = []
        columns = 0
        for number, line in enumerate(read_lines(path, self.config.encoding), start=1):
            values = _columns(line)
            if not values or values[0] == NEW_DOCUMENT:
                if words:
                    yield Tagged(tuple(words), tuple(tags))
                    words, tags = [], []
                continue
            where = f"{path}, line {number}"
            if len(values) < 2 or not values[0]:
                raise UserError(f"{where}: {line!r:.60} is not a word and its tag (columns end at a tab or a space).")
            if columns and len(values) != columns:
                raise UserError(f"{where}: has {len(values)} columns, the lines before {columns}: {line!r:.60}.")
            columns = len(values)
            if self._column >= columns:
                raise UserError(f"{where}: there is no column {self._column + 1} (label_field), but {columns}.")
            words.append(values[0])
            tags.append(label_text(values[self._column], self.config, where))
        if words:
            yield Tagged(tuple(words), tuple(tags))

    def identity(self) -> list[str]:
        return [self.config.encoding, *self._files.hashes()]

    def notes(self) -> list[str]:
        return encoding_notes(self._files.found, self.config.encoding)


def _columns(line: str) -> list[str]:
    """Without those at the end that are empty. A word may hold a space, and always other white space."""
    if not line.strip():
        return []
    if "\t" in line:
        return [value.strip(" ") for value in line.rstrip("\t ").split("\t")]
    return [value for value in line.split(" ") if value]


class TaggedRecords(LabelledSource):
    """`field` holds a list of words, `label_field` a list of as many tags. Records without words are left out."""

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        if not config.label_field:
            raise UserError("label_field: name the field of the list of tags.")
        self._words, self._tags = Field(config.field), Field(config.label_field, "label_field")
        self._records = open_records(config, [self._words, self._tags])
        self._empty = 0

    def iterate(self) -> Iterator[Tagged]:
        self._empty = 0
        for record, where in self._records.iterate():
            words = _list(self._words.value(record, where), self._words.spec, where)
            tags = _list(self._tags.value(record, where), self._tags.spec, where)
            if len(words) != len(tags):
                raise UserError(f"{where}: {len(words)} words in {self._words.spec!r} and {len(tags)} tags.")
            if not words:
                self._empty += 1
                continue
            yield Tagged(
                tuple(as_text(word, self._words.spec, where) for word in words),
                tuple(label_text(tag, self.config, where) for tag in tags),
            )

    def identity(self) -> list[str]:
        return self._records.identity()

    def notes(self) -> list[str]:
        found = [f"{self._empty:,} records without words are left out"] if self._empty else []
        if self.config.kind == "jsonl" and isinstance(self._records, FileRecords):
            found += encoding_notes(self._records.files.found, self.config.encoding)
        return found


def _list(value: Any, field: str, where: str) -> list[Any]:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return list(value)
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where}: field {field!r} should hold a list and holds {type(value).__name__} {value!r:.40}.")
    return list(value)
