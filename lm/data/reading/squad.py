"""SQuAD's JSON (1.1 and 2.0): `data` > `paragraphs` > `qas` > `answers`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.data.reading.fields import Field, Record, as_list, as_text
from lm.data.reading.files import open_text, read_errors
from lm.data.reading.format import FileFormat
from lm.errors import UserError


class Squad(FileFormat):
    """Texts are taken character by character, since an answer is given by its first character."""

    doc = "SQuAD's JSON"
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
                    # Answers that an impossible question has all the same are only plausible.
                    answers = [] if entry.get("is_impossible", False) else entry.get("answers")
                    texts = {"id": identity, "title": title, "question": _text(entry, "question", here)}
                    yield {**texts, "context": context, "answers": answers}, here


def _get(record: Any, name: str, default: Any = None) -> Any:
    return record.get(name, default) if isinstance(record, Mapping) else None


def _text(record: Any, name: str, where: str, default: str | None = None) -> str:
    value = _get(record, name, default)
    if value is None:
        raise UserError(f"{where}: not as SQuAD's JSON: there is no {name!r}.")
    return as_text(value, name, where)
