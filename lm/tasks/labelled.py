"""The base class of labelled tasks. The examples are kept in memory, and each example has one prediction."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.config import Config, DataConfig
from lm.config.experiment import replace_settings
from lm.data.packing.rows import EvalRows, RowLayout
from lm.data.reading.format import Reader
from lm.data.storing import example_store
from lm.data.storing.example_store import ExampleStore
from lm.data.storing.splits import LabelledCleaner, SplitSource
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.errors import named_errors
from lm.evaluation.prediction_evaluator import PredictionEvaluator, Predictions
from lm.models.heads import Classes
from lm.tasks.task import EvaluationSetup, PackedTask, Refuse, Stores


class LabelledTask(PackedTask):
    """Base class for tasks that predict labels, numbers or answers. Each example is scored exactly once.

    As a `Labeller`, the task also makes predictions for new inputs, which are read and encoded like evaluation
    examples.
    """

    families = ("decoder", "encoder_decoder", "encoder")
    noun = "examples"
    loss_name = "task_loss"
    counts_examples = True
    plain_text_refusal = "needs labelled examples; specify them in data.test of a config"
    cleans = False
    tokens: Any  # the class that encodes raw examples, such as `TextTokens`
    example_type: Any  # the subclass of `LabelledExamples`
    has_classes = False  # whether the labels form a fixed set: data.labels, or all labels of the training data
    real_targets = False  # whether the targets are real numbers rather than integers
    input_reader: type[Reader]  # reads new inputs as raw examples without labels
    may_lack_answers = False  # whether the examples are questions that may have no answer

    def check(self, config: Config, refuse: Refuse) -> None:
        super().check(config, refuse)
        labels, weights = config.data.labels, config.objective.class_weights
        if not self.has_classes or not weights:
            return
        if config.objective.balance_classes:
            refuse("objective.class_weights", "class_weights and balance_classes cannot both be set; use only one.")
        if len(weights) != len(labels) or min(weights) < 0:
            message = "give each label in data.labels a weight of 0 or more; data.labels must be set too."
            refuse("objective.class_weights", message)
        if not any(weights):
            message = "all weights are 0, so nothing would be learnt; give at least one label a positive weight."
            refuse("objective.class_weights", message)

    def head(self, config: Config) -> Any:
        return Classes(len(config.data.labels) if self.has_classes else 1, self.pooling(config))

    def cleaner(self, data: DataConfig) -> LabelledCleaner:
        return LabelledCleaner(data.cleaning)

    def texts(self, source: SplitSource, sides: Sequence[str]) -> Iterator[str]:
        return example_store.texts_of(example for example, _ in source.read(*self.open(source)))

    def open_store(
        self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Any
    ) -> ExampleStore | None:
        reader, rules = self.open(source)
        identity = [self.name, *(example_store.cleaning_identity(config) if self.cleans else ())]
        with named_errors(source.label):
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
            return config  # for a single label, `labels_of` below raises UserError
        return replace_settings(config, {"data.labels": example_store.labels_of(train)})

    def batch_settings(self, config: Config) -> list[Any]:
        weights = [config.objective.class_weights, config.objective.balance_classes]
        own = config.data.labels, config.data.context_overlap, weights, self.pooling(config)
        return [*super().batch_settings(config), *own]

    def pooling(self, config: Config) -> str:
        """Returns how the token vectors of a text are pooled into one vector."""
        return config.model.pooling

    def layout(self, config: Config) -> RowLayout:
        types = config.model.token_types > 1
        return RowLayout(config.data.sequence_length, with_types=types, real_targets=self.real_targets)

    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> dict[str, Any]:
        return {name: self.example_type(store, config, tokenizer, train) for name, store in stores.items()}

    def reason_without_examples(self, config: Config) -> str:
        return "no example has a target, so there is nothing to train on; read the notes above, or use longer rows."

    @abc.abstractmethod
    def predict(self, config: Config, examples: Any, logits: Mapping[int, Any]) -> Predictions:
        """Returns predictions for all raw examples whose parts are all contained in `logits`.

        An example may consist of several parts. `logits` maps the index of each part to logits of shape (T, C).
        """

    def predictions_of(self, config: Config, raw: Sequence[Any], outputs: Sequence[Any]) -> Predictions:
        """Returns the predictions for raw examples, given one output per example."""
        return self.predictions(raw, outputs)

    def labeller(self, config: Config) -> LabelledTask:
        return self

    def unlabelled(self, config: Config, raw: Any, unanswerable: bool) -> Any:
        """Adds a placeholder label, which does not affect the prediction, to a raw example read by `input_reader`.

        If `unanswerable` is true, "no answer" may be predicted.
        """
        return raw

    def input_rows(
        self, config: Config, tokenizers: Tokenizers, inputs: Sequence[Any], unanswerable: bool = False
    ) -> EvalRows:
        """Packs raw examples that were read by `input_reader` into rows."""
        rules, tokenizer = self.cleaner(config.data), tokenizers.target
        raw = [self.unlabelled(config, rules.clean(each), unanswerable) for each in inputs]
        store = example_store.of_inputs(raw, self.tokens.encode(raw, tokenizer), tokenizer)
        return EvalRows(self.example_type(store, config, tokenizer, False), self.layout(config))

    def applied(self, model: Any) -> Any:
        """Returns an object whose `apply` method returns the outputs that `predict` needs."""
        return model

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        return [PredictionEvaluator(self, setup)]

    def preview_target(self, config: Config, tokenizer: Tokenizer, target: Any, position: int) -> str:
        return config.data.labels[int(target)]
