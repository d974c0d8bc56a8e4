"""Questions whose answer is a part of a text: SQuAD's JSON (1.1 and 2.0), and records with the same content.

Texts are taken character by character as they are, since an answer is told by its first character. An answer
that is not where it says is kept for scoring and never learnt; `notes` counts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import SourceConfig
from lm.data.reading.fields import Field, Record, as_text
from lm.data.reading.files import Files, open_text, read_errors
from lm.data.reading.labelled_base import LabelledSource, Question
from lm.data.reading.records import open_records
from lm.errors import UserError


class QuestionSource(LabelledSource):
    """Counts what is wrong with the answers."""

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        for name in ("field", "label_field"):
            if getattr(config, name) != getattr(SourceConfig(), name):
                raise UserError(
                    f"{name}: questions have fields of fixed names (question, context, answers.text, "
                    "answers.answer_start, id, title); leave it as it is."
                )
        self._misplaced, self._first = 0, ""

    def _start(self) -> None:
        self._misplaced, self._first = 0, ""

    def _checked(self, question: Question) -> Question:
        wrong = len(question.answers) - len(question.placed)
        if wrong and not self._misplaced:
            self._first = question.id
        self._misplaced += wrong
        return question

    def notes(self) -> list[str]:
        if not self._misplaced:
            return []
        return [
            f"{self._misplaced:,} answers are not in the context where answer_start says (the first: question "
            f"{self._first!r}): they are scored against, but not learnt"
        ]


class Squad(QuestionSource):
    """`data` > `paragraphs` > `qas` > `answers`."""

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self._files = Files(config.path)

    def iterate(self) -> Iterator[Question]:
        self._start()
        yield from self._files.read_each(self._read)

    def _read(self, path: Path) -> Iterator[Question]:
        with read_errors(path), open_text(path, self.config.encoding) as file:
            text = file.read()
        try:
            content = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error}).") from error
        for number, article in enumerate(_list(content, "data", str(path)), start=1):
            where = f"{path}, article {number}"
            title = _text(article, "title", where, default="")
            for paragraph in _list(article, "paragraphs", where):
                context = _text(paragraph, "context", where)
                for entry in _list(paragraph, "qas", where):
                    identity = _text(entry, "id", where)
                    here = f"{path}, question {identity!r}"
                    answers: tuple[tuple[str, int], ...] = ()
                    if not entry.get("is_impossible", False):  # what it has all the same is only plausible
                        answers = _answers(entry.get("answers"), here)
                    yield self._checked(Question(identity, title, _text(entry, "question", here), context, answers))

    def identity(self) -> list[str]:
        return [self.config.encoding, *self._files.hashes()]


class QuestionRecords(QuestionSource):
    """Records with the fields id, question, context, answers (with lists text and answer_start), and maybe title."""

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        names = ("id", "question", "context", "answers")
        self._fields = {name: Field(name) for name in names} | {"title": _Optional("title")}
        self._records = open_records(config, list(self._fields.values()))

    def iterate(self) -> Iterator[Question]:
        self._start()
        for record, where in self._records.iterate():
            texts = {
                name: as_text(self._fields[name].value(record, where), name, where)
                for name in ("id", "title", "question", "context")
            }
            answers = _answers(self._fields["answers"].value(record, where), where)
            yield self._checked(Question(**texts, answers=answers))

    def identity(self) -> list[str]:
        return self._records.identity()


class _Optional(Field):
    """A field that some tables do not have."""

    def columns(self, present: Sequence[str], where: str) -> list[str]:
        return [self.spec] if self.spec in present else []

    def value(self, record: Record, where: str) -> Any:
        return record.get(self.spec) or ""


def _answers(value: Any, where: str) -> tuple[tuple[str, int], ...]:
    """Of a list of {text, answer_start}, or of a record with a list of each."""
    if isinstance(value, Mapping):
        texts, starts = (_list(value, name, where) for name in ("text", "answer_start"))
    else:
        entries = _list({"answers": value}, "answers", where)
        if any(not isinstance(entry, Mapping) for entry in entries):
            raise UserError(f"{where}: each answer should be a record with text and answer_start.")
        texts, starts = ([entry.get(name) for entry in entries] for name in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise UserError(f"{where}: has {len(texts)} texts of answers and {len(starts)} places of them.")
    for start in starts:
        if isinstance(start, bool) or not isinstance(start, (int, np.integer)) or start < 0:
            raise UserError(f"{where}: answer_start {start!r:.40} is not the number of a character.")
    return tuple((as_text(text, "answers.text", where), int(start)) for text, start in zip(texts, starts, strict=True))


def _list(record: Any, name: str, where: str) -> list[Any]:
    value = record.get(name) if isinstance(record, Mapping) else None
    if isinstance(value, np.ndarray):
        value = list(value)
    if not isinstance(value, list):
        raise UserError(f"{where}: not as SQuAD's JSON: there is no list {name!r}.")
    return value


def _text(record: Any, name: str, where: str, default: str | None = None) -> str:
    value = record.get(name, default) if isinstance(record, Mapping) else None
    if value is None:
        raise UserError(f"{where}: not as SQuAD's JSON: there is no {name!r}.")
    return as_text(value, name, where)
