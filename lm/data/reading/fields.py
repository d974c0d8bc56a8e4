"""What a setting such as `field` takes from a record: one value, one within another, or a template of several."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.errors import UserError

Record = Mapping[str, Any]  # a line of JSON, a row of a table, an example of TFDS


class Field:
    """`text`, `answers.text`, or `question: {question} context: {context}` (doubled braces stand for themselves).

    A dotted name is looked up part by part, unless the record has a field of the whole name. `setting` is
    what messages call it. Raises UserError for a template that cannot be read.
    """

    def __init__(self, spec: str, setting: str = "field"):
        self.spec = spec
        self._parts: list[tuple[str, str | None]] | None = None  # of a template: text, and the name after it
        self.names = [spec]
        if "{" not in spec and "}" not in spec:
            return
        try:
            parsed = list(string.Formatter().parse(spec))
        except ValueError as error:
            raise UserError(f"{setting} {spec!r}: not a template ({error}).") from error
        if any(name == "" or form or conversion for _, name, form, conversion in parsed):
            raise UserError(f"{setting} {spec!r}: braces hold the name of a field and nothing else.")
        self._parts = [(text, name) for text, name, _, _ in parsed]
        self.names = [name for _, name in self._parts if name]
        if not self.names:
            raise UserError(f"{setting} {spec!r}: no field is named in it.")

    def columns(self, present: Sequence[str], where: str) -> list[str]:
        """Those of a table's columns that are needed. Raises UserError if one is not `present`."""
        found = []
        for name in self.names:
            column = name if name in present else name.partition(".")[0]
            if column not in present:
                raise UserError(_missing(where, name, present))
            found.append(column)
        return list(dict.fromkeys(found))

    def texts(self, record: Record, where: str) -> tuple[str, ...]:
        """Each text of a list; the only one of all else. An empty list is one empty text."""
        if self._parts is None:
            return _as_texts(_look_up(record, self.spec, where), self.spec, where)
        filled = []
        for text, name in self._parts:
            filled.append(text)
            if name:
                filled.append(" ".join(_as_texts(_look_up(record, name, where), name, where)))
        return ("".join(filled),)

    def text(self, record: Record, where: str) -> str:
        """The texts of a list with spaces between them."""
        return " ".join(self.texts(record, where))

    def value(self, record: Record, where: str) -> Any:
        """What the record holds there, as it is; of a template its text."""
        return _look_up(record, self.spec, where) if self._parts is None else self.text(record, where)


def _look_up(record: Record, name: str, where: str) -> Any:
    if name in record:
        return record[name]
    value: Any = record
    above = ""
    for part in name.split("."):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: field {above!r} holds {type(value).__name__}, in which there is no {part!r}.")
        if part not in value:
            raise UserError(_missing(where, name, list(value), above))
        value, above = value[part], f"{above}.{part}" if above else part
    return value


def _missing(where: str, name: str, present: Iterable[str], above: str = "") -> str:
    inside = f"in {above!r} " if above else ""
    return f"{where}: there is no field {name!r}; {inside}there are {', '.join(map(repr, present)) or 'none'}."


def _as_texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(_as_text(each, name, where) for each in value) or ("",)
    return (_as_text(value, name, where),)


def _as_text(value: Any, name: str, where: str) -> str:
    """Text with LF line ends."""
    return as_text(value, name, where).replace("\r\n", "\n")


def as_text(value: Any, name: str, where: str) -> str:
    """Text, character by character as it is. Lone surrogates, which JSON can spell but UTF-8 cannot, become U+FFFD."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: field {name!r} is not valid UTF-8 at byte {error.start}.") from error
    if not isinstance(value, str):
        raise UserError(f"{where}: field {name!r} should hold text and holds {type(value).__name__} {value!r:.40}.")
    if not value.isascii():
        value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value
