"""Tagging: predict a label for each word, such as named entities or parts of speech."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.examples.labelled import LabelledExamples, TaggingExamples, WordTokens
from lm.data.reading.inputs import WordInput
from lm.data.reading.readers import Tagged, TagReader
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.evaluation.metric import names
from lm.evaluation.prediction_evaluator import Predictions, whole_examples
from lm.evaluation.tagging import ENTITY_METRICS, entity_counts, scheme_of, tagging_metrics, word_counts
from lm.tasks.labelled import LabelledTask
from lm.tasks.task import SMOOTHING, EvaluationSetup

OUTSIDE = "O"  # the predicted tag of a word without tokens


class Tagging(LabelledTask):
    """Predicts the tag of a word at its first token."""

    name = "tagging"
    doc = "a label for each word"
    settings = SMOOTHING | {"data.labels", "eval.bootstrap", "objective.class_weights"}
    metric_names = ("loss", *names(ENTITY_METRICS), "token_accuracy")
    reader = TagReader
    input_reader = WordInput
    tokens = WordTokens
    has_classes = True

    def pooling(self, config: Config) -> str:
        return "none"

    @property
    def predictions(self) -> type[TaggedWords]:
        return TaggedWords

    def unlabelled(self, config: Config, raw: Tagged, unanswerable: bool) -> Tagged:
        return dataclasses.replace(raw, tags=config.data.labels[:1] * len(raw.words))

    def make_examples(self, store: ExampleStore, config: Config, tokenizer: Tokenizer, train: bool) -> LabelledExamples:
        return TaggingExamples(store, config, tokenizer, train)

    def predict(self, config: Config, examples: TaggingExamples, logits: Mapping[int, Any]) -> Predictions:
        whole, labels = whole_examples(examples, logits), config.data.labels
        predicted = []
        for numbers in whole.values():
            tags: list[str] = []
            for number in numbers:
                best_T = logits[number].argmax(axis=1)
                words = examples.word_indices(number).tolist()
                tags += [OUTSIDE if at < 0 else labels[int(best_T[at])] for at in words]
            predicted.append(tags)
        return TaggedWords([examples.store.raw[number] for number in whole], labels, predicted)

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        metric, labels = setup.config.checkpoint.best_metric, setup.config.data.labels
        if "/entity_" in metric and not scheme_of(labels):
            raise UserError(
                f"config.checkpoint.best_metric: {metric!r} is not measured because the tags ({labels[0]!r}, ...) "
                "follow no entity scheme such as BIO; use 'valid/token_accuracy'."
            )
        return super().evaluators(setup)


class TaggedWords(Predictions):
    """Predicted tags, one per word."""

    label_key = "tags"
    keys = ("words", "tags", "prediction")

    def __init__(self, raw: Sequence[Tagged], labels: Sequence[str], predicted: Sequence[Sequence[str]]):
        self.raw, self._labels, self._predicted = list(raw), labels, list(predicted)
        gold = [each.tags for each in raw]
        self._words_E2 = word_counts(gold, predicted)
        scheme = scheme_of(labels)
        self._entities_E3 = entity_counts(gold, predicted, scheme) if scheme else None

    def metrics(self, indices_E: np.ndarray | slice = slice(None)) -> dict[str, float]:
        entities_E3 = None if self._entities_E3 is None else self._entities_E3[indices_E]
        return tagging_metrics(self._words_E2[indices_E], entities_E3)

    def line(self, index: int) -> dict[str, Any]:
        """Returns the words, their tags and the predicted tags."""
        example = self.raw[index]
        return {"words": example.words, "tags": example.tags, "prediction": list(self._predicted[index])}

    @classmethod
    def read(cls, lines: Sequence[Mapping[str, Any]], config: Config | None = None) -> TaggedWords:
        raw = [Tagged(tuple(line["words"]), tuple(line["tags"])) for line in lines]
        predicted = [line["prediction"] for line in lines]
        found = {tag for each, tags in zip(raw, predicted, strict=True) for tag in (*each.tags, *tags) if tag}
        return cls(raw, config.data.labels if config else sorted(found), predicted)

    def joined(self, others: Sequence[TaggedWords]) -> TaggedWords:
        predicted = [tags for each in (self, *others) for tags in each._predicted]
        return TaggedWords(self._all_raw(others), self._labels, predicted)

    def preview(self, index: int) -> tuple[str, ...]:
        example = self.raw[index]
        return tuple(" ".join(each) for each in (example.words, self._predicted[index], example.tags))
