"""Tagging: predict a label for each word, such as its part of speech or the type of a named entity."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.config import Config
from lm.config.experiment import replace_settings
from lm.data.examples.labelled import TaggingExamples, WordTokens
from lm.data.reading.inputs import WordInput
from lm.data.reading.readers import Tagged, TagReader
from lm.data.storing.example_store import ExampleStore
from lm.errors import UserError
from lm.evaluation import tagging
from lm.evaluation.baselines.baseline import Baseline
from lm.evaluation.baselines.tags import ConditionalRandomField, MostFrequentTag
from lm.evaluation.metric import names
from lm.evaluation.prediction_evaluator import Predictions, whole_examples
from lm.tasks.labelled import LabelledTask
from lm.tasks.task import NOT_SCORED, SMOOTHING, EvaluationSetup, Stores

OUTSIDE = "O"


class TaggedWords(Predictions):
    """The output for an example is one tag per word. A missing tag is None, which always counts as wrong."""

    label_key = "tags"
    keys = ("words", "tags", "prediction")

    def __init__(self, raw: Sequence[Tagged], predicted: Sequence[Sequence[str | None]], scheme: str):
        super().__init__(raw, predicted, scheme)
        self._scheme, gold = scheme, [each.tags for each in raw]
        self._words_E2 = tagging.word_counts(gold, [[tag or "" for tag in tags] for tags in predicted])
        outside = [[tag or OUTSIDE for tag in tags] for tags in predicted]
        self._entities_E3 = None if scheme == tagging.NO_SCHEME else tagging.entity_counts(gold, outside, scheme)

    @property
    def signatures(self) -> dict[str, str]:
        return {"tag scheme": tagging.scheme_signature([each.tags for each in self.raw], self._scheme)}

    def metrics(self, indices_E: np.ndarray | slice = slice(None)) -> dict[str, float]:
        entities_E3 = None if self._entities_E3 is None else self._entities_E3[indices_E]
        return tagging.tagging_metrics(self._words_E2[indices_E], entities_E3)

    def line(self, index: int) -> dict[str, Any]:
        """Returns the words, the correct tags and the predicted tags. A missing prediction is None."""
        example = self.raw[index]
        return {"words": example.words, "tags": example.tags, "prediction": list(self.outputs[index])}

    @classmethod
    def read(cls, lines: Sequence[Mapping[str, Any]], config: Config | None = None) -> TaggedWords:
        raw = [Tagged(tuple(line["words"]), tuple(line["tags"])) for line in lines]
        predicted = [line["prediction"] for line in lines]
        gold = [each.tags for each in raw]
        found = sorted({tag for tags in (*gold, *predicted) for tag in tags if tag})
        return cls(raw, predicted, _scheme(config, gold) if config else tagging.infer_schemes(gold, found)[0])

    def preview(self, index: int) -> dict[str, str]:
        example = self.raw[index]
        predicted = [tag or NOT_SCORED for tag in self.outputs[index]]
        named = {"words": example.words, "predicted": predicted, "tags": example.tags}
        return {name: " ".join(each) for name, each in named.items()}


def _tags(stores: Iterable[ExampleStore]) -> list[Sequence[str]]:
    return [example.tags for store in stores for example in store.raw]


def _scheme(config: Config, tags: Sequence[Sequence[str]]) -> str:
    """Returns eval.tag_scheme or, if that is "auto", the scheme inferred from the tags.

    Raises UserError if a label is not allowed by eval.tag_scheme.
    """
    named, labels = tagging.ALIASES.get(config.eval.tag_scheme, config.eval.tag_scheme), config.data.labels
    if named == "auto":
        return tagging.infer_schemes(tags, labels)[0]
    fitting = tagging.fitting_schemes(labels)
    if named != tagging.NO_SCHEME and named not in fitting:
        unlike = next(label for label in labels if named not in tagging.fitting_schemes([label]))
        advice = f"use 'auto'{f', {fitting[0]!r}' if fitting else ''} or {tagging.NO_SCHEME!r}"
        raise UserError(f"config.eval.tag_scheme: {named} has no tag {unlike!r:.40}, but the data does; {advice}.")
    return named


class Tagging(LabelledTask):
    """Predicts the tag of each word at its first token. Words without tokens are tagged O if O is a label."""

    name = "tagging"
    doc = "predict a label for each word"
    settings = SMOOTHING | {"data.labels", "eval.bootstrap", "eval.tag_scheme", "objective.class_weights"}
    metric_names = ("loss", *names(tagging.ENTITY_METRICS), "token_accuracy")
    reader = TagReader
    input_reader = WordInput
    tokens = WordTokens
    example_type = TaggingExamples
    has_classes = True
    predictions = TaggedWords

    def pooling(self, config: Config) -> str:
        return "none"

    def unlabelled(self, config: Config, raw: Tagged, unanswerable: bool) -> Tagged:
        return dataclasses.replace(raw, tags=config.data.labels[:1] * len(raw.words))

    def predict(self, config: Config, examples: TaggingExamples, logits: Mapping[int, Any]) -> Predictions:
        whole, labels = whole_examples(examples, logits), config.data.labels
        without_tokens = OUTSIDE if OUTSIDE in labels else None
        predicted = []
        for numbers in whole.values():
            tags: list[str | None] = []
            for number in numbers:
                best_T = logits[number].argmax(axis=1)
                words = examples.word_indices(number).tolist()
                tags += [without_tokens if at < 0 else labels[int(best_T[at])] for at in words]
            predicted.append(tags)
        raw, scheme = [examples.store.raw[number] for number in whole], _scheme(config, _tags([examples.store]))
        return TaggedWords(raw, predicted, scheme)

    def predictions_of(self, config: Config, raw: Sequence[Tagged], outputs: Sequence[Any]) -> TaggedWords:
        """Returns the predictions, given a list of tags for each example, with one tag per word."""
        return TaggedWords(raw, outputs, _scheme(config, [example.tags for example in raw]))

    def baselines(self, config: Config) -> tuple[Baseline, ...]:
        return MostFrequentTag(), ConditionalRandomField()

    def resolve_splits(self, config: Config, splits: Mapping[str, Stores]) -> Config:
        stores = [store for split in splits.values() for store in split.values()]
        return replace_settings(config, {"eval.tag_scheme": _scheme(config, _tags(stores))})

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        metric, labels = setup.config.checkpoint.best_metric, setup.config.data.labels
        # Older runs have configs without a scheme; the scheme is then inferred from all tags of the split.
        scheme = _scheme(setup.config, _tags(rows.examples.store for rows in setup.rows.values()))
        if "/entity_" in metric and scheme == tagging.NO_SCHEME:
            raise UserError(
                f"config.checkpoint.best_metric: {metric!r} is not computed because the tags ({labels[0]!r}, ...) "
                "do not follow an entity scheme such as BIO; use 'valid/token_accuracy'."
            )
        config = replace_settings(setup.config, {"eval.tag_scheme": scheme})
        return super().evaluators(dataclasses.replace(setup, config=config))
