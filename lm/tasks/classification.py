"""Classification: predict one of several labels for a text or a pair of texts."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.examples.labelled import TextExamples, TextTokens
from lm.data.reading.inputs import TextInput
from lm.data.reading.readers import Labelled, LabelReader
from lm.evaluation.baselines.baseline import Baseline
from lm.evaluation.baselines.labels import LogisticNgrams, MajorityLabel
from lm.evaluation.classification import LABEL_METRICS, classification_metrics, confusion_counts
from lm.evaluation.metric import finite_or_none, names
from lm.evaluation.prediction_evaluator import Predictions, whole_examples
from lm.reporting.confusion import draw_confusion
from lm.tasks.labelled import LabelledTask
from lm.tasks.task import SMOOTHING, WORDS


class TextTask(LabelledTask):
    """Base class for tasks that predict one label per text or pair of texts."""

    reader = LabelReader
    input_reader = TextInput
    tokens = TextTokens
    example_type = TextExamples
    cleans = True
    labels_texts = True

    def unlabelled(self, config: Config, raw: Labelled, unanswerable: bool) -> Labelled:
        return dataclasses.replace(raw, label=config.data.labels[0] if self.has_classes else "0")

    def predict(self, config: Config, examples: TextExamples, logits: Mapping[int, Any]) -> Predictions:
        whole = whole_examples(examples, logits)
        scores_EC = np.stack([logits[number][examples.label_index(number)] for (number,) in whole.values()])
        return self.predicted(config, [examples.store.raw[number] for number in whole], scores_EC.astype(np.float64))

    @abc.abstractmethod
    def predicted(self, config: Config, raw: list[Labelled], scores_EC: np.ndarray) -> Predictions:
        """Returns the predictions for E texts, given the logits of the tokens at which labels are predicted."""


class Classified(Predictions):
    """The output for an example holds the probability of each label. All examples share the same list of labels."""

    label_key = "label"
    keys = ("text", "label", "prediction", "score")

    def __init__(self, raw: Sequence[Labelled], probabilities_EC: Sequence[Any] | np.ndarray, labels: Sequence[str]):
        super().__init__(raw, probabilities_EC, labels)
        self._labels, self._probabilities_EC = list(labels), np.array(probabilities_EC, np.float64)
        numbers = {label: number for number, label in enumerate(labels)}
        self._gold_E = np.array([numbers[each.label] for each in raw], np.int64)
        self._predicted_E = self._probabilities_EC.argmax(axis=1)

    def metrics(self, indices_E: np.ndarray | slice = slice(None)) -> dict[str, float]:
        return classification_metrics(self._gold_E[indices_E], self._probabilities_EC[indices_E])

    def line(self, index: int) -> dict[str, Any]:
        """Returns an example and its prediction. `score` is the probability of the predicted label."""
        example, score = self.raw[index], float(self._probabilities_EC[index].max())
        prediction = self._labels[int(self._predicted_E[index])]
        return {**texts_of(example), "label": example.label, "prediction": prediction, "score": finite_or_none(score)}

    @classmethod
    def read(cls, lines: Sequence[Mapping[str, Any]], config: Config | None = None) -> Classified:
        """Restores the probabilities of the predicted labels. The other labels get equal shares of the remainder."""
        raw = [labelled_of(line) for line in lines]
        found = {label for line in lines for label in (line["label"], line["prediction"])}
        labels = list(config.data.labels) if config else sorted(found)
        probabilities_EC = np.empty((len(lines), len(labels)), np.float64)
        for line, row_C in zip(lines, probabilities_EC, strict=True):
            score = math.nan if line["score"] is None else float(line["score"])
            row_C[:] = (1 - score) / max(1, len(labels) - 1)
            row_C[labels.index(line["prediction"])] = score
        return cls(raw, probabilities_EC, labels)

    def details(self, index: int) -> dict[str, Any]:
        return {"probabilities": dict(zip(self._labels, self._probabilities_EC[index].tolist(), strict=True))}

    def write(self, directory: Path, stem: str) -> list[Path]:
        paths, picture = super().write(directory, stem), directory / f"{stem}-confusion.png"
        counts_CC = confusion_counts(self._gold_E, self._predicted_E, len(self._labels))
        draw_confusion(counts_CC, self._labels, picture, f"{len(self.raw):,} examples")
        return [*paths, picture]

    def preview(self, index: int) -> dict[str, str]:
        example, predicted = self.raw[index], self._labels[int(self._predicted_E[index])]
        return texts_of(example) | {"predicted": predicted, "label": example.label}


class Classification(TextTask):
    name = "classification"
    doc = "predict a label for a text or a pair of texts"
    settings = SMOOTHING | WORDS | {"data.labels", "eval.bootstrap", "model.pooling"}
    settings |= {"objective.balance_classes", "objective.class_weights"}
    metric_names = ("loss", *names(LABEL_METRICS))
    has_classes = True
    predictions = Classified

    def baselines(self, config: Config) -> tuple[Baseline, ...]:
        return MajorityLabel(), LogisticNgrams()

    def predictions_of(self, config: Config, raw: Sequence[Any], outputs: Sequence[Any] | np.ndarray) -> Classified:
        """Returns the predictions, given the probabilities of all labels, (E, C)."""
        return Classified(raw, outputs, config.data.labels)

    def predicted(self, config: Config, raw: list[Labelled], scores_EC: np.ndarray) -> Predictions:
        from scipy.special import softmax  # a top-level import would slow down every start

        return self.predictions_of(config, raw, softmax(scores_EC, axis=1))


def labelled_of(line: Mapping[str, Any]) -> Labelled:
    """Restores the raw example from a line of a prediction file."""
    example = Labelled(line["text"], line.get("pair"), str(line["label"]))
    if not all(isinstance(text, str) for text in example.texts):
        raise TypeError
    return example


def texts_of(example: Labelled) -> dict[str, Any]:
    return {"text": example.text} if example.pair is None else {"text": example.text, "pair": example.pair}
