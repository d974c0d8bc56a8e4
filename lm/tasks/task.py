"""What a task is: everything particular to what a model learns, in one object.

The rest of the code asks the task of a config (`lm.tasks.task_of`) and never compares its name. A new task is one
file in this folder and one line in the registry in `__init__`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm.batch import Array, Batch, Output
from lm.config import Config, ObjectiveConfig, SourceConfig
from lm.data.packing.rows import EvalRows, RowLayout, TrainRows
from lm.data.reading import check_source
from lm.data.reading.readers import DocumentReader, Reader
from lm.data.storing import Store
from lm.data.storing.splits import SplitSource
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.errors import UserError
from lm.evaluation.evaluator import EvaluationSetup, Evaluator, SplitEvaluation
from lm.objectives.losses import LossSums, loss_sums, token_weight

Refuse = Callable[[str, str], None]  # (setting, message): raises UserError

SMOOTHING = frozenset({"objective.label_smoothing", "objective.label_smoothing_over", "objective.z_loss"})
# What lm.generate reads for every encoder-decoder that writes text.
SEARCH_SETTINGS = "num_beams penalty length_penalty exact max_new_tokens min_new_tokens no_repeat_ngram batch_size"
SEARCH = frozenset(f"eval.generation.{name}" for name in SEARCH_SETTINGS.split())
NOT_SCORED = "·"  # what the preview shows below a token without a target


def default_pooling(config: Config) -> str:
    """Returns what stands for a text if model.pooling does not say: its first token in an encoder, else its last."""
    return "first" if config.model.family == "encoder" else "last"


class Task(abc.ABC):
    """Base of all tasks. Stateless: one instance serves every config.

    Attributes:
        name: value of objective.name.
        doc: one line for --help.
        families: values of model.family that can learn it.
        settings: dotted names of the settings that this task reads and some other task does not. Changing one that the
            chosen task does not read is refused.
        reader: makes its raw examples from the records of data sources.
        noun: what one example is called in messages.
        loss_name: what tables call its loss: loss, nll (a target that follows from a source) or task_loss.
        reads_labels: whether each example has labels.
        counts_examples: whether an evaluation counts examples rather than tokens.
        writes_text: whether its models generate text.
        spells_extra_ids: whether <extra_id_N> in a text means that token when text is generated.
    """

    name: str
    doc: str
    families: tuple[str, ...]
    settings: frozenset[str] = frozenset()
    reader: type[Reader] = DocumentReader
    noun: str = "documents"
    loss_name: str = "loss"
    reads_labels: bool = False
    counts_examples: bool = False
    writes_text: bool = False
    spells_extra_ids: bool = False

    # --- settings -------------------------------------------------------------------------------------------

    def resolve(self, config: Config) -> Config:
        """Returns the config with the values that follow from the task filled in."""
        return config

    def check(self, config: Config, refuse: Refuse) -> None:  # noqa: B027
        """Refuses settings of this task that cannot work together; by default nothing."""

    def check_source(self, where: str, source: SourceConfig, config: Config, refuse: Refuse) -> None:
        """Refuses settings of one data source that this task cannot read."""
        check_source(source, self.reader, lambda setting, message: refuse(f"{where}.{setting}", message))

    def unread_value(self, setting: str, config: Config) -> Any:
        """Returns the resolved value of a setting that is 0 or empty by default and that this task does not read."""
        two_sided = config.model.family == "encoder_decoder" or self.layout(config).source_length
        derived = {
            "eval.stride": config.data.sequence_length,
            "eval.generation.max_new_tokens": config.data.sequence_length,
            "data.source_length": config.data.sequence_length if two_sided else 0,
            "model.pooling": default_pooling(config),
        }
        return derived.get(setting)

    def advice_on_metric(self, metric: str) -> str:
        """Returns what to add to the message that this task does not measure a metric."""
        return ""

    @abc.abstractmethod
    def head(self, config: Config) -> Any:
        """Returns what the model computes from its last layer (`lm.models.heads`)."""

    @abc.abstractmethod
    def metrics(self, config: Config) -> tuple[str, ...]:
        """Returns the names of the metrics that its evaluations give. The first is the default for "best"."""

    def console_metrics(self, config: Config) -> tuple[str, ...]:
        """Returns the names of the metrics that are printed during training."""
        return self.metrics(config)

    # --- data -----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def texts(self, source: SplitSource, sides: Sequence[str]) -> Iterator[str]:
        """Yields the text of a source for a tokenizer to be trained on; `sides` are those of pairs."""

    @abc.abstractmethod
    def open_store(self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Any) -> Store | None:
        """Returns the tokenised examples of a source, from the cache or made now; None if there are none."""

    def complete(self, config: Config, split: str, stores: dict[str, Any]) -> dict[str, Any]:
        """Returns all stores of a split, checked together and with what they share."""
        return stores

    def resolve_data(self, config: Config, train: Mapping[str, Any]) -> Config:
        """Returns the config with the values that follow from the training data (labels)."""
        return config

    def check_train(self, config: Config, where: str, store: Any) -> None:
        """Raises UserError if a training source (None: nothing was left of it) is too small to train on."""
        if store is None:
            raise UserError(f"{where} gives nothing for training: all of it was dropped or held out; change it.")

    def references(self, config: Config, split: str) -> dict[str, list[Any]]:
        """Returns the pairs of a split whose outputs are generated and scored, by data source; empty for none."""
        return {}

    def batch_settings(self, config: Config) -> list[Any]:
        """Returns the values of settings that decide the batches beside those that every run has.

        Their form is part of the fingerprints of existing run directories, so it stays as it is.
        """
        return []

    @abc.abstractmethod
    def layout(self, config: Config) -> RowLayout:
        """Returns the form of the rows, and so of the batches."""

    @abc.abstractmethod
    def train_rows(self, config: Config, tokenizer: Tokenizer, stores: Mapping[str, Any]) -> TrainRows:
        """Returns training rows without end. Raises UserError for a data source that gives no example."""

    @abc.abstractmethod
    def eval_rows(self, config: Config, tokenizer: Tokenizer, stores: Mapping[str, Any]) -> dict[str, EvalRows]:
        """Returns the evaluation rows of a split by data source. What is too long is cut, never dropped.

        Data sources without any example are left out. Raises UserError if none is left.
        """

    # --- loss -----------------------------------------------------------------------------------------------

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        """Returns the sums of a batch's loss, to be divided once by `total_weight` of the whole batch.

        By default the cross-entropy of each target with a weight.
        """
        return loss_sums(output.logits, batch, config)

    def total_weight(self, batch: Batch) -> Array:
        """Returns the weight that `loss` finds in a batch, at least 1."""
        return token_weight(batch)

    # --- evaluation -----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def evaluators(self, setup: EvaluationSetup) -> list[Evaluator]:
        """Returns what scores a split; the first evaluator gives the loss."""

    def evaluation(self, setup: EvaluationSetup) -> SplitEvaluation:
        return SplitEvaluation(setup.name, self.evaluators(setup))

    def for_table(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics of a split under the names that tables show."""

        def shown(name: str) -> str:
            source, slash, metric = name.rpartition("/")
            return f"{source}{slash}{self.loss_name}" if metric == "loss" else name

        return {shown(name): value for name, value in metrics.items()}

    def yardsticks(
        self, config: Config, stores: Mapping[str, Any], tokenizer: Tokenizer, metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """Returns metrics of the data alone that the table shows beside the model's."""
        return {}

    plain_text_refusal: str = ""  # why `eval.py --text` cannot serve this task, and what to do; "": it can

    def windowed(self, config: Config) -> bool:
        """Whether rows are windows of a text, for which sequence_length and stride are reported."""
        return False

    def sample_prompts(self, config: Config) -> tuple[str, ...]:
        """Returns the prompts that are continued as sample text during training."""
        return ()

    def clean_source(self, config: Config, text: str) -> str:
        """Returns a text to generate from, cleaned as in training."""
        return text

    # --- preview --------------------------------------------------------------------------------------------

    source_title = "source"  # what the preview calls the source side

    def preview_inputs(self, tokenizer: Tokenizer, tokens_L: np.ndarray) -> list[str]:
        """Returns the visible form of each token that is read."""
        return [tokenizer.piece(int(token)) for token in tokens_L]

    def preview_targets(self, config: Config, tokenizer: Tokenizer, batch: Batch, row: int) -> list[str] | None:
        """Returns the visible form of each target of a row; None if tokens have no targets."""
        return [
            self.preview_target(config, tokenizer, target, int(position)) if weight else NOT_SCORED
            for target, weight, position in zip(
                batch.targets[row], batch.weights[row], batch.positions[row], strict=True
            )
        ]

    def preview_target(self, config: Config, tokenizer: Tokenizer, target: Any, position: int) -> str:
        """Returns the visible form of one target with a weight."""
        return tokenizer.piece(int(target))
