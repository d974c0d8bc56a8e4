"""Regression: predict a number for a text or a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.batch import Batch, Output
from lm.config import Config, ObjectiveConfig
from lm.data.reading.readers import Labelled, NumberReader
from lm.data.tokenizing.base import Tokenizer
from lm.evaluation.baselines.baseline import Baseline
from lm.evaluation.baselines.labels import MeanNumber, RidgeNgrams
from lm.evaluation.classification import NUMBER_METRICS, regression_metrics
from lm.evaluation.metric import finite_or_none, names
from lm.evaluation.prediction_evaluator import Predictions
from lm.objectives.losses import LossSums, squared_error
from lm.tasks.classification import TextTask, labelled_of, texts_of
from lm.tasks.task import WORDS


class Regressed(Predictions):
    """The output for an example is the predicted number."""

    label_key = "label"
    keys = ("text", "label", "prediction")

    def __init__(self, raw: Sequence[Labelled], predicted: Sequence[float] | np.ndarray):
        super().__init__(raw, predicted)
        self._predicted_E = np.array(predicted, np.float64)
        self._gold_E = np.array([float(each.label) for each in raw], np.float64)

    def metrics(self, indices_E: np.ndarray | slice = slice(None)) -> dict[str, float]:
        return regression_metrics(self._gold_E[indices_E], self._predicted_E[indices_E])

    def line(self, index: int) -> dict[str, Any]:
        """Returns an example and its prediction. `label` and `prediction` are numbers."""
        example, prediction = self.raw[index], finite_or_none(float(self._predicted_E[index]))
        return {**texts_of(example), "label": float(example.label), "prediction": prediction}

    @classmethod
    def read(cls, lines: Sequence[Mapping[str, Any]], config: Config | None = None) -> Regressed:
        predicted = [math.nan if line["prediction"] is None else float(line["prediction"]) for line in lines]
        return cls([labelled_of(line) for line in lines], predicted)

    def preview(self, index: int) -> dict[str, str]:
        example = self.raw[index]
        return texts_of(example) | {"predicted": f"{self._predicted_E[index]:.3g}", "label": example.label}


class Regression(TextTask):
    name = "regression"
    doc = "predict a number for a text or a pair of texts"
    settings = WORDS | {"eval.bootstrap", "model.pooling"}
    metric_names = ("loss", *names(NUMBER_METRICS))
    reader = NumberReader
    real_targets = True
    predictions = Regressed

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        return squared_error(output.logits, batch)

    def baselines(self, config: Config) -> tuple[Baseline, ...]:
        return MeanNumber(), RidgeNgrams()

    def predicted(self, config: Config, raw: list[Labelled], scores_EC: np.ndarray) -> Predictions:
        return Regressed(raw, scores_EC[:, 0])

    def preview_target(self, config: Config, tokenizer: Tokenizer, target: Any, position: int) -> str:
        return f"{float(target):g}"
