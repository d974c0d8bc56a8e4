"""Labelled data: readers of texts with a label, words with tags, questions with answers; and parts of them.

A label is a field of records, or it is in the path of a text file. For words with tags see
`lm/data/reading/tagged.py`, for questions `lm/data/reading/questions.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lm.config import SourceConfig
from lm.data.reading.documents import TextSource
from lm.data.reading.fields import Field
from lm.data.reading.labelled_base import (
    Labelled,
    LabelledSource,
    Question,
    Raw,
    Tagged,
    check_number,
    encoding_notes,
    label_text,
)
from lm.data.reading.questions import QuestionRecords, Squad
from lm.data.reading.records import FileRecords, open_records
from lm.data.reading.tagged import Conll, TaggedRecords
from lm.errors import UserError

__all__ = ["Labelled", "LabelledSource", "Question", "Raw", "Tagged", "open_labelled"]

RECORDS = ("jsonl", "tsv", "parquet", "tfds")
READABLE = {
    "labelled": ("text", *RECORDS),
    "numbers": ("text", *RECORDS),
    "tagged": ("conll", "jsonl", "parquet", "tfds"),
    "questions": ("squad", "jsonl", "parquet", "tfds"),
}


def open_labelled(config: SourceConfig, wants: str) -> LabelledSource:
    """Returns the reader of a source.

    Args:
        wants: a key of READABLE: texts with labels or with numbers, words with tags, or questions.

    Raises UserError if there is nothing to read, or the settings do not fit.
    """
    if config.kind not in READABLE[wants]:
        kinds = ", ".join(READABLE[wants])
        raise UserError(f"kind={config.kind!r} is not read for this task; it takes {kinds}.")
    if config.kind != "text" and config.label_pattern:
        raise UserError(f"label_pattern: is for kind=text; kind={config.kind} has its labels in `label_field`.")
    if wants in ("tagged", "questions") and config.pair_field:
        raise UserError("pair_field: this task has no pairs of texts; leave it empty.")
    if wants == "questions":
        return Squad(config) if config.kind == "squad" else QuestionRecords(config)
    if wants == "tagged":
        return Conll(config) if config.kind == "conll" else TaggedRecords(config)
    numbers = wants == "numbers"
    return LabelledFiles(config, numbers) if config.kind == "text" else LabelledRecords(config, numbers)


class LabelledRecords(LabelledSource):
    """Fields of records: a text, with `pair_field` a second one, and a label."""

    def __init__(self, config: SourceConfig, numbers: bool):
        super().__init__(config)
        self._numbers = numbers
        self._text, self._label = Field(config.field), Field(config.label_field, "label_field")
        self._pair = Field(config.pair_field, "pair_field") if config.pair_field else None
        fields = [self._text, self._label, *([self._pair] if self._pair else [])]
        self._records = open_records(config, fields)

    def iterate(self) -> Iterator[Labelled]:
        for record, where in self._records.iterate():
            label = label_text(self._label.value(record, where), self.config, where)
            if self._numbers:
                check_number(label, where)
            pair = self._pair.text(record, where) if self._pair else None
            yield Labelled(self._text.text(record, where), pair, label)

    def identity(self) -> list[str]:
        return self._records.identity()

    def notes(self) -> list[str]:
        binary = self.config.kind in ("parquet", "tfds")
        if binary or not isinstance(self._records, FileRecords):
            return []
        return encoding_notes(self._records.files.found, self.config.encoding)


class LabelledFiles(LabelledSource):
    """Text files whose paths tell the label; `document` says what of a file is one text. Empty texts are left out."""

    def __init__(self, config: SourceConfig, numbers: bool):
        super().__init__(config)
        self._numbers = numbers
        if config.pair_field or config.label_field:
            where = "pair_field" if config.pair_field else "label_field"
            raise UserError(f"{where}: text files have no fields; leave it empty, or take another kind.")
        try:
            self._pattern = re.compile(config.label_pattern)
        except re.error as error:
            raise UserError(f"label_pattern {config.label_pattern!r}: not a regular expression ({error}).") from error
        if "label" not in self._pattern.groupindex:
            raise UserError(
                f"label_pattern {config.label_pattern!r}: it has no group named label; write e.g. "
                r"'/(?P<label>neg|pos)/' or '\.(?P<label>neg|pos)$'."
            )
        self._source = TextSource(config)

    def iterate(self) -> Iterator[Labelled]:
        yield from self._source.files.read_each(self._read)

    def _read(self, path: Path) -> Iterator[Labelled]:
        label = self._label_of(path)
        return (Labelled(text, None, label) for text in self._source.read(path) if text.strip())

    def _label_of(self, path: Path) -> str:
        match = self._pattern.search(path.as_posix())
        if match is None or not match["label"]:
            raise UserError(f"{path}: label_pattern {self._pattern.pattern!r} finds no label in this path.")
        label = label_text(match["label"], self.config, str(path))
        if self._numbers:
            check_number(label, str(path))
        return label

    def identity(self) -> list[str]:
        return [self._source.fingerprint(), *map(self._label_of, self._source.files.found)]

    def notes(self) -> list[str]:
        return encoding_notes(self._source.files.found, self.config.encoding)
