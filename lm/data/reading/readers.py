"""Raw examples with several fields (pairs, labelled texts, tagged words, questions), and the readers that make them.

Documents are plain strings, read by `format.DocumentReader`. The hash of an example's `key` determines its subset
(`lm/data/storing/splits.py`). `texts` and `labels` are all texts and all labels of a labelled example.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lm.config import SourceConfig
from lm.data.reading.fields import Record, as_label, as_list, as_text
from lm.data.reading.format import DocumentReader, Format, Reader, hash_of
from lm.errors import UserError


@dataclass(frozen=True)
class Pair:
    """A source text and its references, the first of which is the target."""

    source: str
    references: tuple[str, ...]

    @property
    def target(self) -> str:
        return self.references[0]

    def with_prefix(self, prefix: str) -> Pair:
        """Returns the pair with a prefix before the source, to be added after cleaning."""
        return Pair(prefix + self.source, self.references)

    @property
    def key(self) -> str:
        return self.source


@dataclass(frozen=True)
class Labelled:
    """A text or a pair of texts, and its label; for regression, the label is a number written as text."""

    text: str
    pair: str | None
    label: str

    @property
    def key(self) -> str:
        """The first text, so that pairs that share it stay in the same subset."""
        return self.text

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,) if self.pair is None else (self.text, self.pair)

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label,)


@dataclass(frozen=True)
class Tagged:
    """A sequence of words with a tag for each."""

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
    """A question about a context, and its answers with the character offset of each; unanswerable if there are none."""

    id: str
    title: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]

    labels = ()

    @property
    def key(self) -> str:
        """The article's title, so that its questions stay in the same subset, or the context if there is no title."""
        return self.title or self.context

    @property
    def texts(self) -> tuple[str, ...]:
        """The question alone, because several questions share a context."""
        return (self.question,)

    @property
    def placed(self) -> tuple[tuple[str, int], ...]:
        """The answers found in the context at their offset; only these can be targets in training."""
        return tuple((text, start) for text, start in self.answers if text and self.context.startswith(text, start))


class PairReader(Reader):
    """Reads pairs, without the prefix. A target that is a list of texts gives several references."""

    kind = "pairs"
    needs = ("target_field", "name the field of the target.")
    settings = ("target_path", "target_field", "pattern", "prefix")
    roles: ClassVar = {"source": "field", "target": "target_field"}

    def example(self, record: Record, where: str) -> Pair:
        return Pair(self.fields["source"].text(record, where), self.fields["target"].texts(record, where))

    def fingerprint(self) -> str:
        named = [] if self.source.names_fields else [self.config.target_field]
        return hash_of("pairs", self.config.kind, self.config.prefix, *named, *self.source.identity())


class LabelReader(Reader):
    """Reads texts, or pairs of texts, with a label."""

    kind = "labels"
    needs = ("label_field", "name the field of the label.")
    settings = ("label_field", "label_pattern", "pair_field")
    roles: ClassVar = {"text": "field", "label": "label_field", "pair": "pair_field"}

    def __init__(self, config: SourceConfig, source: Format):
        super().__init__(config, source)
        if not config.pair_field:
            del self.fields["pair"]

    def example(self, record: Record, where: str) -> Labelled:
        label = self.fields["label"]
        name = as_label(label.value(record, where), self.config.label_names, label.spec, where)
        pair = self.fields["pair"].text(record, where) if "pair" in self.fields else None
        return Labelled(self.fields["text"].text(record, where), pair, name)


class NumberReader(LabelReader):
    """Reads texts, or pairs of texts, with a number."""

    kind = "numbers"
    needs = ("label_field", "name the field of the number.")

    def example(self, record: Record, where: str) -> Labelled:
        example = super().example(record, where)
        try:
            finite = math.isfinite(float(example.label))
        except ValueError:
            finite = False
        if not finite:
            raise UserError(f"{where}: {example.label!r:.40} is not a finite number, as regression requires.")
        return example


class TagReader(Reader):
    """Reads lists of words with a tag for each; skips records without words.

    Tags are treated as plain labels: BIO and BMES schemes are not checked, so an I- without a preceding B- is valid.
    """

    kind = "tags"
    needs = ("label_field", "name the field of the list of tags.")
    settings = ("label_field",)
    roles: ClassVar = {"words": "field", "tags": "label_field"}

    def example(self, record: Record, where: str) -> Tagged | None:
        words, tags = (as_list(field.value(record, where), field.spec, where) for field in self.fields.values())
        name, tag = (field.spec for field in self.fields.values())
        if len(words) != len(tags):
            raise UserError(f"{where}: {len(words)} words in {name!r} and {len(tags)} tags.")
        if not words:
            self._noted.append(where)
            return None
        return Tagged(
            tuple(as_text(word, name, where) for word in words),
            tuple(
                as_label(each, self.config.label_names, tag, f"{where}, word {number}")
                for number, each in enumerate(tags, start=1)
            ),
        )

    def notes(self) -> list[str]:
        left_out = [f"{len(self._noted):,} records without words are left out"] if self._noted else []
        return left_out + super().notes()


class QuestionReader(Reader):
    """Reads questions: records with the fields id, question, context, answers (text, answer_start), optionally title.

    Texts are left unchanged, since answers refer to character offsets. Answers that do not match the context at
    `answer_start` are kept for scoring but are never training targets; `notes` counts them.
    """

    kind = "questions"
    roles: ClassVar = dict.fromkeys(("id", "title", "question", "context", "answers"), "")
    optional = ("title",)

    def example(self, record: Record, where: str) -> Question:
        values = {role: field.value(record, where) for role, field in self.fields.items()}
        answers = _answers(values.pop("answers"), where)
        texts = {role: as_text(value, role, where) for role, value in values.items()}
        question = Question(**texts, answers=answers)
        self._noted += [question.id] * (len(answers) - len(question.placed))
        return question

    def notes(self) -> list[str]:
        if not self._noted:
            return []
        return [
            f"{len(self._noted):,} answers do not match the context at answer_start (first: question "
            f"{self._noted[0]!r}); they are used for scoring but not as training targets"
        ]


def _answers(value: Any, where: str) -> tuple[tuple[str, int], ...]:
    """Returns the (text, start) of each answer, from a list of {text, answer_start} or a record of two lists."""
    if isinstance(value, Mapping):
        texts, starts = (as_list(value.get(name), name, where) for name in ("text", "answer_start"))
    else:
        entries = as_list(value, "answers", where)
        if any(not isinstance(entry, Mapping) for entry in entries):
            raise UserError(f"{where}: each answer must be a record with text and answer_start.")
        texts, starts = ([entry.get(name) for entry in entries] for name in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise UserError(f"{where}: answers has {len(texts)} texts but {len(starts)} values of answer_start.")
    for start in starts:
        if isinstance(start, bool) or not isinstance(start, (int, np.integer)) or start < 0:
            raise UserError(f"{where}: answer_start {start!r:.40} is not a character offset.")
    return tuple((as_text(text, "answers.text", where), int(start)) for text, start in zip(texts, starts, strict=True))


READERS: dict[str, type[Reader]] = {
    each.kind: each for each in (DocumentReader, PairReader, LabelReader, NumberReader, TagReader, QuestionReader)
}
