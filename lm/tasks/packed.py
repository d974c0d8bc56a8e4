"""The base of tasks whose rows are packed: several examples share a row."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from lm.config import Config
from lm.data.examples.example import Examples
from lm.data.packing.rows import EvalRows, PackedRows, TrainRows
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.tasks.task import Task


class PackedTask(Task):
    """Numbers the examples of each data source and packs them into rows."""

    @abc.abstractmethod
    def examples(
        self, config: Config, tokenizer: Tokenizer, stores: Mapping[str, Any], train: bool
    ) -> Mapping[str, Examples]:
        """Returns the numbered examples of each data source."""

    def reason_without_examples(self, config: Config) -> str:
        """Returns why a data source that is not empty may give no example, and what to do."""
        return "no document has 2 tokens, so there is nothing to train on; give it more text."

    def batch_settings(self, config: Config) -> list[Any]:
        objective = config.objective
        return [
            config.data.source_length,
            config.data.pairs.overlong,
            objective.name,
            objective.noise_density,
            objective.mean_span_length,
            objective.permute_sentences,
        ]

    def train_rows(self, config: Config, tokenizer: Tokenizer, stores: Mapping[str, Any]) -> TrainRows:
        examples = self.examples(config, tokenizer, stores, True)
        for name, each in examples.items():
            if not len(each):
                raise UserError(f"config.data.train.{name}: {self.reason_without_examples(config)}")
        layout = self.layout(config)
        sources = {name: PackedRows(name, each, config.seed, layout) for name, each in examples.items()}
        return TrainRows(config, sources, layout)

    def eval_rows(self, config: Config, tokenizer: Tokenizer, stores: Mapping[str, Any]) -> dict[str, EvalRows]:
        layout, examples = self.layout(config), self.examples(config, tokenizer, stores, False)
        rows = {name: EvalRows(each, layout) for name, each in examples.items() if len(each)}
        if not rows:
            raise UserError(f"config.data: no document of {', '.join(stores)} has the 2 tokens that can be evaluated.")
        return rows
