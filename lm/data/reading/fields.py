"""Looks up the record fields specified by settings such as `field`, and converts their values.

The result of a conversion does not depend on whether a value is a string from a table, a typed value from JSON or
Parquet, or a NumPy value from TFDS. A missing value or a value of the wrong type raises UserError.
"""

from __future__ import annotations

import functools
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from lm.errors import UserError
from lm.files import well_formed

Record = Mapping[str, Any]  # a JSON object, a table row or a TFDS example

BOOLEANS, INTEGERS, REALS = (bool, np.bool_), (int, np.integer), (float, np.floating, Decimal)

# Strings that stand for a missing label. They include those that pandas.read_csv recognises, in upper or lower case,
# and \N, which appears in SQL dumps. NA and None are recognised only as R and Python spell them.
MISSING = frozenset(("", "#n/a", "#na", "-nan", "<na>", "n/a", "nan", "nat", "null"))
MISSING_AS_WRITTEN = frozenset(("NA", "None", r"\N"))
LARGEST = 1e15  # limits regression targets, so that the squares in the gradient norm stay finite in float32
EXACT = 2**53  # float64 represents all integers up to this size exactly
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_PLAIN = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]*")  # labels compared by value; not 01.0 or 1e0, which may be codes
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Field:
    """Selects a value of a record by a field name (`text`), a dotted name (`answers.text`) or a template.

    A template is text with field names in braces, such as `title: {title} text: {text}`; a doubled brace stands for a
    literal brace. A dotted name is looked up part by part, unless the record has a field with the full name. If the
    record lacks an `optional` field, the value is an empty string.

    Raises a UserError that names the `setting` if the template cannot be parsed.
    """

    def __init__(self, spec: str, setting: str = "field", *, optional: bool = False):
        self.spec, self.optional, self.names = spec, optional, [spec]
        self.advice = f" Choose one with {setting}." if setting.startswith("--") else ""
        self._template: list[tuple[str, str | None]] = []  # literal texts, each with the field name that follows it
        if "{" not in spec and "}" not in spec:
            return
        try:
            parsed = list(string.Formatter().parse(spec))
        except ValueError as error:
            raise UserError(f"{setting} {spec!r} is not a valid template ({error}).") from error
        if any(name == "" or form or conversion for _, name, form, conversion in parsed):
            raise UserError(f"{setting} {spec!r}: braces must contain a field name and nothing else.")
        self._template = [(text, name) for text, name, _, _ in parsed]
        self.names = [name for _, name in self._template if name]
        if not self.names:
            raise UserError(f"{setting} {spec!r}: the template contains no field name.")

    def value(self, record: Record, where: str) -> Any:
        """Returns the unchanged value from the record, or the filled-in template."""
        if self.optional:
            return "" if is_missing(value := record.get(self.spec)) else value
        return self.text(record, where) if self._template else _look_up(record, self.spec, where, self.advice)

    def texts(self, record: Record, where: str) -> tuple[str, ...]:
        """Returns the value (a text or a list of texts) as a tuple of texts. An empty list becomes one empty text."""
        found = {name: _as_texts(_look_up(record, name, where, self.advice), name, where) for name in self.names}
        if not self._template:
            return found[self.spec]
        return ("".join(text + " ".join(found[name] if name else ()) for text, name in self._template),)

    def text(self, record: Record, where: str) -> str:
        """Returns the value as a single string; the items of a list are joined with spaces."""
        return " ".join(self.texts(record, where))


class FieldList(Field):
    """A comma-separated list of fields that hold alternative texts, such as several translations of one sentence.

    Empty and missing texts are omitted. If no text remains, the result is one empty text.
    """

    def __init__(self, spec: str, setting: str):
        names = [name.strip() for name in spec.split(",")]
        super().__init__(", ".join(names), setting)
        if not all(names):
            raise UserError(f"{setting} {self.spec!r}: one of the names between commas is empty.")
        self.names, self._fields = names, [Field(name, setting) for name in names]

    def texts(self, record: Record, where: str) -> tuple[str, ...]:
        given = [field for field in self._fields if not is_missing(field.value(record, where))]
        return tuple(text for field in given for text in field.texts(record, where) if text) or ("",)


def columns_of(fields: Iterable[Field], present: Sequence[str], where: str) -> list[str]:
    """Returns the table columns that the fields need. Raises UserError if a column is missing or occurs twice."""
    found = []
    for field in fields:
        for name in field.names:
            column = name if name in present else name.partition(".")[0]
            if (number := list(present).count(column)) > 1:
                raise UserError(f"{where}: {number} columns are called {column!r}; rename all but one.")
            if number:
                found.append(column)
            elif not field.optional:
                raise UserError(_missing(where, name, present) + field.advice)
    return list(dict.fromkeys(found))


def _look_up(record: Record, name: str, where: str, advice: str) -> Any:
    if name in record:
        return record[name]
    value, above = record, ""
    for part in name.split("."):
        if not isinstance(value, Mapping):
            kind = type(value).__name__
            raise UserError(f"{where}: field {above!r} is of type {kind}, not a record with a field {part!r}.")
        if part not in value:
            raise UserError(_missing(where, name, list(value), above) + advice)
        value, above = value[part], f"{above}.{part}" if above else part
    return value


def _missing(where: str, name: str, present: Iterable[str], above: str = "") -> str:
    inside = f" in {above!r}" if above else ""
    return f"{where}: there is no field {name!r}; available fields{inside}: {', '.join(map(repr, present)) or 'none'}."


def _as_texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    """Returns a value as one or more texts, with CR LF replaced by LF."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    values = (value or [""]) if isinstance(value, (list, tuple)) else [value]
    return tuple(as_text(each, name, where).replace("\r\n", "\n") for each in values)


def is_missing(value: Any) -> bool:
    """Returns whether a value is null or NaN."""
    return value is None or (isinstance(value, REALS) and math.isnan(value))


def as_text(value: Any, name: str, where: str) -> str:
    """Returns a value as text. Lone surrogates, which JSON can represent but UTF-8 cannot, become U+FFFD."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: field {name!r} is not valid UTF-8 at byte {error.start}.") from error
    if not isinstance(value, str):
        raise _unexpected(value, "text", name, where)
    return value if value.isascii() else well_formed(value)


def as_name(value: Any, name: str, where: str) -> str:
    """Returns an identifier or a title as text. The value may also be a whole number."""
    whole = _whole(value)
    return as_text(value, name, where) if whole is None else str(whole)


def as_list(value: Any, name: str, where: str) -> list[Any]:
    if value is None:
        raise UserError(f"{where}: the list {name!r} is missing.")
    if not isinstance(value, (list, tuple)) and not (isinstance(value, np.ndarray) and value.ndim == 1):
        raise _unexpected(value, "a list", name, where)
    return list(value)


def as_flag(value: Any, name: str, where: str) -> bool:
    """Converts a value to a boolean. Accepts 0, 1, "true" and "false"; a missing or empty value means False."""
    if is_missing(value) or value == "":
        return False
    flag = {"1": True, "true": True, "0": False, "false": False}.get(str(value).strip().lower())
    if flag is None:
        raise _unexpected(value, "true or false", name, where)
    return flag


def as_offset(value: Any, name: str, where: str) -> int:
    """Returns a character offset as an integer. A negative offset means that the position is unknown."""
    whole = _whole(value)
    if whole is None:
        raise UserError(f"{where}: {name} {value!r:.40} is not a character offset.")
    return whole


def as_number(value: Any, name: str, where: str) -> str:
    """Returns a number as text. Raises UserError if the number is not finite, or if it is too large for regression."""
    value = _scalar(value)
    if isinstance(value, (bytes, str)):
        text = as_text(value, name, where).strip()
    elif value is not None and (isinstance(value, BOOLEANS) or not isinstance(value, INTEGERS + REALS)):
        raise _unexpected(value, "a number", name, where)
    else:
        text = "" if value is None else str(value)
    if not text:
        raise UserError(f"{where}: field {name!r} does not hold a number.")
    if not NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise UserError(f"{where}: {text!r:.40} is not a finite number; regression requires finite numbers.")
    if abs(float(text)) > LARGEST:
        limit = f"regression uses float32, so absolute values must not exceed {LARGEST:g}"
        raise UserError(f"{where}: {text:.40} is out of range: {limit}; rescale the numbers.")
    return text


def label_text(value: Any, name: str, where: str) -> str:
    """Returns a label as text, or "" if it is null or NaN.

    Labels of equal value become the same string: numbers are written without exponents, trailing zeros after the
    decimal point are dropped (even if the value is a string), and booleans are written in lower case. Strings such as
    "01", "+1" or "1e0" are left unchanged because they may be codes.
    """
    value = _scalar(value)
    if is_missing(value):
        return ""
    if isinstance(value, (bytes, str)):
        text = as_text(value, name, where).strip()
        return text.lower() if text in ("True", "TRUE", "False", "FALSE") else _without_zeros(text)
    if isinstance(value, BOOLEANS):
        return str(value).lower()
    if isinstance(value, INTEGERS):
        return str(value)
    if not isinstance(value, REALS):
        raise _unexpected(value, "a label", name, where)
    if not math.isfinite(value):
        raise UserError(f"{where}: field {name!r} holds {value}, which is not a label.")
    return str(int(value)) if value == int(value) else _without_zeros(f"{Decimal(str(value)):f}")


def _without_zeros(text: str) -> str:
    """Returns the string or, if it is a plain decimal number, the shortest plain decimal of equal value."""
    if "." in text and _PLAIN.fullmatch(text):
        text = text.rstrip("0").removesuffix(".")
    return "0" if text == "-0" else text


def label_type(value: Any) -> str:
    """Returns the type of a valid label: "booleans", "integers", "decimals" (also for the string "1.0") or "texts"."""
    value = _scalar(value)
    if isinstance(value, (bytes, str)):
        written = as_text(value, "", "").strip()
        return "texts" if _without_zeros(written) == written else "decimals"
    return "booleans" if isinstance(value, BOOLEANS) else "integers" if isinstance(value, INTEGERS) else "decimals"


def index_of(label: str, names: tuple[str, ...]) -> int | None:
    """Returns the index of the name that a label refers to, or None if there is no such name.

    A label that equals a name refers to that name. Any other integer is an index, unless some names are integers, which
    would make the integer ambiguous. If there are exactly two names, false refers to the first name and true to the
    second.
    """
    indices, have_integers = _index_by_label(names)
    if label in indices:
        return indices[label]
    if len(names) == 2 and label in ("false", "true"):
        return int(label == "true")
    return int(label) if _INTEGER.fullmatch(label) and not have_integers and 0 <= int(label) < len(names) else None


@functools.lru_cache
def _index_by_label(names: tuple[str, ...]) -> tuple[dict[str, int], bool]:
    """Returns a mapping from names (normalised by `label_text`) to indices, and whether any name is an integer.

    Raises UserError if two names are the same label.
    """
    labels = [label_text(name, "label_names", "label_names") for name in names]
    indices: dict[str, int] = {}
    for index, label in enumerate(labels):
        if (first := indices.setdefault(label, index)) != index:
            both = f"{names[first]!r} and {names[index]!r}"
            raise UserError(f"label_names: {both} are the same label; remove one of them.")
    return indices, any(map(_INTEGER.fullmatch, labels))


def as_label(value: Any, names: Sequence[str], name: str, where: str) -> str:
    """Returns the name that a label refers to (see `index_of`). If `names` is empty, returns the label as text."""
    label, names = label_text(value, name, where), tuple(names)
    index = index_of(label, names)
    if index is not None:
        return names[index]
    if label.lower() in MISSING or label in MISSING_AS_WRITTEN:
        spelling = f", only {label!r}; if this text is a label, list all labels in label_names" if label else ""
        raise UserError(f"{where}: field {name!r} holds no label{spelling or '; add one or remove the record'}.")
    if not names:
        return label
    if not _INTEGER.fullmatch(label):
        raise UserError(f"{where}: label {label!r:.60} is neither an integer nor one of label_names.")
    if _index_by_label(names)[1]:
        raise UserError(
            f"{where}: label {label} is not one of label_names. Because some of these names are integers, "
            "integers are read as names, not as indices."
        )
    covered = f"label_names covers only the labels 0 to {len(names) - 1}"
    raise UserError(f"{where}: label {int(label)} has no name; {covered}.")


def _scalar(value: Any) -> Any:
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _whole(value: Any) -> int | None:
    """Returns a whole number as an integer, or None for any other value."""
    value = _scalar(value)
    if isinstance(value, INTEGERS) and not isinstance(value, bool):
        return int(value)
    exact = isinstance(value, REALS) and math.isfinite(value) and abs(float(value)) < EXACT
    return int(value) if exact and value == int(value) else None


def _unexpected(value: Any, wanted: str, name: str, where: str) -> UserError:
    found = "its value is missing" if is_missing(value) else f"holds the {type(value).__name__} {value!r:.40}"
    return UserError(f"{where}: field {name!r} should hold {wanted}, but {found}.")
