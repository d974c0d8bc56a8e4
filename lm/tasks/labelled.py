"""The base class of labelled tasks. The examples are kept in memory, and each example has one prediction."""

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
    """Base class for tasks that predict labels, numbers or answers. Each example is scored exactly once.

    Attributes:
        tokens: the class that encodes raw examples.
        has_classes: whether the labels form a fixed set, which data.labels lists or the training data determines.
        real_targets: whether the targets are real numbers rather than integers.
        input_reader: the class that reads new inputs as raw examples without labels.
        may_lack_answers: whether the examples are questions that may have no answer.
    """

    families = ("decoder", "encoder_decoder", "encoder")
    noun = "examples"
    loss_name = "task_loss"
    reads_labels = True
    counts_examples = True
    plain_text_refusal = "needs labelled examples; specify them in data.test of a config"
    tokens: Any  # a class such as `TextTokens`
    has_classes: bool = False
    real_targets: bool = False
    cleans = False
    input_reader: type[Reader]
    may_lack_answers: bool = False

    def check(self, config: Config, refuse: Refuse) -> None:
        data, weights = config.data, config.objective.class_weights
        if not data.valid and data.holdout != "hash":
            refuse("data.holdout", "labelled data can only be held out by hash; use 'hash', or specify data.valid.")
        if not self.has_classes:
            return
        if weights and config.objective.balance_classes:
            refuse("objective.class_weights", "class_weights and balance_classes cannot both be set; use only one.")
        if weights and (len(weights) != len(data.labels) or min(weights) < 0):
            message = "give each label in data.labels a weight of 0 or more; data.labels must be set too."
            refuse("objective.class_weights", message)
        if weights and not any(weights):
            refuse(
                "objective.class_weights",
                "all weights are 0, so nothing would be learnt; give at least one label a positive weight.",
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
            return config  # if there is only one label, `labels_of` raises UserError
        return dataclasses.replace(config, data=dataclasses.replace(config.data, labels=example_store.labels_of(train)))

    def batch_settings(self, config: Config) -> list[Any]:
        weights = [config.objective.class_weights, config.objective.balance_classes]
        own = [config.data.labels, config.data.context_overlap, weights, self.pooling(config)]
        return super().batch_settings(config) + own

    def pooling(self, config: Config) -> str:
        """Returns the method that pools the token vectors of a text into one vector."""
        return config.model.pooling

    def layout(self, config: Config) -> RowLayout:
        types = config.model.token_types > 1
        return RowLayout(config.data.sequence_length, with_types=types, real_targets=self.real_targets)

    @abc.abstractmethod
    def make_examples(self, store: ExampleStore, config: Config, tokenizer: Tokenizer, train: bool) -> LabelledExamples:
        """Returns the examples of a data source, which can be accessed by index."""

    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> dict[str, Any]:
        return {name: self.make_examples(store, config, tokenizer, train) for name, store in stores.items()}

    def reason_without_examples(self, config: Config) -> str:
        return "no example has a target, so there is nothing to train on; read the notes above, or use longer rows."

    @abc.abstractmethod
    def predict(self, config: Config, examples: Any, logits: Mapping[int, Any]) -> Predictions:
        """Returns predictions for all raw examples whose parts are all contained in `logits`.

        An example may consist of several parts. `logits` maps the index of each part to logits of shape (T, C).
        """

    # --- new inputs (`lm.tasks.task.Labeller`) --------------------------------------------------------------

    def labeller(self, config: Config) -> LabelledTask:
        return self

    def unlabelled(self, config: Config, raw: Any, unanswerable: bool) -> Any:
        """Adds a placeholder label, which does not affect the prediction, to a raw example read by `input_reader`."""
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
