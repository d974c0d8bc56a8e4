"""Raw examples with several fields (pairs, labelled texts, tagged words, questions), and the readers that produce them.

Documents are plain strings, read by `format.DocumentReader`. The hash of an example's `key` determines its subset
(`lm/data/storing/splits.py`). The properties `texts` and `labels` hold all texts and labels of an example.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from lm.config import SourceConfig
from lm.data.reading.fields import (
    NUMBER,
    FieldList,
    Record,
    as_flag,
    as_label,
    as_list,
    as_name,
    as_number,
    as_offset,
    as_text,
    label_type,
)
from lm.data.reading.format import DocumentReader, Format, Reader
from lm.errors import UserError
from lm.files import hash_of

SHOWN = 3  # maximum number of groups of labels listed in the notes


@dataclass(frozen=True)
class Pair:
    """A source text and its references. The first reference is the target."""

    source: str
    references: tuple[str, ...]

    @property
    def target(self) -> str:
        return self.references[0]

    def with_prefix(self, prefix: str) -> Pair:
        """Returns a copy with `prefix` in front of the source text. The texts must already be cleaned."""
        return Pair(prefix + self.source, self.references)

    @property
    def key(self) -> str:
        return self.source


@dataclass(frozen=True)
class Labelled:
    """A text or a pair of texts, with a label. For regression, the label is a number written as a string."""

    text: str
    pair: str | None
    label: str

    @property
    def key(self) -> str:
        """The first text, so that pairs with the same first text end up in the same subset."""
        return self.text

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,) if self.pair is None else (self.text, self.pair)

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label,)


@dataclass(frozen=True)
class Tagged:
    """A sequence of words with one tag per word."""

    words: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def key(self) -> str:
        return " ".join(self.words)

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.tags


@dataclass(frozen=True)
class Question:
    """A question about a context.

    `answers` holds a pair (text, character offset) for each answer, and is empty if the question is unanswerable.
    """

    id: str
    title: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]

    labels = ()

    @property
    def key(self) -> str:
        """The article's title, or the context if there is none.

        Questions about the same text thus end up in the same subset.
        """
        return self.title or self.context

    @property
    def texts(self) -> tuple[str, ...]:
        """Contains only the question, because several questions may share a context."""
        return (self.question,)

    @property
    def placed(self) -> tuple[tuple[str, int], ...]:
        """The answers that occur in the context at their offsets; only these can be training targets."""
        context = self.context
        return tuple((text, at) for text, at in self.answers if text and at >= 0 and context.startswith(text, at))


class PairReader(Reader):
    """Reads pairs without adding `prefix`. Each target field, or each text in a list, becomes a reference."""

    kind = "pairs"
    needs = ("target_field", "name the field that holds the target.")
    settings = ("target_path", "target_field", "pattern", "prefix")
    roles: ClassVar = {"source": "field", "target": "target_field"}

    def __init__(self, config: SourceConfig, source: Format):
        super().__init__(config, source)
        if "," in config.target_field and "{" not in config.target_field:
            self.fields["target"] = FieldList(config.target_field, "target_field")

    def example(self, record: Record, where: str) -> Pair:
        return Pair(self.fields["source"].text(record, where), self.fields["target"].texts(record, where))

    def fingerprint(self) -> str:
        named = [] if self.source.names_fields else [self.config.target_field]
        return hash_of("pairs", self.config.kind, self.config.prefix, *named, *self.source.identity())


class ClassReader(Reader):
    """Base class for readers whose examples have labels. Equal values of different types count as the same label.

    `notes` reports the exceptions, such as "01" and "1" (see `label_text`).
    """

    def iterate(self) -> Iterator[Any]:
        self._types: Counter[str] = Counter()  # number of labels of each type
        self._labels: set[str] = set()
        yield from super().iterate()

    def label(self, value: Any, name: str, where: str) -> str:
        """Returns a label as a string.

        If there are no label names, raises UserError for a mix of booleans and numbers, because true and 1 differ as
        strings.
        """
        label = as_label(value, self.config.label_names, name, where)
        self._types[label_type(value)] += 1
        self._labels.add(label)
        mixed = self._types["booleans"] and (self._types["integers"] or self._types["decimals"])
        if mixed and not self.config.label_names:
            raise UserError(f"{where}: field {name!r} holds {value!r}, but earlier labels have a different type.")
        return label

    def notes(self) -> list[str]:
        groups = [] if self.config.label_names else _spellings_apart(self._labels)
        counts, notes = [f"{count:,} {kind}" for kind, count in sorted(self._types.items()) if count], []
        if len(counts) > 1:
            unless = ", except for some spellings of numbers" if groups else ""
            notes.append(f"labels have several types ({', '.join(counts)}); equal values count as one label{unless}")
        elif number := self._types["decimals"]:
            notes.append(f"{number:,} labels have decimals; labels such as 1.0 and 0.50 are read as 1 and 0.5")
        for group in groups[:SHOWN]:
            notes.append(f"{' and '.join(map(repr, group))} are different labels, although they are equal as numbers")
        if len(groups) > SHOWN:
            notes.append(f"{len(groups) - SHOWN:,} more groups of labels are equal as numbers")
        return notes + super().notes()


def _spellings_apart(labels: Iterable[str]) -> list[list[str]]:
    """Returns the groups of labels that are equal as numbers but spelt differently, such as ["01", "1"]."""
    groups: dict[Decimal, list[str]] = {}
    for label in sorted(labels):
        if NUMBER.fullmatch(label):
            with contextlib.suppress(ArithmeticError):  # the exponent is too large
                groups.setdefault(Decimal(label), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


class LabelReader(ClassReader):
    """Reads labelled texts or labelled pairs of texts."""

    kind = "labels"
    needs = ("label_field", "name the field that holds the label.")
    settings = ("label_field", "label_pattern", "pair_field", "pattern")
    roles: ClassVar = {"text": "field", "label": "label_field", "pair": "pair_field"}

    def example(self, record: Record, where: str) -> Labelled:
        label = self.fields["label"]
        name = self.label(label.value(record, where), label.spec, where)
        pair = self.fields["pair"].text(record, where) if "pair" in self.fields else None
        return Labelled(self.fields["text"].text(record, where), pair, name)


class NumberReader(LabelReader):
    """Reads texts or pairs of texts that are labelled with numbers."""

    kind = "numbers"
    needs = ("label_field", "name the field that holds the number.")

    def __init__(self, config: SourceConfig, source: Format):
        super().__init__(config, source)
        if config.label_names:
            raise UserError("label_names: regression reads numbers, which have no names; leave this setting empty.")

    def label(self, value: Any, name: str, where: str) -> str:
        return as_number(value, name, where)


class TagReader(ClassReader):
    """Reads lists of words with one tag per word and skips records without words.

    Tags are plain labels: BIO and BMES schemes are not checked, so an I- tag without a preceding B- tag is valid.
    """

    kind = "tags"
    needs = ("label_field", "name the field that holds the list of tags.")
    settings = ("label_field",)
    roles: ClassVar = {"words": "field", "tags": "label_field"}

    def iterate(self) -> Iterator[Any]:
        self._without_words = 0
        yield from super().iterate()

    def example(self, record: Record, where: str) -> Tagged | None:
        name, tag = (field.spec for field in self.fields.values())
        words, tags = (as_list(field.value(record, where), field.spec, where) for field in self.fields.values())
        if len(words) != len(tags):
            raise UserError(f"{where}: there are {len(words)} words in {name!r} but {len(tags)} tags.")
        if not words:
            self._without_words += 1
            return None
        return Tagged(
            tuple(as_text(word, name, where) for word in words),
            tuple(self.label(each, tag, f"{where}, word {number}") for number, each in enumerate(tags, start=1)),
        )

    def notes(self) -> list[str]:
        note = f"{self._without_words:,} records without words are skipped"
        return ([note] if self._without_words else []) + super().notes()


class QuestionReader(Reader):
    """Reads questions from records in SQuAD format. Each answer has the fields text and answer_start.

    Texts are left unchanged, because answer_start is a character offset in the context (-1 if unknown). Answers that
    the context does not contain at answer_start are used for scoring but never as training targets (see `notes_on`).
    If a question is marked as impossible, its answers are omitted, because they are plausible but wrong.
    """

    kind = "questions"
    roles: ClassVar = dict.fromkeys(("id", "title", "question", "context", "answers", "is_impossible"), "")
    optional = ("title", "is_impossible")

    def example(self, record: Record, where: str) -> Question:
        values = {role: field.value(record, where) for role, field in self.fields.items()}
        impossible = as_flag(values.pop("is_impossible", False), "is_impossible", where)
        given = values.pop("answers", [])
        answers = () if impossible else _answers(given, where)
        convert = {"id": as_name, "title": as_name, "question": as_text, "context": as_text}
        return Question(**{role: convert[role](value, role, where) for role, value in values.items()}, answers=answers)

    def notes_on(self, examples: Sequence[Question]) -> list[str]:
        misplaced = [each.id for each in examples for _ in range(len(each.answers) - len(each.placed))]
        if not misplaced:
            return []
        problem = f"answers do not match the context at answer_start (first: question {misplaced[0]!r})"
        return [f"{len(misplaced):,} {problem}; they are used for scoring but not as training targets"]


def _answers(value: Any, where: str) -> tuple[tuple[str, int], ...]:
    """Returns a pair (text, start) for each answer. `value` is a list of records, or a record with two lists."""
    if isinstance(value, Mapping):
        texts, starts = (as_list(value.get(name), name, where) for name in ("text", "answer_start"))
    else:
        entries = as_list(value, "answers", where)
        if any(not isinstance(entry, Mapping) for entry in entries):
            raise UserError(f"{where}: each answer must be a record with text and answer_start.")
        texts, starts = ([entry.get(name) for entry in entries] for name in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise UserError(f"{where}: the answers have {len(texts)} texts but {len(starts)} values of answer_start.")
    return tuple(
        (as_text(text, "answers.text", where), as_offset(start, "answer_start", where))
        for text, start in zip(texts, starts, strict=True)
    )


READERS: dict[str, type[Reader]] = {
    each.kind: each for each in (DocumentReader, PairReader, LabelReader, NumberReader, TagReader, QuestionReader)
}
