"""From what a head gave for each token to a task's predictions, their figures and their files.

Shape letters: E examples, T tokens of a piece, C labels.
"""

from __future__ import annotations

import abc
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.examples.labelled import AnswerPieces, TaskPieces, TextPieces, WordPieces
from lm.data.reading.labelled import Labelled, Question, Tagged
from lm.evaluation.answer_search import Answer, Window, best_answer
from lm.evaluation.answers import answer_figures, answer_scores
from lm.evaluation.classification import classification_figures, confusion_counts, regression_figures
from lm.evaluation.tagging import entity_counts, scheme_of, tagging_figures, word_counts
from lm.evaluation.task_predictions import write_answered, write_classified, write_regressed, write_tagged
from lm.reporting.confusion import draw_confusion

OUTSIDE = "O"  # the tag of a word of which the tokenizer makes no token


class Predictions(abc.ABC):
    """What a model made of some examples of a task."""

    raw: list[Any]  # the examples

    @abc.abstractmethod
    def figures(self, places_E: np.ndarray | None = None) -> dict[str, float]:
        """Of all examples, or of those at these places (some perhaps several times)."""

    @abc.abstractmethod
    def write(self, directory: Path, stem: str) -> list[Path]:
        """Writes `STEM.jsonl`, and what else tells about them, and returns the paths. May raise OSError."""

    @abc.abstractmethod
    def joined(self, others: Sequence[Any]) -> Predictions:
        """These and those of other data sources of the same task."""

    @abc.abstractmethod
    def told(self, index: int) -> tuple[str, ...]:
        """An example, its prediction and what is right, for a line on the screen."""


class Classified(Predictions):
    def __init__(self, raw: Sequence[Labelled], labels: Sequence[str], probabilities_EC: np.ndarray):
        self.raw, self._labels, self._probabilities_EC = list(raw), list(labels), probabilities_EC
        numbers = {label: number for number, label in enumerate(labels)}
        self._gold_E = np.array([numbers[each.label] for each in raw], np.int64)
        self._predicted_E = probabilities_EC.argmax(axis=1)

    def figures(self, places_E: np.ndarray | None = None) -> dict[str, float]:
        chosen = slice(None) if places_E is None else places_E
        return classification_figures(self._gold_E[chosen], self._probabilities_EC[chosen])

    def write(self, directory: Path, stem: str) -> list[Path]:
        predictions, picture = directory / f"{stem}.jsonl", directory / f"{stem}-confusion.png"
        names = [self._labels[number] for number in self._predicted_E.tolist()]
        write_classified(predictions, zip(self.raw, names, self._probabilities_EC.max(axis=1).tolist(), strict=True))
        counts_CC = confusion_counts(self._gold_E, self._predicted_E, len(self._labels))
        draw_confusion(counts_CC, self._labels, picture, f"{len(self.raw):,} examples")
        return [predictions, picture]

    def joined(self, others: Sequence[Classified]) -> Classified:
        probabilities_EC = np.concatenate([each._probabilities_EC for each in (self, *others)])
        return Classified(_all_raw(self, others), self._labels, probabilities_EC)

    def told(self, index: int) -> tuple[str, ...]:
        example = self.raw[index]
        return example.text, self._labels[int(self._predicted_E[index])], example.label


class Regressed(Predictions):
    def __init__(self, raw: Sequence[Labelled], predicted_E: np.ndarray):
        self.raw, self._predicted_E = list(raw), predicted_E
        self._gold_E = np.array([float(each.label) for each in raw], np.float64)

    def figures(self, places_E: np.ndarray | None = None) -> dict[str, float]:
        chosen = slice(None) if places_E is None else places_E
        return regression_figures(self._gold_E[chosen], self._predicted_E[chosen])

    def write(self, directory: Path, stem: str) -> list[Path]:
        path = directory / f"{stem}.jsonl"
        write_regressed(path, zip(self.raw, self._predicted_E.tolist(), strict=True))
        return [path]

    def joined(self, others: Sequence[Regressed]) -> Regressed:
        predicted_E = np.concatenate([each._predicted_E for each in (self, *others)])
        return Regressed(_all_raw(self, others), predicted_E)

    def told(self, index: int) -> tuple[str, ...]:
        return self.raw[index].text, f"{self._predicted_E[index]:.3g}", self.raw[index].label


class TaggedWords(Predictions):
    def __init__(self, raw: Sequence[Tagged], labels: Sequence[str], predicted: Sequence[Sequence[str]]):
        self.raw, self._labels, self._predicted = list(raw), labels, list(predicted)
        gold = [each.tags for each in raw]
        self._words_E2 = word_counts(gold, predicted)
        scheme = scheme_of(labels)
        self._entities_E3 = entity_counts(gold, predicted, scheme) if scheme else None

    def figures(self, places_E: np.ndarray | None = None) -> dict[str, float]:
        chosen = slice(None) if places_E is None else places_E
        entities_E3 = None if self._entities_E3 is None else self._entities_E3[chosen]
        return tagging_figures(self._words_E2[chosen], entities_E3)

    def write(self, directory: Path, stem: str) -> list[Path]:
        path = directory / f"{stem}.jsonl"
        write_tagged(path, zip(self.raw, self._predicted, strict=True))
        return [path]

    def joined(self, others: Sequence[TaggedWords]) -> TaggedWords:
        predicted = [tags for each in (self, *others) for tags in each._predicted]
        return TaggedWords(_all_raw(self, others), self._labels, predicted)

    def told(self, index: int) -> tuple[str, ...]:
        example = self.raw[index]
        return tuple(" ".join(each) for each in (example.words, self._predicted[index], example.tags))


class Answered(Predictions):
    """`scores_E2` is that of `answer_scores`, by each data source's own rules: for Chinese, for missing answers."""

    def __init__(self, raw: Sequence[Question], answers: Sequence[Answer], scores_E2: np.ndarray):
        self.raw, self._answers, self._scores_E2 = list(raw), list(answers), scores_E2

    @classmethod
    def scored(cls, raw: Sequence[Question], answers: Sequence[Answer]) -> Answered:
        """Of one data source."""
        right = [[text for text, _ in each.answers] for each in raw]
        chinese = any("\u4e00" <= character <= "\u9fff" for each in raw[:100] for character in each.question)
        return cls(raw, answers, answer_scores([each.text for each in answers], right, chinese=chinese))

    def figures(self, places_E: np.ndarray | None = None) -> dict[str, float]:
        return answer_figures(self._scores_E2 if places_E is None else self._scores_E2[places_E])

    def write(self, directory: Path, stem: str) -> list[Path]:
        path = directory / f"{stem}.jsonl"
        write_answered(path, zip(self.raw, self._answers, strict=True))
        return [path]

    def joined(self, others: Sequence[Answered]) -> Answered:
        answers = [answer for each in (self, *others) for answer in each._answers]
        return Answered(_all_raw(self, others), answers, np.concatenate([each._scores_E2 for each in (self, *others)]))

    def told(self, index: int) -> tuple[str, ...]:
        example = self.raw[index]
        return example.question, self._answers[index].text, example.answers[0][0] if example.answers else ""


def _all_raw(first: Predictions, others: Sequence[Predictions]) -> list[Any]:
    return [example for each in (first, *others) for example in each.raw]


def whole_examples(pieces: TaskPieces, present: Container[int]) -> dict[int, list[int]]:
    """The examples all of whose pieces are there, in order, and the numbers of these pieces."""
    of_example: dict[int, list[int]] = {}
    for piece, example in enumerate(pieces.example_of.tolist()):
        of_example.setdefault(example, []).append(piece)
    return {example: parts for example, parts in of_example.items() if all(part in present for part in parts)}


def predict(config: Config, pieces: TaskPieces, logits: Mapping[int, np.ndarray]) -> Predictions:
    """Predictions for the examples all of whose pieces are in `logits`: (T, C) of each piece, by its number."""
    whole = whole_examples(pieces, logits)
    raw: list[Any] = [pieces.store.raw[example] for example in whole]
    labels = config.data.labels
    if isinstance(pieces, TextPieces):
        scores_EC = np.stack([logits[part][pieces.label_place(part)] for (part,) in whole.values()])
        if config.objective.name == "regression":
            return Regressed(raw, scores_EC[:, 0].astype(np.float64))
        return Classified(raw, labels, _softmax(scores_EC))
    if isinstance(pieces, WordPieces):
        tags = [_tags(pieces, parts, logits, labels) for parts in whole.values()]
        return TaggedWords(raw, labels, tags)
    assert isinstance(pieces, AnswerPieces), pieces
    may_lack = not all(each.answers for each in pieces.store.raw if isinstance(each, Question))
    answers = [
        best_answer(each.context, [_window(pieces, part, logits[part]) for part in parts], may_lack=may_lack)
        for each, parts in zip(raw, whole.values(), strict=True)
    ]
    return Answered.scored(raw, answers)


def _softmax(scores_EC: np.ndarray) -> np.ndarray:
    powers_EC = np.exp(scores_EC.astype(np.float64) - scores_EC.max(axis=1, keepdims=True))
    return powers_EC / powers_EC.sum(axis=1, keepdims=True)


def _tags(
    pieces: WordPieces, parts: Sequence[int], logits: Mapping[int, np.ndarray], labels: Sequence[str]
) -> list[str]:
    tags = []
    for part in parts:
        best_T = logits[part].argmax(axis=1)
        tags += [OUTSIDE if place < 0 else labels[int(best_T[place])] for place in pieces.word_places(part).tolist()]
    return tags


def _window(pieces: AnswerPieces, part: int, logits_T2: np.ndarray) -> Window:
    return Window(logits_T2[:, 0], logits_T2[:, 1], pieces.offsets(part), pieces.most_context(part))
