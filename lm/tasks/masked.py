"""Masked language modelling, with or without next-sentence prediction (Devlin 2019)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lm.batch import Batch, Output
from lm.config import Config, ObjectiveConfig
from lm.data.examples.example import Examples
from lm.data.examples.masked import MaskedExamples, Masking, NextSentenceExamples
from lm.data.packing.rows import RowLayout
from lm.data.tokenizing.base import Tokenizer
from lm.evaluation.row_evaluator import TokenEvaluator
from lm.evaluation.token_metrics import masked_metrics, unigram_entropy
from lm.models.heads import MaskedTokens
from lm.objectives.losses import LossSums, masked_loss
from lm.tasks.task import VOCABULARY, WORDS, EvaluationSetup, Metrics, PackedTask, Refuse, Stores
from lm.tasks.texts import STORING, DocumentTask

MASK = "<mask>"
FOLLOWS = ("other text", "follows")  # shown in the preview at the first token of a pair of texts


class Masked(DocumentTask, PackedTask):
    """Predicts masked tokens and, with objective.next_sentence, whether the second text of a pair follows the first."""

    name = "masked"
    doc = "predict the masked tokens of a text (BERT)"
    families = ("encoder",)
    needed_ids = 1
    ids_advice = "needs a mask token; set extra_ids to 1."
    settings = (
        STORING | VOCABULARY | WORDS | {"objective.noise_density", "objective.whole_words", "objective.next_sentence"}
    )

    def head(self, config: Config) -> Any:
        return MaskedTokens(max_masked=self.max_masked(config), next_sentence=config.objective.next_sentence)

    def max_masked(self, config: Config) -> int:
        """Returns the maximum number of masked tokens per row, which packing never exceeds. 0 means no limit.

        The maximum is slightly above the expected number. If whole words are masked, there is no limit, because the
        number of masked tokens depends on which words are sampled.
        """
        objective, length = config.objective, config.data.sequence_length
        return 0 if objective.whole_words else min(length, 8 * math.ceil(1.1 * objective.noise_density * length / 8))

    def check(self, config: Config, refuse: Refuse) -> None:
        super().check(config, refuse)
        if config.objective.next_sentence and config.data.sequence_length < 16:
            refuse("objective.next_sentence", "rows must have at least 16 tokens; raise data.sequence_length.")

    def metrics(self, config: Config) -> tuple[str, ...]:
        more = ("next_sentence_accuracy",) if config.objective.next_sentence else ()
        return "loss", "mlm_loss", "mlm_accuracy", "perplexity", *more

    def batch_settings(self, config: Config) -> list[Any]:
        return [*super().batch_settings(config), config.objective.whole_words, config.objective.next_sentence]

    def layout(self, config: Config) -> RowLayout:
        types = config.model.token_types > 1
        return RowLayout(config.data.sequence_length, max_masked=self.max_masked(config), with_types=types)

    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> dict[str, Examples]:
        word_starts = tokenizer.word_starts if config.objective.whole_words else None
        masking = Masking(config.objective.noise_density, tokenizer.mask_id, tokenizer.text_ids, word_starts)
        kind = NextSentenceExamples if config.objective.next_sentence else MaskedExamples
        length, special = config.data.sequence_length, tokenizer.special_tokens
        return {name: kind(store, masking, length, special, config.seed, name) for name, store in stores.items()}

    def reason_without_examples(self, config: Config) -> str:
        least = "at least 2 tokens" if config.objective.next_sentence else "any tokens"
        return f"no document has {least}, so there is nothing to train on; add text."

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        return masked_loss(output, batch, config)

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        return [TokenEvaluator(self, setup, masked_metrics)]

    def for_table(self, metrics: Metrics) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if name != "loss" or value != metrics["mlm_loss"]}

    def yardsticks(self, config: Config, stores: Stores, tokenizer: Tokenizer, metrics: Metrics) -> dict[str, float]:
        return {"unigram_entropy": unigram_entropy(stores, tokenizer)}

    def preview_inputs(self, tokenizer: Tokenizer, tokens_L: np.ndarray) -> list[str]:
        mask_id = tokenizer.mask_id
        return [MASK if token == mask_id else tokenizer.piece(int(token)) for token in tokens_L]

    def preview_targets(self, config: Config, tokenizer: Tokenizer, batch: Batch, row: int) -> list[str] | None:
        shown = super().preview_targets(config, tokenizer, batch, row)
        if shown is not None and config.objective.next_sentence:
            for first in np.flatnonzero((batch.positions[row] == 0) & (batch.segments[row] > 0)):
                shown[first] = FOLLOWS[int(batch.targets[row][first])]
        return shown
