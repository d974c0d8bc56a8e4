"""Contrastive learning of text embeddings: the model learns similar vectors for paired texts."""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import Any

from lm.batch import Array, Batch, Output
from lm.config import Config, ObjectiveConfig
from lm.data.examples.example import Examples
from lm.data.examples.pairs import PairedTexts
from lm.data.packing.rows import EvalRows, TrainRows
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.evaluation.row_evaluator import TokenEvaluator
from lm.evaluation.token_metrics import contrastive_metrics
from lm.models.heads import TextEmbedding
from lm.objectives.losses import LossSums, contrastive_loss, row_weight
from lm.tasks.classification import check_pooling
from lm.tasks.task import EvaluationSetup, Refuse, Stores
from lm.tasks.texts import PairTask
from lm.tasks.vectors import TextVectors


class Contrastive(PairTask):
    """Encodes both texts of a pair with the same model. The other pairs in the batch provide the negatives."""

    name = "contrastive"
    doc = "learn similar vectors for paired texts"
    families = ("decoder", "encoder")
    metric_names = ("loss", "accuracy")
    settings = PairTask.settings | {"model.pooling", "objective.temperature"}
    counts_examples = True
    source_title = "positive"

    def resolve(self, config: Config) -> Config:
        data = dataclasses.replace(config.data, source_length=config.data.sequence_length)
        return dataclasses.replace(config, data=data)

    def head(self, config: Config) -> Any:
        return TextEmbedding(config.model.pooling)

    def check(self, config: Config, refuse: Refuse) -> None:
        super().check(config, refuse)
        check_pooling(config, refuse)
        if config.train.accumulation > 1:
            refuse("train.accumulation", "texts are compared across the batch; set accumulation to 1 to keep it whole.")
        for setting in ("train.batch_size", "eval.batch_size", "eval.max_rows"):
            if attrgetter(setting)(config) == 1:
                refuse(
                    setting,
                    "a text that is alone in its batch cannot be compared with other texts; use a value of 2 or more.",
                )

    def train_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> TrainRows:
        _check_several(stores, "config.data.train")
        return super().train_rows(config, tokenizer, stores)

    def eval_rows(self, config: Config, tokenizer: Tokenizer, stores: Stores) -> dict[str, EvalRows]:
        _check_several(stores, "config.data: the evaluation data")
        return super().eval_rows(config, tokenizer, stores)

    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> dict[str, Examples]:
        return {name: PairedTexts(store, config.data.sequence_length) for name, store in stores.items()}

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        return contrastive_loss(output.embedding, output.paired_embedding, batch, config.temperature)

    def total_weight(self, batch: Batch) -> Array:
        return row_weight(batch)

    def labeller(self, config: Config) -> TextVectors:
        """Returns the labeller that computes the same vectors as in training."""
        return TextVectors.of(self, config, config.model.pooling, unit_length=True)

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        return [TokenEvaluator(self, setup, contrastive_metrics)]

    def preview_targets(self, config: Config, tokenizer: Tokenizer, batch: Batch, row: int) -> list[str] | None:
        return None


def _check_several(stores: Stores, where: str) -> None:
    """Raises UserError if there is only one pair, because texts are compared with the texts of other pairs."""
    if sum(store.target.num_documents for store in stores.values()) < 2:
        raise UserError(f"{where} has only one pair, so its texts cannot be compared with other texts; add pairs.")
