"""Labelled data: readers of texts with a label, words with tags, questions with answers; and parts of them.

A label is a field of records, or it is in the path of a text file. For words with tags see
`lm/data/reading/tagged.py`, for questions `lm/data/reading/questions.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

from lm.config import SourceConfig
from lm.data import order
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

__all__ = ["Labelled", "LabelledSource", "Question", "Raw", "Tagged", "narrow", "open_labelled", "take_part"]

RECORDS = ("jsonl", "tsv", "parquet", "tfds")
READABLE = {
    "classification": ("text", *RECORDS),
    "regression": ("text", *RECORDS),
    "tagging": ("conll", "jsonl", "parquet", "tfds"),
    "span_qa": ("squad", "jsonl", "parquet", "tfds"),
}
HASHES = 1 << 64
FINEST = 10**6  # parts are given to so many decimal places or as fractions of so small numbers

R = TypeVar("R", bound=Raw)


def open_labelled(config: SourceConfig, objective: str) -> LabelledSource:
    """Raises UserError if there is nothing to read, or the settings do not fit the objective."""
    if config.kind not in READABLE[objective]:
        kinds = ", ".join(READABLE[objective])
        raise UserError(f"kind={config.kind!r} is not read for objective.name={objective}; it takes {kinds}.")
    if config.kind != "text" and config.label_pattern:
        raise UserError(f"label_pattern: is for kind=text; kind={config.kind} has its labels in `label_field`.")
    if objective not in ("classification", "regression") and config.pair_field:
        raise UserError(f"pair_field: objective.name={objective} has no pairs; leave it empty.")
    if objective == "span_qa":
        return Squad(config) if config.kind == "squad" else QuestionRecords(config)
    if objective == "tagging":
        return Conll(config) if config.kind == "conll" else TaggedRecords(config)
    return LabelledFiles(config, objective) if config.kind == "text" else LabelledRecords(config, objective)


class LabelledRecords(LabelledSource):
    """Fields of records: a text, with `pair_field` a second one, and a label."""

    def __init__(self, config: SourceConfig, objective: str):
        super().__init__(config)
        self._numbers = objective == "regression"
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

    def __init__(self, config: SourceConfig, objective: str):
        super().__init__(config)
        self._numbers = objective == "regression"
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


def take_part(examples: Iterable[R], part: Sequence[float | Fraction], fold: int, folds: int) -> Iterator[R]:
    """The examples whose hash lies in this part of 0 to 1, after all hashes were turned by fold / folds.

    h is the hash of an example's `key`, h' = (h + fold / folds) mod 1, and part[0] <= h' < part[1] decides. So
    equal texts are on the same side, parts that do not overlap share none, and over all folds the part from 0 to
    1 / folds holds each example once. Exact: whole numbers and fractions alone are compared.
    """
    low, high = (_exact(each) * folds * HASHES for each in part)
    for example in examples:
        turned = (order.number(example.key, below=HASHES) * folds + fold * HASHES) % (folds * HASHES)
        if low <= turned < high:
            yield example


def narrow(part: Sequence[float | Fraction], begin: Fraction | float, end: Fraction | float) -> tuple[Fraction, ...]:
    """The part from `begin` to `end` (of 0 to 1) of a part."""
    low, high = map(_exact, part)
    return tuple(low + (high - low) * _exact(each) for each in (begin, end))


def _exact(number: float | Fraction) -> Fraction:
    """0.1 is meant to be a tenth."""
    return number if isinstance(number, Fraction) else Fraction(number).limit_denominator(FINEST)
