"""The base classes of tasks. A task is one object that holds all code specific to a training objective.

Other code calls the methods of the task (see `lm.tasks.task_of`) and never checks its name. To add a task, add one
file to this directory and one line to the registry in `__init__`.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Batch, Output
from lm.config import Config, DataConfig, ObjectiveConfig, SourceConfig
from lm.config.checks import default_pooling
from lm.config.data import WORD_STEPS
from lm.data.examples.example import Examples
from lm.data.packing.rows import EvalRows, PackedRows, RowLayout, TrainRows
from lm.data.reading import check_source, open_reader
from lm.data.reading.format import DocumentReader, Reader
from lm.data.storing import Store
from lm.data.storing.splits import Cleaner, SplitSource
from lm.data.tokenizing import TOKENIZERS
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.data.tokenizing.words import words_of
from lm.errors import UserError, named_errors
from lm.evaluation.baselines.baseline import Baseline
from lm.evaluation.evaluator import EvaluationRows, EvaluationSetup, SplitEvaluation
from lm.evaluation.row_evaluator import TokenEvaluator
from lm.evaluation.token_metrics import token_metrics
from lm.evaluation.word_vectors import WordTable
from lm.models.heads import NextToken
from lm.objectives.losses import LossSums, loss_sums

Refuse = Callable[[str, str], None]  # called with (setting, message); raises UserError
Stores = Mapping[str, Any]  # maps each data source of a split to its store
Metrics = Mapping[str, float]

SMOOTHING = frozenset({"objective.label_smoothing", "objective.label_smoothing_over", "objective.z_loss"})
VOCABULARY = SMOOTHING | {"objective.logit_chunks"}  # for tasks that predict tokens
# The settings that lm.generate reads for every encoder-decoder that generates text.
SEARCH_SETTINGS = "num_beams penalty length_penalty exact max_new_tokens min_new_tokens no_repeat_ngram batch_size"
SEARCH = frozenset(f"eval.generation.{name}" for name in SEARCH_SETTINGS.split())
# The settings with which lm.generate and lm.chat sample tokens.
SAMPLING = frozenset(
    f"eval.sampling.{name}" for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
)
# The cleaning steps that change words. A task that trains models to write text reads only the settings of steps that
# keep the text readable.
WORDS = frozenset(f"data.cleaning.{step}" for step in WORD_STEPS)
NOT_SCORED = "·"  # the mark that the preview shows below tokens without a target


class Task(abc.ABC):
    """Base class for tasks. Tasks have no state, so all configs share one instance."""

    name: str  # the value of objective.name
    doc: str  # a one-line description for --help
    families: tuple[str, ...]  # the values of model.family that the task supports
    # The dotted names of settings that this task reads but at least one other task does not. Changing a setting that
    # the chosen task does not read raises UserError.
    settings: frozenset[str] = frozenset()
    metric_names: tuple[str, ...] = ()  # what `metrics` returns, unless the metrics depend on the config
    reader: type[Reader] = DocumentReader  # turns the records of a data source into raw examples
    noun = "documents"  # the word that messages use for examples
    loss_name = "loss"  # the loss's name in tables: loss, nll (if a target is predicted from a source) or task_loss
    counts_examples = False  # whether an evaluation counts examples rather than tokens
    writes_text = False  # whether models trained on this task generate text
    spells_extra_ids = False  # whether <extra_id_N> in a prompt is read as the special token <extra_id_N>
    needed_ids = 0  # the number of <extra_id_N> tokens that the tokenizer must have
    ids_advice = ""  # the end of the error message that is shown if data.tokenizer.extra_ids is too low
    trains_words = False  # whether the task trains word vectors and nothing else
    labels_texts = False  # whether each prediction is about a whole text
    windowed = False  # whether rows are windows of a text; if so, result files report sequence length and stride
    plain_text_refusal = ""  # the end of the error message if `eval.py --text` does not support the task
    source_title = "source"  # the heading of the source side in the preview
    cleans = True  # whether texts are cleaned as data.cleaning specifies
    predictions: Any = None  # the subclass of `Predictions` for this task, or None if it has no labels
    baselines_need = ""  # how to enable the baselines of the task, for the message that it has none

    # --- settings -------------------------------------------------------------------------------------------

    def resolve(self, config: Config) -> Config:
        """Fills in the config values that the task determines."""
        return config

    def check(self, config: Config, refuse: Refuse) -> None:
        """Rejects settings of this task that contradict each other."""
        data, model, tokenizer = config.data, config.model, config.data.tokenizer
        if self.reader is not DocumentReader and not data.valid and data.holdout != "hash":
            refuse("data.holdout", f"{self.noun} can only be held out by hash; use 'hash', or specify data.valid.")
        if tokenizer.extra_ids < self.needed_ids and not TOKENIZERS[tokenizer.kind].needs_file:
            refuse("data.tokenizer.extra_ids", f"objective.name='{self.name}' {self.ids_advice}")
        if "model.pooling" in self.settings and model.pooling == "first" and model.family == "decoder":
            refuse(
                "model.pooling", "the first token of a decoder sees no other tokens; set pooling to 'last' or 'mean'."
            )

    def check_source(self, where: str, source: SourceConfig, config: Config, refuse: Refuse) -> None:
        """Rejects a data source whose settings do not suit this task."""
        check_source(source, self.reader, lambda setting, message: refuse(f"{where}.{setting}", message))

    def unread_value(self, setting: str, config: Config) -> Any:
        """Returns the derived value of a setting that the task does not read, or None if the setting has none."""
        two_sided = config.model.family == "encoder_decoder" or self.layout(config).source_length
        derived = {
            "eval.stride": config.data.sequence_length,
            "eval.generation.max_new_tokens": config.data.sequence_length,
            "data.source_length": config.data.sequence_length if two_sided else 0,
            "model.pooling": default_pooling(config.model),
        }
        return derived.get(setting)

    def advice_on_metric(self, metric: str) -> str:
        """Returns advice to append to the error message about a metric that this task does not compute."""
        return ""

    def head(self, config: Config) -> Any:
        """Returns the output head of the model (see `lm.models.heads`). The default head predicts the next token."""
        return NextToken()

    def metrics(self, config: Config) -> tuple[str, ...]:
        """Returns the names of the metrics that evaluations compute, starting with the loss."""
        return self.metric_names

    def console_metrics(self, config: Config) -> tuple[str, ...]:
        """Returns the names of the metrics that are printed during training."""
        return self.metrics(config)

    # --- data -----------------------------------------------------------------------------------------------

    def cleaner(self, data: DataConfig) -> Cleaner:
        """Returns the rules for cleaning and dropping examples."""
        return Cleaner(data.cleaning)

    def open(self, source: SplitSource) -> tuple[Reader, Cleaner]:
        """Opens a data source.

        Raises UserError if the source is missing, or if its settings or the cleaning rules are invalid.
        """
        with named_errors(source.label):
            return open_reader(source.config, self.reader), self.cleaner(source.data)

    def texts(self, source: SplitSource, sides: Sequence[str]) -> Iterator[str]:
        """Yields texts for training a tokenizer. If examples are pairs, only the given `sides` are used."""
        return source.texts(*self.open(source))

    @abc.abstractmethod
    def open_store(self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Any) -> Store | None:
        """Opens the cached store of a data source, or builds it. Returns None if there are no examples."""

    def complete(self, config: Config, split: str, stores: dict[str, Any]) -> dict[str, Any]:
        """Checks the stores of a split and adds data that depends on all stores together."""
        return stores

    def resolve_data(self, config: Config, train: Stores) -> Config:
        """Fills in the config values that depend on the training data, such as the labels."""
        return config

    def resolve_splits(self, config: Config, splits: Mapping[str, Stores]) -> Config:
        """Fills in the config values that depend on the data of all splits, such as the tag scheme."""
        return config

    def check_train(self, config: Config, where: str, store: Any) -> None:
        """Raises UserError if a training source is too small. `store` is None if the source has no examples."""
        if store is None:
            raise UserError(f"{where} has no examples for training, because all were dropped or held out; add data.")

    def references(self, config: Config, split: str) -> dict[str, list[Any]]:
        """Maps each data source of a split to the pairs for which outputs are generated and scored."""
        return {}

    def batch_settings(self, config: Config) -> list[Any]:
        """Returns the values of the task-specific settings that affect batches.

        Run directories contain fingerprints of this list, so its structure must not change.
        """
        return []

    def layout(self, config: Config) -> RowLayout:
        """Returns the layout of the rows of a batch. By default, a row has a source side and a target side."""
        return RowLayout(config.data.sequence_length, config.data.source_length)

    @abc.abstractmethod
    def train_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> TrainRows:
        """Returns an endless sequence of training rows. Raises UserError if a data source has no examples."""

    @abc.abstractmethod
    def eval_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> Mapping[str, EvaluationRows]:
        """Maps each data source that has examples to its evaluation rows. Long examples are truncated but never
        dropped.

        Raises UserError if no data source has any examples.
        """

    # --- loss -----------------------------------------------------------------------------------------------

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        """Returns the summed loss of a batch, by default the cross-entropy. The caller divides it by `total_weight`."""
        return loss_sums(output.scores, batch, config)

    def training_loss(self, output: Output, batch: Batch, config: ObjectiveConfig, step: Array) -> LossSums:
        """Returns the summed loss of a batch in a training step, counted from 0. By default, the step has no effect."""
        return self.loss(output, batch, config)

    def total_weight(self, batch: Batch) -> Array:
        """Returns the number, at least 1, by which the summed loss of a batch is divided."""
        return jnp.maximum(jnp.sum(batch.weights), 1.0)

    # --- evaluation -----------------------------------------------------------------------------------------

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        """Builds the evaluators of a split. The first evaluator computes the loss."""
        return [TokenEvaluator(self, setup, token_metrics)]

    def evaluation(self, setup: EvaluationSetup) -> SplitEvaluation:
        return SplitEvaluation(setup.name, self.evaluators(setup))

    def for_table(self, metrics: Metrics) -> dict[str, float]:
        """Renames the metrics of a split for use in tables."""
        return {re.sub(r"(^|/)loss$", rf"\1{self.loss_name}", name): value for name, value in metrics.items()}

    def baselines(self, config: Config) -> tuple[Baseline, ...]:
        """Returns the simple models that eval.py --baselines fits to the training split and evaluates like the run."""
        return ()

    def yardsticks(self, config: Config, stores: Stores, tokenizer: Tokenizer, metrics: Metrics) -> dict[str, float]:
        """Computes metrics that do not depend on the model. Tables show them in the row of the run."""
        return {}

    def sample_prompts(self, config: Config) -> tuple[str, ...]:
        """Returns the prompts for the sample texts generated during training."""
        return ()

    def clean_source(self, config: Config, text: str) -> str:
        """Cleans the source text given to a model for generation, in the same way as during training."""
        return text

    def labeller(self, config: Config) -> Any:
        """Returns the `Labeller` that lm.predict uses for new inputs, or None if the task has none."""
        return None

    def word_table(self, config: Config, tokenizer: Tokenizer, params: Mapping[str, Any]) -> WordTable:
        """Returns the words of the vocabulary and their vectors, by default the token embedding.

        If several tokens have the same text apart from whitespace, only the first is used.
        """
        first: dict[str, int] = {}
        for token, word in enumerate(words_of(tokenizer)):
            if word is not None:
                first.setdefault(word, token)
        vectors_VE = np.asarray(params["token_embedding"]["embedding"], np.float32)
        return WordTable([*first], vectors_VE[[*first.values()]])

    # --- preview --------------------------------------------------------------------------------------------

    def preview_inputs(self, tokenizer: Tokenizer, tokens_L: np.ndarray) -> list[str]:
        """Returns the printable form of each input token."""
        return [tokenizer.piece(int(token)) for token in tokens_L]

    def preview_targets(self, config: Config, tokenizer: Tokenizer, batch: Batch, row: int) -> list[str] | None:
        """Returns the printable form of each target in a row, or None if the task has no target per token."""
        columns = zip(batch.targets[row], batch.weights[row], batch.positions[row], strict=True)
        return [
            self.preview_target(config, tokenizer, target, int(position)) if weight else NOT_SCORED
            for target, weight, position in columns
        ]

    def preview_target(self, config: Config, tokenizer: Tokenizer, target: Any, position: int) -> str:
        """Returns the printable form of a target whose weight is not 0."""
        return tokenizer.piece(int(target))


class PackedTask(Task):
    """Base class for tasks that access examples by index and pack several examples into a row."""

    @abc.abstractmethod
    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> Mapping[str, Examples]:
        """Maps each data source to its examples, which can be accessed by index."""

    def reason_without_examples(self, config: Config) -> str:
        """Returns the error message for a data source that is not empty but yields no examples."""
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
                "the targets or labels, the printed notes on the data, and objective.class_weights."
            )
        layout = self.layout(config)
        sources = {name: PackedRows(name, each, config.seed, layout) for name, each in examples.items()}
        return TrainRows(config, sources, layout)

    def eval_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> dict[str, EvalRows]:
        layout, examples = self.layout(config), self.examples(config, tokenizer, stores, False)
        rows = {name: EvalRows(each, layout) for name, each in examples.items() if len(each)}
        if not rows:
            raise UserError(f"config.data: all documents in {', '.join(stores)} have fewer than 2 tokens; add text.")
        return rows
