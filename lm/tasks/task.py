"""The base classes of tasks. A task is one object with everything that is specific to one training objective.

Other code calls the methods of a config's task (`lm.tasks.task_of`) and never depends on the name of the task. To
add a task, add one file to this directory and one line to the registry in `__init__`.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from lm.batch import Array, Batch, Output
from lm.config import Config, ObjectiveConfig, SourceConfig
from lm.data.examples.example import Examples
from lm.data.packing.rows import EvalRows, PackedRows, RowLayout, TrainRows
from lm.data.reading import check_source
from lm.data.reading.format import DocumentReader, Reader
from lm.data.storing import Store
from lm.data.storing.splits import SplitSource
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.errors import UserError
from lm.evaluation.evaluator import EvaluationSetup, SplitEvaluation
from lm.evaluation.row_evaluator import TokenEvaluator
from lm.evaluation.token_metrics import token_metrics
from lm.models.heads import NextToken
from lm.objectives.losses import LossSums, loss_sums, token_weight

Refuse = Callable[[str, str], None]  # (setting, message): raises UserError
Stores = Mapping[str, Any]  # the stores of a split, by data source
Metrics = Mapping[str, float]

SMOOTHING = frozenset({"objective.label_smoothing", "objective.label_smoothing_over", "objective.z_loss"})
# The settings that lm.generate reads for all encoder-decoders that generate text.
SEARCH_SETTINGS = "num_beams penalty length_penalty exact max_new_tokens min_new_tokens no_repeat_ngram batch_size"
SEARCH = frozenset(f"eval.generation.{name}" for name in SEARCH_SETTINGS.split())
NOT_SCORED = "·"  # shown in the preview below a token without a target


class Task(abc.ABC):
    """Base class for tasks. Tasks are stateless: one instance serves every config.

    Attributes:
        name: the value of objective.name.
        doc: a one-line description for --help.
        families: the values of model.family that the task supports.
        settings: the dotted names of settings that this task reads but some other task does not read. Changing a
            setting that the chosen task does not read raises UserError.
        metric_names: the names of the metrics that evaluations compute, if they do not depend on the config.
        reader: the class that makes raw examples from the records of data sources.
        noun: the word for the examples in messages.
        loss_name: the name of the loss in tables: loss, nll (of targets given a source) or task_loss.
        reads_labels: whether examples have labels.
        counts_examples: whether an evaluation counts examples rather than tokens.
        writes_text: whether models trained on this task generate text.
        spells_extra_ids: whether <extra_id_N> in a prompt stands for the special token with this name.
        windowed: whether rows are windows of a text; if so, sequence_length and stride are reported.
        plain_text_refusal: the reason why `eval.py --text` does not support the task, with a remedy; empty if it does.
        source_title: the heading of the source side in the preview.
        cleans: whether texts are cleaned (data.cleaning).
    """

    name: str
    doc: str
    families: tuple[str, ...]
    settings: frozenset[str] = frozenset()
    metric_names: tuple[str, ...] = ()
    reader: type[Reader] = DocumentReader
    noun: str = "documents"
    loss_name: str = "loss"
    reads_labels: bool = False
    counts_examples: bool = False
    writes_text: bool = False
    spells_extra_ids: bool = False
    windowed: bool = False
    plain_text_refusal: str = ""
    source_title: str = "source"
    cleans: bool = True

    # --- settings -------------------------------------------------------------------------------------------

    def resolve(self, config: Config) -> Config:
        """Fills in the config values that the task determines."""
        return config

    def check(self, config: Config, refuse: Refuse) -> None:  # noqa: B027
        """Refuses settings of this task that contradict each other."""

    def check_source(self, where: str, source: SourceConfig, config: Config, refuse: Refuse) -> None:
        """Refuses settings of one data source that this task cannot read."""
        check_source(source, self.reader, lambda setting, message: refuse(f"{where}.{setting}", message))

    def unread_value(self, setting: str, config: Config) -> Any:
        """Returns the resolved value of a setting whose default is 0 or empty and that this task does not read."""
        two_sided = config.model.family == "encoder_decoder" or self.layout(config).source_length
        derived = {
            "eval.stride": config.data.sequence_length,
            "eval.generation.max_new_tokens": config.data.sequence_length,
            "data.source_length": config.data.sequence_length if two_sided else 0,
            # Encoders represent a text by its first token; all other models use the last one.
            "model.pooling": "first" if config.model.family == "encoder" else "last",
        }
        return derived.get(setting)

    def advice_on_metric(self, metric: str) -> str:
        """Returns advice that is appended to the error for a metric that this task does not compute."""
        return ""

    def head(self, config: Config) -> Any:
        """Returns the head on top of the model (`lm.models.heads`); the default predicts the next token."""
        return NextToken()

    def metrics(self, config: Config) -> tuple[str, ...]:
        """Returns the names of the metrics that evaluations compute; the loss comes first."""
        return self.metric_names

    def console_metrics(self, config: Config) -> tuple[str, ...]:
        """Returns the names of the metrics that are printed during training."""
        return self.metrics(config)

    # --- data -----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def texts(self, source: SplitSource, sides: Sequence[str]) -> Iterator[str]:
        """Yields the texts of a data source for training a tokenizer; `sides` are the sides of pairs to use."""

    @abc.abstractmethod
    def open_store(self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Any) -> Store | None:
        """Returns the tokenised examples of a data source, cached or newly built; None if there are none."""

    def complete(self, config: Config, split: str, stores: dict[str, Any]) -> dict[str, Any]:
        """Checks the stores of a split together and adds the data that they share."""
        return stores

    def resolve_data(self, config: Config, train: Stores) -> Config:
        """Fills in the config values that the training data determines, such as the labels."""
        return config

    def resolve_splits(self, config: Config, splits: Mapping[str, Stores]) -> Config:
        """Fills in the config values that all splits of a run determine together, such as the tag scheme."""
        return config

    def check_train(self, config: Config, where: str, store: Any) -> None:
        """Raises UserError if the store of a training source is too small, or is None because the source is empty."""
        if store is None:
            raise UserError(
                f"{where} has nothing left for training because everything was dropped or held out; add data."
            )

    def references(self, config: Config, split: str) -> dict[str, list[Any]]:
        """Returns the pairs of a split whose outputs are generated and scored, by data source."""
        return {}

    def batch_settings(self, config: Config) -> list[Any]:
        """Returns the values of this task's own settings that determine the batches.

        The list is part of the fingerprints of existing run directories, so its form must not change.
        """
        return []

    def layout(self, config: Config) -> RowLayout:
        """Returns the layout of the rows, and thus of the batches; the default has two sides, as for pairs."""
        return RowLayout(config.data.sequence_length, config.data.source_length)

    @abc.abstractmethod
    def train_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> TrainRows:
        """Returns an endless sequence of training rows. Raises UserError if a data source has no examples."""

    @abc.abstractmethod
    def eval_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> dict[str, EvalRows]:
        """Returns the evaluation rows of a split by data source. Examples that are too long are cut, never dropped.

        Data sources without examples are left out. Raises UserError if no data source is left.
        """

    # --- loss -----------------------------------------------------------------------------------------------

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        """Returns the summed loss of a batch, by default the weighted cross-entropy of its targets.

        The caller divides the loss once by the `total_weight` of the whole batch.
        """
        return loss_sums(output.logits, batch, config)

    def total_weight(self, batch: Batch) -> Array:
        """Returns the total weight of the loss of a batch, at least 1."""
        return token_weight(batch)

    # --- evaluation -----------------------------------------------------------------------------------------

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        """Returns the evaluators of a split; the first computes the loss."""
        return [TokenEvaluator(self, setup, token_metrics)]

    def evaluation(self, setup: EvaluationSetup) -> SplitEvaluation:
        return SplitEvaluation(setup.name, self.evaluators(setup))

    def for_table(self, metrics: Metrics) -> dict[str, float]:
        """Renames the metrics of a split to the names used in tables."""
        return {re.sub(r"(^|/)loss$", rf"\1{self.loss_name}", name): value for name, value in metrics.items()}

    def yardsticks(self, config: Config, stores: Stores, tokenizer: Tokenizer, metrics: Metrics) -> dict[str, float]:
        """Computes baselines from the data alone, which tables show beside the model's metrics."""
        return {}

    def sample_prompts(self, config: Config) -> tuple[str, ...]:
        """Returns the prompts for the sample texts generated during training."""
        return ()

    def clean_source(self, config: Config, text: str) -> str:
        """Cleans a source text before generation, as in training."""
        return text

    @property
    def predictions(self) -> Any:
        """The class of the predictions (see `lm.evaluation.prediction_evaluator`); None if the task makes none."""
        return None

    # --- new inputs -----------------------------------------------------------------------------------------

    def labeller(self, config: Config) -> Labeller | None:
        """Returns the object with which lm.predict labels new inputs; None if the task predicts only text."""
        return None

    # --- preview --------------------------------------------------------------------------------------------

    def preview_inputs(self, tokenizer: Tokenizer, tokens_L: np.ndarray) -> list[str]:
        """Returns the printable form of each input token."""
        return [tokenizer.piece(int(token)) for token in tokens_L]

    def preview_targets(self, config: Config, tokenizer: Tokenizer, batch: Batch, row: int) -> list[str] | None:
        """Returns the printable form of each target of a row; None if tokens have no targets."""
        columns = zip(batch.targets[row], batch.weights[row], batch.positions[row], strict=True)
        return [
            self.preview_target(config, tokenizer, target, int(position)) if weight else NOT_SCORED
            for target, weight, position in columns
        ]

    def preview_target(self, config: Config, tokenizer: Tokenizer, target: Any, position: int) -> str:
        """Returns the printable form of one target whose weight is not 0."""
        return tokenizer.piece(int(target))


class Labeller(Protocol):
    """Labels new inputs, which are read and encoded in the same way as the examples of an evaluation."""

    @property
    def input_reader(self) -> type[Reader]:
        """The class that reads inputs as raw examples without labels."""

    @property
    def may_lack_answers(self) -> bool:
        """Whether the inputs are questions, some of which may have no answer."""

    def input_rows(
        self, config: Config, tokenizers: Tokenizers, inputs: Sequence[Any], unanswerable: bool = False
    ) -> EvalRows:
        """Returns the rows of the given raw examples. If `unanswerable` is true, "no answer" may be predicted."""

    def applied(self, model: Any) -> Any:
        """Returns an object whose `apply` returns the outputs from which `predict` makes predictions."""

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums: ...

    def predict(self, config: Config, examples: Any, logits: Mapping[int, Any]) -> Any:
        """Returns predictions with the attributes `raw` and `input_line`; see `LabelledTask.predict`."""


class PackedTask(Task):
    """Base class for tasks that index the examples of each data source and pack several of them into a row."""

    @abc.abstractmethod
    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> Mapping[str, Examples]:
        """Returns the indexed examples of each data source."""

    def reason_without_examples(self, config: Config) -> str:
        """Returns the reason why a data source that is not empty may have no examples, and the remedy."""
        return "no document has at least 2 tokens, so there is nothing to train on; add text."

    def batch_settings(self, config: Config) -> list[Any]:
        data, objective = config.data, config.objective
        corruption = [objective.noise_density, objective.mean_span_length, objective.permute_sentences]
        return [data.source_length, data.pairs.overlong, objective.name, *corruption]

    def train_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> TrainRows:
        examples = self.examples(config, tokenizer, stores, True)
        for name, each in examples.items():
            if not len(each):
                raise UserError(f"config.data.train.{name}: {self.reason_without_examples(config)}")
        if not any(each.has_targets() for each in examples.values()):
            raise UserError(
                "config.data.train: no example has a target with a positive weight, so nothing would be learnt; check "
                "the targets or labels, the notes on the data, and objective.class_weights."
            )
        layout = self.layout(config)
        sources = {name: PackedRows(name, each, config.seed, layout) for name, each in examples.items()}
        return TrainRows(config, sources, layout)

    def eval_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> dict[str, EvalRows]:
        layout, examples = self.layout(config), self.examples(config, tokenizer, stores, False)
        rows = {name: EvalRows(each, layout) for name, each in examples.items() if len(each)}
        if not rows:
            raise UserError(f"config.data: no document of {', '.join(stores)} has at least 2 tokens to evaluate.")
        return rows
