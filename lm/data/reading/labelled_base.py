"""What labelled data is made of: examples of three kinds, a source of them, and how a label is read."""

from __future__ import annotations

import abc
import codecs
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import SourceConfig
from lm.data.reading.fields import as_text
from lm.data.reading.files import hash_of, lines_over_ascii
from lm.errors import UserError

FILES_NAMED = 4  # in a note; of more of them the sum is told


@dataclass(frozen=True)
class Labelled:
    """A text, or a pair of them, and its label; for regression that is a number, as text."""

    text: str
    pair: str | None
    label: str

    @property
    def key(self) -> str:
        """What decides the subset that an example belongs to: pairs with the same first text stay together."""
        return self.text

    @property
    def texts(self) -> tuple[str, ...]:
        """All its texts."""
        return (self.text,) if self.pair is None else (self.text, self.pair)

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label,)


@dataclass(frozen=True)
class Tagged:
    """Words and a tag for each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def key(self) -> str:
        return " ".join(self.words)

    @property
    def texts(self) -> tuple[str, ...]:
        """All its texts."""
        return (" ".join(self.words),)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.tags


@dataclass(frozen=True)
class Question:
    """A question about a text, and the answers in it: each with its first character there; none if it has none."""

    id: str
    title: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]

    @property
    def key(self) -> str:
        """All questions of an article stay together; of one without title, all about the same text."""
        return self.title or self.context

    @property
    def texts(self) -> tuple[str, ...]:
        """The question; the context, which several questions share, is an attribute of its own."""
        return (self.question,)

    labels = ()

    @property
    def placed(self) -> tuple[tuple[str, int], ...]:
        """The answers that are in the context where they say; only they can be learnt."""
        return tuple(
            (text, start) for text, start in self.answers if text and self.context[start : start + len(text)] == text
        )


Raw = Labelled | Tagged | Question


class LabelledSource(abc.ABC):
    """Labelled examples in a fixed order."""

    def __init__(self, config: SourceConfig):
        self.config = config

    @abc.abstractmethod
    def iterate(self) -> Iterator[Raw]:
        """All examples, in order. Raises UserError at the first one that cannot be read."""

    @abc.abstractmethod
    def identity(self) -> list[str]:
        """Everything that decides the examples."""

    def fingerprint(self) -> str:
        """Hash of everything that decides the examples, wherever the files are."""
        config = self.config
        options = [config.kind, config.pair_field, config.label_field, config.label_pattern, *config.label_names]
        return hash_of("labelled", *options, *self.identity())

    @abc.abstractmethod
    def notes(self) -> list[str]:
        """What a person should know of what `iterate` has read; call it afterwards."""


def encoding_notes(paths: Sequence[Path], encoding: str) -> list[str]:
    """How many lines depend on the encoding, if it is not UTF-8. Raises UserError if a file cannot be read."""
    try:
        if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii"):
            return []
    except LookupError:
        return []  # reading the file tells
    counts = {path: lines_over_ascii(path) for path in paths}
    by_file = ", ".join(f"{path.name} {count:,}" for path, count in counts.items())
    files = f" ({by_file})" if 1 < len(paths) <= FILES_NAMED else ""
    return [f"{sum(counts.values()):,} lines with bytes over 127, read as {encoding}{files}"]


def label_text(value: Any, config: SourceConfig, where: str) -> str:
    """A label as text: a number n is the n-th of label_names if there are any. Raises UserError if it is none.

    Booleans are 0 and 1 to label_names, else "false" and "true".
    """
    field, names = config.label_field, config.label_names
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (bytes, str)):
        text = as_text(value, field, where).strip()
    elif isinstance(value, (bool, np.bool_)):
        text = str(int(value)) if names else str(bool(value)).lower()
    elif isinstance(value, (int, float, np.integer, np.floating)):
        whole = names and float(value).is_integer()
        text = str(int(value)) if whole else str(value)
    elif value is None:
        text = ""
    else:
        raise UserError(f"{where}: field {field!r} should hold a label and holds {type(value).__name__} {value!r:.40}.")
    if not text:
        raise UserError(f"{where}: field {field!r} holds no label.")
    return _name_of(text, names, where) if names else text


def _name_of(text: str, names: Sequence[str], where: str) -> str:
    if re.fullmatch(r"[+-]?[0-9]+", text):
        number = int(text)
        if not 0 <= number < len(names):
            raise UserError(f"{where}: label {number} has no name; label_names has those of 0 to {len(names) - 1}.")
        return names[number]
    if text not in names:
        raise UserError(f"{where}: label {text!r} is neither a number nor one of label_names.")
    return text


def check_number(text: str, where: str) -> None:
    """Raises UserError if a label of regression is not a finite number."""
    try:
        finite = math.isfinite(float(text))
    except ValueError:
        finite = False
    if not finite:
        raise UserError(f"{where}: {text!r:.40} is not a number, which regression learns.")
