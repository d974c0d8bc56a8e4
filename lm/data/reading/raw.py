"""Raw examples, as readers yield them; documents are plain `str`.

The hash of its `key` decides which subset an example belongs to (`lm/data/storing/splits.py`). `texts` are all texts of
a labelled example, and `labels` all its labels.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """A source text and its references, the first of which is the target."""

    source: str
    references: tuple[str, ...]

    @property
    def target(self) -> str:
        return self.references[0]

    def with_prefix(self, prefix: str) -> Pair:
        """Returns the pair as the model reads it; the prefix is added after cleaning."""
        return Pair(prefix + self.source, self.references)

    @property
    def key(self) -> str:
        return self.source


@dataclass(frozen=True)
class Labelled:
    """A text, or a pair of texts, and its label; for regression the label is a number, as text."""

    text: str
    pair: str | None
    label: str

    @property
    def key(self) -> str:
        """The first text, so that pairs which share it stay together."""
        return self.text

    @property
    def texts(self) -> tuple[str, ...]:
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
        return (self.key,)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.tags


@dataclass(frozen=True)
class Question:
    """A question about a text, and its answers, each with the index of its first character; none if it has none."""

    id: str
    title: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]

    labels = ()

    @property
    def key(self) -> str:
        """The article, so that its questions stay together; without a title, the text."""
        return self.title or self.context

    @property
    def texts(self) -> tuple[str, ...]:
        """The question alone, because several questions share a context."""
        return (self.question,)

    @property
    def placed(self) -> tuple[tuple[str, int], ...]:
        """The answers that are in the context at their index; only these can be learnt."""
        return tuple((text, start) for text, start in self.answers if text and self.context.startswith(text, start))
