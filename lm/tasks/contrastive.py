"""Contrastive learning of text embeddings: the model learns similar vectors for paired texts."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import jax.numpy as jnp

from lm.batch import Array, Batch, Output
from lm.config import Config, ObjectiveConfig
from lm.config.experiment import replace_settings
from lm.data.examples.example import Examples
from lm.data.examples.pairs import PairedTexts
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.evaluation.row_evaluator import TokenEvaluator
from lm.evaluation.token_metrics import contrastive_metrics
from lm.models.heads import TextEmbedding
from lm.objectives.losses import LossSums, contrastive_loss, real_rows
from lm.tasks.task import WORDS, EvaluationSetup, Refuse, Stores
from lm.tasks.texts import PairTask
from lm.tasks.vectors import TextVectors


class Contrastive(PairTask):
    """Encodes both texts of a pair with the same model. The other pairs in the batch provide the negatives."""

    name = "contrastive"
    doc = "learn similar vectors for paired texts"
    families = ("decoder", "encoder")
    metric_names = ("loss", "accuracy")
    settings = PairTask.settings | WORDS | {"model.pooling", "objective.temperature"}
    counts_examples = True
    labels_texts = True
    source_title = "positive"

    def resolve(self, config: Config) -> Config:
        return replace_settings(config, {"data.source_length": config.data.sequence_length})

    def head(self, config: Config) -> Any:
        return TextEmbedding(config.model.pooling)

    def check(self, config: Config, refuse: Refuse) -> None:
        super().check(config, refuse)
        if config.train.accumulation > 1:
            refuse("train.accumulation", "texts are compared across the batch, which must not be split; set this to 1.")
        for setting in ("train.batch_size", "eval.batch_size", "eval.max_rows"):
            if attrgetter(setting)(config) == 1:
                message = "a text that is alone in its batch cannot be compared with other texts; use 2 or more."
                refuse(setting, message)

    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> dict[str, Examples]:
        if sum(store.target.num_documents for store in stores.values()) < 2:
            where = "config.data.train" if train else "config.data: the evaluation data"
            raise UserError(f"{where} has only one pair, so its texts cannot be compared with other texts; add pairs.")
        length, special = config.data.sequence_length, tokenizer.special_tokens
        return {name: PairedTexts(store, length, special) for name, store in stores.items()}

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        return contrastive_loss(output.embedding, output.paired_embedding, batch, config.temperature)

    def total_weight(self, batch: Batch) -> Array:
        return jnp.maximum(jnp.sum(real_rows(batch)), 1.0)

    def labeller(self, config: Config) -> TextVectors:
        """Returns a `Labeller` that computes vectors in the same way as training does."""
        return TextVectors.of(self, config, config.model.pooling, unit_length=True)

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        return [TokenEvaluator(self, setup, contrastive_metrics)]

    def preview_targets(self, config: Config, tokenizer: Tokenizer, batch: Batch, row: int) -> list[str] | None:
        return None
