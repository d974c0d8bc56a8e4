"""The base class of labelled tasks, which keep their examples in memory and make one prediction per example."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.config import Config
from lm.data.examples.labelled import LabelledExamples
from lm.data.packing.rows import EvalRows, RowLayout
from lm.data.reading import open_reader
from lm.data.reading.format import Reader
from lm.data.storing import example_store
from lm.data.storing.example_store import ExampleStore, texts_of
from lm.data.storing.splits import LabelledCleaner, SplitSource, named_errors
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.evaluation.prediction_evaluator import PredictionEvaluator, Predictions
from lm.models.heads import Classes
from lm.tasks.task import EvaluationSetup, PackedTask, Refuse, Stores


class LabelledTask(PackedTask):
    """Base class for tasks that label texts, words or questions. Each example has one prediction and is scored once.

    Attributes:
        tokens: the class that encodes raw examples.
        has_classes: whether labels are classes, listed in data.labels or found in the training data.
        real_targets: whether targets are real numbers.
        input_reader: the class that reads new inputs as raw examples without labels.
        may_lack_answers: whether examples are questions, some of which may have no answer.
    """

    families = ("decoder", "encoder_decoder", "encoder")
    noun = "examples"
    loss_name = "task_loss"
    reads_labels = True
    counts_examples = True
    plain_text_refusal = "needs examples with labels; name them in data.test of a config"
    tokens: Any  # such as `TextTokens`
    has_classes: bool = False
    real_targets: bool = False
    cleans = False
    input_reader: type[Reader]
    may_lack_answers: bool = False

    def check(self, config: Config, refuse: Refuse) -> None:
        data, weights = config.data, config.objective.class_weights
        if not data.valid and data.holdout != "hash":
            refuse("data.holdout", "labelled data is held out by hash; use 'hash', or name validation sources.")
        if not self.has_classes:
            return
        if weights and config.objective.balance_classes:
            refuse("objective.class_weights", "cannot be combined with balance_classes; use only one of them.")
        if weights and (len(weights) != len(data.labels) or min(weights) < 0):
            message = "needs a weight of 0 or more for each label in data.labels, which must be set too."
            refuse("objective.class_weights", message)
        if weights and not any(weights):
            refuse(
                "objective.class_weights",
                "all weights are 0, so nothing would be learnt; give a label a positive weight.",
            )

    def head(self, config: Config) -> Any:
        return Classes(len(config.data.labels), self.pooling(config))

    def texts(self, source: SplitSource, sides: Sequence[str]) -> Iterator[str]:
        with named_errors(source.label):
            reader = open_reader(source.config, self.reader)
        rules = LabelledCleaner(source.data.cleaning)
        return texts_of(example for example, _ in source.read(reader, rules))

    def open_store(
        self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Any
    ) -> ExampleStore | None:
        with named_errors(source.label):
            identity = [self.name, *(example_store.cleaning_identity(config) if self.cleans else ())]
            rules = LabelledCleaner(config.data.cleaning)
            reader = open_reader(source.config, self.reader)
            return example_store.build(source, reader, rules, tokenizers.target, self.tokens.encode, identity)

    def complete(self, config: Config, split: str, stores: dict[str, Any]) -> dict[str, Any]:
        if not self.has_classes:
            return stores
        stores = example_store.with_label_counts(stores)
        if config.data.labels:
            example_store.check_labels(config, split, stores)
        return stores

    def resolve_data(self, config: Config, train: Stores) -> Config:
        if not self.has_classes or len(config.data.labels) > 1:
            return config  # with a single label, `labels_of` below raises UserError
        return dataclasses.replace(config, data=dataclasses.replace(config.data, labels=example_store.labels_of(train)))

    def batch_settings(self, config: Config) -> list[Any]:
        weights = [config.objective.class_weights, config.objective.balance_classes]
        own = [config.data.labels, config.data.context_overlap, weights, self.pooling(config)]
        return super().batch_settings(config) + own

    def pooling(self, config: Config) -> str:
        """Returns the method by which the token vectors of a text are pooled into one vector."""
        return config.model.pooling

    def layout(self, config: Config) -> RowLayout:
        types = config.model.token_types > 0
        return RowLayout(config.data.sequence_length, with_types=types, real_targets=self.real_targets)

    @abc.abstractmethod
    def make_examples(self, store: ExampleStore, config: Config, tokenizer: Tokenizer, train: bool) -> LabelledExamples:
        """Returns the indexed examples of a data source."""

    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> dict[str, Any]:
        return {name: self.make_examples(store, config, tokenizer, train) for name, store in stores.items()}

    def reason_without_examples(self, config: Config) -> str:
        return "no example has a target, so there is nothing to train on; read the notes above, or lengthen the rows."

    @abc.abstractmethod
    def predict(self, config: Config, examples: Any, logits: Mapping[int, Any]) -> Predictions:
        """Returns predictions for the raw examples whose parts all have logits.

        `logits` maps the index of each part to logits of shape (T, C).
        """

    # --- new inputs (`lm.tasks.task.Labeller`) --------------------------------------------------------------

    def labeller(self, config: Config) -> LabelledTask:
        return self

    def unlabelled(self, config: Config, raw: Any, unanswerable: bool) -> Any:
        """Returns a raw example of `input_reader` with a placeholder label, which does not affect the prediction."""
        return raw

    def input_rows(
        self, config: Config, tokenizers: Tokenizers, inputs: Sequence[Any], unanswerable: bool = False
    ) -> EvalRows:
        rules, tokenizer = LabelledCleaner(config.data.cleaning), tokenizers.target
        raw = [self.unlabelled(config, rules.clean(each), unanswerable) for each in inputs]
        store = example_store.of_inputs(raw, self.tokens.encode(raw, tokenizer), tokenizer)
        return EvalRows(self.make_examples(store, config, tokenizer, False), self.layout(config))

    def applied(self, model: Any) -> Any:
        return model

    # --- evaluation -----------------------------------------------------------------------------------------

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        return [PredictionEvaluator(self, setup)]

    def preview_target(self, config: Config, tokenizer: Tokenizer, target: Any, position: int) -> str:
        return config.data.labels[int(target)]
