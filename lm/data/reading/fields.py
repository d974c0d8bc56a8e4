"""Record fields: looking up the value that a setting such as `field` names, as a text, a list or a label."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.errors import UserError

Record = Mapping[str, Any]  # a JSON object, a table row or a TFDS example


class Field:
    """A value of a record (`text`), a nested value (`answers.text`), or a template of several values.

    A template is a text with field names in braces, such as `question: {question} context: {context}`; braces are
    escaped by doubling. A dotted name is looked up part by part, unless the record has a field with the whole name. If
    a record lacks an `optional` field, its value is an empty string.

    Raises UserError, naming `setting`, for a template that cannot be parsed.
    """

    def __init__(self, spec: str, setting: str = "field", *, optional: bool = False):
        self.spec, self.optional, self.names = spec, optional, [spec]
        self._template: list[tuple[str, str | None]] = []  # literal texts, each with the field name that follows it
        if "{" not in spec and "}" not in spec:
            return
        try:
            parsed = list(string.Formatter().parse(spec))
        except ValueError as error:
            raise UserError(f"{setting} {spec!r}: not a template ({error}).") from error
        if any(name == "" or form or conversion for _, name, form, conversion in parsed):
            raise UserError(f"{setting} {spec!r}: braces must contain a field name and nothing else.")
        self._template = [(text, name) for text, name, _, _ in parsed]
        self.names = [name for _, name in self._template if name]
        if not self.names:
            raise UserError(f"{setting} {spec!r}: the template names no field.")

    def value(self, record: Record, where: str) -> Any:
        """Returns the value in the record, unchanged, or the filled-in template."""
        if self.optional:
            return record.get(self.spec) or ""
        return self.text(record, where) if self._template else _look_up(record, self.spec, where)

    def texts(self, record: Record, where: str) -> tuple[str, ...]:
        """Returns the texts of a list value, or a single text. An empty list gives one empty text."""
        found = {name: _as_texts(_look_up(record, name, where), name, where) for name in self.names}
        if not self._template:
            return found[self.spec]
        return ("".join(text + " ".join(found[name] if name else ()) for text, name in self._template),)

    def text(self, record: Record, where: str) -> str:
        """Returns the value as one text; the texts of a list are joined by spaces."""
        return " ".join(self.texts(record, where))


def columns_of(fields: Iterable[Field], present: Sequence[str], where: str) -> list[str]:
    """Returns the table columns that the fields need. Raises UserError if one is not in `present`."""
    found = []
    for field in fields:
        for name in field.names:
            column = name if name in present else name.partition(".")[0]
            if column in present:
                found.append(column)
            elif not field.optional:
                raise UserError(_missing(where, name, present))
    return list(dict.fromkeys(found))


def _look_up(record: Record, name: str, where: str) -> Any:
    if name in record:
        return record[name]
    value: Any = record
    above = ""
    for part in name.split("."):
        if not isinstance(value, Mapping):
            raise UserError(
                f"{where}: field {above!r} holds {type(value).__name__}, not a record with a field {part!r}."
            )
        if part not in value:
            raise UserError(_missing(where, name, list(value), above))
        value, above = value[part], f"{above}.{part}" if above else part
    return value


def _missing(where: str, name: str, present: Iterable[str], above: str = "") -> str:
    inside = f" in {above!r}" if above else ""
    return f"{where}: there is no field {name!r}; available{inside}: {', '.join(map(repr, present)) or 'none'}."


def _as_texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    """Returns the texts of a value, with CR LF replaced by LF."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    values = (value or [""]) if isinstance(value, (list, tuple)) else [value]
    return tuple(as_text(each, name, where).replace("\r\n", "\n") for each in values)


def as_text(value: Any, name: str, where: str) -> str:
    """Returns a value as text. Lone surrogates, which JSON can express but UTF-8 cannot, become U+FFFD."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: field {name!r} is not valid UTF-8 at byte {error.start}.") from error
    if not isinstance(value, str):
        raise _unexpected(value, "text", name, where)
    if not value.isascii():
        value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def as_list(value: Any, name: str, where: str) -> list[Any]:
    if value is None:
        raise UserError(f"{where}: there is no list {name!r}.")
    if not isinstance(value, (list, tuple)) and not (isinstance(value, np.ndarray) and value.ndim == 1):
        raise _unexpected(value, "a list", name, where)
    return list(value)


def as_label(value: Any, names: Sequence[str], name: str, where: str) -> str:
    """Returns a label as text. With names, an integer n (or a boolean) gives names[n]; booleans are in lower case."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (bytes, str)):
        text = as_text(value, name, where).strip()
    elif isinstance(value, (bool, np.bool_)):
        text = str(int(value)) if names else str(bool(value)).lower()
    elif isinstance(value, (int, float, np.integer, np.floating)):
        text = str(int(value) if names and float(value).is_integer() else value)
    elif value is None:
        text = ""
    else:
        raise _unexpected(value, "a label", name, where)
    if not text:
        raise UserError(f"{where}: field {name!r} holds no label.")
    if names and re.fullmatch(r"[+-]?[0-9]+", text):
        number = int(text)
        if not 0 <= number < len(names):
            raise UserError(f"{where}: label {number} has no name; label_names covers only 0 to {len(names) - 1}.")
        return names[number]
    if names and text not in names:
        raise UserError(f"{where}: label {text!r} is neither a number nor one of label_names.")
    return text


def _unexpected(value: Any, wanted: str, name: str, where: str) -> UserError:
    return UserError(f"{where}: field {name!r} should hold {wanted} but holds {type(value).__name__} {value!r:.40}.")
