"""GloVe: word vectors whose dot products approximate the logarithms of co-occurrence counts (Pennington 2014)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.batch import Batch, Output
from lm.config import Config, ObjectiveConfig
from lm.config.experiment import replace_settings
from lm.data.examples.counted_pairs import CountedExamples, CountedRows
from lm.data.packing.rows import EvalRows, RowLayout, TrainRows
from lm.data.storing.pair_counts import PairCounts, open_or_count
from lm.data.storing.splits import SplitSource
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.errors import UserError
from lm.evaluation.word_vectors import WordTable
from lm.models.word_vectors.heads import CountScores
from lm.objectives.losses import LossSums
from lm.objectives.word_pairs import count_loss
from lm.tasks.task import Refuse, Stores
from lm.tasks.word_vectors import NO_WORDS, WordVectorTask


class Glove(WordVectorTask):
    """Counts the word pairs of a text once, and fits the logarithms of the counts. A word's two vectors are summed."""

    name = "glove"
    doc = "train word vectors that predict the logarithms of co-occurrence counts (GloVe)"
    metric_names = ("loss",)
    source_title = "second words"
    settings = WordVectorTask.settings | {"objective.count_limit", "objective.count_power"}

    def head(self, config: Config) -> Any:
        return CountScores()

    def resolve(self, config: Config) -> Config:
        """Ranks steps by valid/similarity if eval.word_pairs is set; otherwise, does not rank them.

        The loss cannot rank steps. It compares the model, which fits the counts of the training text, with the counts
        of the evaluated split, so it depends on the size of the split.
        """
        if config.checkpoint.best_metric != "valid/loss":
            return config
        metric = "valid/similarity" if config.eval.word_pairs else ""
        return replace_settings(config, {"checkpoint.best_metric": metric})

    def check(self, config: Config, refuse: Refuse) -> None:
        super().check(config, refuse)
        if sum(each.weight > 0 for each in config.data.train.values()) > 1:
            problem = "GloVe counts the pairs of one text"
            refuse("data.train", f"{problem}; use one data source, whose path may be a glob pattern for several files.")
        if config.train.patience and not config.checkpoint.best_metric:
            refuse("train.patience", "the loss of GloVe cannot rank steps; set eval.word_pairs, or leave this at 0.")
        if config.model.ngram_buckets:
            refuse("model.ngram_buckets", "GloVe has no character n-grams; leave this at 0.")

    def open_store(  # type: ignore[override]
        self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Path
    ) -> PairCounts:
        store, words = super().open_store(source, config, tokenizers, cache), tokenizers.target.text_ids
        is_word_V = np.zeros(tokenizers.target.vocab_size, bool)
        is_word_V[words] = True
        return open_or_count(cache, store, source.label_of_side, is_word_V, config.objective.context_window)

    def batch_settings(self, config: Config) -> list[Any]:
        return [config.objective.context_window]

    def layout(self, config: Config) -> RowLayout:
        return RowLayout(config.data.sequence_length, config.data.sequence_length, real_targets=True)

    def check_train(self, config: Config, where: str, store: Any) -> None:
        super().check_train(config, where, store)
        if not len(store):
            raise UserError(f"{where}: no two words of the vocabulary occur together; add text.")

    def train_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> TrainRows:
        length = config.data.sequence_length
        sources = {name: CountedRows(name, store, config.seed, length) for name, store in stores.items()}
        return TrainRows(config, sources, self.layout(config))

    def eval_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> dict[str, EvalRows]:
        layout = self.layout(config)
        rows = {n: EvalRows(CountedExamples(each, layout.length), layout) for n, each in stores.items() if len(each)}
        if not rows:
            raise UserError(f"config.data: {NO_WORDS}.")
        return rows

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        return count_loss(output, batch, config)

    def word_table(self, config: Config, tokenizer: Tokenizer, params: Mapping[str, Any]) -> WordTable:
        both = (np.asarray(params[name]["embedding"]) for name in ("token_embedding", "output_embedding"))
        return super().word_table(config, tokenizer, {"token_embedding": {"embedding": sum(both)}})

    def preview_target(self, config: Config, tokenizer: Tokenizer, target: Any, position: int) -> str:
        return f"{float(target):.3g}"
