"""The base classes of tasks that train word vectors."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.batch import Batch, Output
from lm.config import Config, ObjectiveConfig
from lm.data.examples.contexts import ContextExamples, ContextRows, ContextSampling, word_counts
from lm.data.packing.rows import EvalRows, RowLayout, TrainRows
from lm.data.tokenizing.base import Tokenizer
from lm.data.tokenizing.ngrams import NgramTable, ngram_table
from lm.data.tokenizing.words import words_of
from lm.errors import UserError
from lm.evaluation.row_evaluator import TokenEvaluator
from lm.evaluation.token_metrics import pair_metrics
from lm.evaluation.word_vectors import SimilarityEvaluator, WordTable
from lm.models.word_vectors.heads import BLOCK
from lm.objectives.losses import LossSums
from lm.objectives.word_pairs import negative_sampling_loss
from lm.tasks.task import WORDS, EvaluationSetup, Stores
from lm.tasks.texts import STORING, DocumentTask

NGRAMS_PER_WORD = 24  # the space in a row for the n-grams of each word; an English word has about 20
NO_WORDS = "no word of the text is in the vocabulary; add text, or lower data.tokenizer.min_count"


class WordVectorTask(DocumentTask):
    """Base class for tasks that train word vectors from documents."""

    families = ("encoder",)
    trains_words = True
    loss_name = "task_loss"
    settings = STORING | WORDS | {"objective.context_window", "eval.word_pairs"}

    def metrics(self, config: Config) -> tuple[str, ...]:
        return (*self.metric_names, *(("similarity",) if config.eval.word_pairs else ()))

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        found: list[Any] = [TokenEvaluator(self, setup, self.pair_metrics)]
        return found + ([SimilarityEvaluator(self, setup)] if setup.config.eval.word_pairs else [])

    def pair_metrics(self, sums: Any) -> dict[str, float]:
        """Computes the metrics in `metric_names` and the number of pairs from sums over pairs."""
        found = pair_metrics(sums)
        return {name: found[name] for name in (*self.metric_names, "pairs")}


class ContextTask(WordVectorTask):
    """Base class for tasks with negative sampling (Mikolov 2013)."""

    metric_names = ("loss", "pair_accuracy")
    settings = WordVectorTask.settings | {
        f"objective.{name}" for name in ("negatives", "shared_negatives", "subsample")
    }
    source_title = "random words"
    whole_context: bool  # whether a word has one target for its whole context, rather than one per context word

    def max_ngrams(self, config: Config) -> int:
        """Returns the maximum number of n-grams per row."""
        return NGRAMS_PER_WORD * config.data.sequence_length if config.model.ngram_buckets else 0

    def layout(self, config: Config) -> RowLayout:
        source_length = self.num_noise(config) + self.max_ngrams(config)
        return RowLayout(config.data.sequence_length, source_length, with_types=True)

    def num_noise(self, config: Config) -> int:
        """Returns the number of random words per row."""
        return config.objective.shared_negatives * (config.data.sequence_length // BLOCK)

    def batch_settings(self, config: Config) -> list[Any]:
        objective, model = config.objective, config.model
        drawn = [objective.context_window, objective.shared_negatives, objective.subsample]
        return [*drawn, model.ngram_buckets, *(model.ngram_lengths if model.ngram_buckets else ())]

    def sampling(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> ContextSampling:
        counts_V = word_counts(stores.values(), tokenizer.vocab_size, tokenizer.text_ids)
        if not counts_V.any():
            raise UserError(f"config.data: {NO_WORDS}.")
        objective = config.objective
        return ContextSampling(
            counts_V,
            config.data.sequence_length,
            objective.context_window,
            self.num_noise(config),
            objective.subsample,
            self.whole_context,
            ngrams_of(config, tokenizer),
            self.max_ngrams(config),
        )

    def train_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> TrainRows:
        sampling = self.sampling(config, tokenizer, stores)
        sources = {name: ContextRows(name, store, config.seed, sampling) for name, store in stores.items()}
        return TrainRows(config, sources, self.layout(config))

    def eval_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> dict[str, EvalRows]:
        sampling, layout = self.sampling(config, tokenizer, stores), self.layout(config)
        return {
            name: EvalRows(ContextExamples(name, store, config.seed, sampling, layout.capacities), layout)
            for name, store in stores.items()
        }

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        return negative_sampling_loss(output, batch, config)

    def word_table(self, config: Config, tokenizer: Tokenizer, params: Mapping[str, Any]) -> WordTable:
        return with_ngrams(super().word_table(config, tokenizer, params), config, tokenizer, params)

    @abc.abstractmethod
    def head(self, config: Config) -> Any: ...


def ngrams_of(config: Config, tokenizer: Tokenizer) -> NgramTable | None:
    """Returns the n-grams of the words in a vocabulary, or None if the model has no n-grams."""
    if not config.model.ngram_buckets:
        return None
    return ngram_table(words_of(tokenizer), config.model.ngram_lengths, config.model.ngram_buckets)


def with_ngrams(table: WordTable, config: Config, tokenizer: Tokenizer, params: Mapping[str, Any]) -> WordTable:
    """Returns a table in which the vector of each word is the mean of its own vector and the vectors of its n-grams."""
    if not config.model.ngram_buckets:
        return table
    buckets_GE = np.asarray(params["ngram_embedding"]["embedding"])
    ngrams = ngram_table(table.words, config.model.ngram_lengths, config.model.ngram_buckets)
    sums_VE = np.array(table.vectors_VE)
    np.add.at(sums_VE, np.repeat(np.arange(len(table.words)), ngrams.counts_V), buckets_GE[ngrams.ids_N])
    return WordTable(table.words, sums_VE / (1.0 + ngrams.counts_V[:, None]).astype(np.float32))
