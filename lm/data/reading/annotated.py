"""Formats for annotated text: CoNLL (words and their tags) and SQuAD (questions and their answers)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lm.config import SourceConfig
from lm.data.reading.fields import Field, Record, as_list, as_text
from lm.data.reading.format import FileFormat, Refuse, open_text, read_errors, read_lines
from lm.errors import UserError

NEW_DOCUMENT = "-DOCSTART-"


class Conll(FileFormat):
    """Columns are separated by tabs or, in lines without tabs, by spaces. All lines of a file have equally many.

    Column 1 is the word. The tag is in column `label_field` (counted from 1), by default the last.
    """

    doc = "CoNLL: a word and its tag per line, with an empty line after each sentence"
    endings = (".conll", ".conllu", ".bio", ".iob", ".iob2")
    holds = ("tags", "words")
    settings = ("label_field",)
    names_fields = True

    @classmethod
    def check(cls, config: SourceConfig, wants: str, refuse: Refuse) -> None:
        super().check(config, wants, refuse)
        column = config.label_field
        if column and (not column.isdecimal() or int(column) < 2):
            refuse(
                "label_field",
                f"{column!r} is not a tag column; give a column number of 2 or more (column 1 is the word), or "
                "leave it empty for the last column.",
            )

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        """Yields each sentence as a list of words and a list of tags, with the position of its first word."""
        tag = int(self.config.label_field or 0) - 1
        least = 2 if "tags" in [each.spec for each in fields] else 1  # new inputs may have no tags
        words: list[str] = []
        tags: list[str] = []
        begin, columns = "", 0
        for number, line in enumerate(chain(read_lines(path, self.config.encoding), [""]), start=1):
            values, where = _columns(line), f"{path}, line {number}"
            if not values or values[0] == NEW_DOCUMENT:
                if words:
                    yield {"words": words, "tags": tags}, begin
                words, tags = [], []
                continue
            if len(values) < least or not values[0]:
                raise UserError(
                    f"{where}: {line!r:.60} is not a word and its tag (columns are separated by tabs or spaces)."
                )
            if columns and len(values) != columns:
                raise UserError(
                    f"{where}: has {len(values)} columns, but the lines before it have {columns}: {line!r:.60}."
                )
            columns = len(values)
            if tag >= columns:
                raise UserError(f"{where}: label_field is {tag + 1}, but there are only {columns} columns.")
            begin = begin if words else where
            words.append(values[0])
            tags.append(values[tag])


def _columns(line: str) -> list[str]:
    """Returns the columns of a line without trailing empty ones. Other white space stays part of the words."""
    if not line.strip():
        return []
    if "\t" in line:
        return [value.strip(" ") for value in line.rstrip("\t ").split("\t")]
    return [value for value in line.split(" ") if value]


class Squad(FileFormat):
    """`data` > `paragraphs` > `qas` > `answers`. Texts are left unchanged, since answers refer to character offsets."""

    doc = "SQuAD's JSON"
    endings = (".json",)
    holds = ("questions",)
    settings = ()
    names_fields = True
    notes_encoding = False

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        with read_errors(path), open_text(path, self.config.encoding) as file:
            text = file.read()
        try:
            content = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error}).") from error
        for number, article in enumerate(as_list(_get(content, "data"), "data", str(path)), start=1):
            where = f"{path}, article {number}"
            title = _text(article, "title", where, default="")
            for paragraph in as_list(_get(article, "paragraphs"), "paragraphs", where):
                context = _text(paragraph, "context", where)
                for entry in as_list(_get(paragraph, "qas"), "qas", where):
                    identity = _text(entry, "id", where)
                    here = f"{path}, question {identity!r}"
                    # Answers to an impossible question are merely plausible, not correct.
                    answers = [] if entry.get("is_impossible", False) else entry.get("answers")
                    texts = {"id": identity, "title": title, "question": _text(entry, "question", here)}
                    yield {**texts, "context": context, "answers": answers}, here


def _get(record: Any, name: str, default: Any = None) -> Any:
    return record.get(name, default) if isinstance(record, Mapping) else None


def _text(record: Any, name: str, where: str, default: str | None = None) -> str:
    value = _get(record, name, default)
    if value is None:
        raise UserError(f"{where}: not in SQuAD's JSON format: there is no {name!r}.")
    return as_text(value, name, where)
