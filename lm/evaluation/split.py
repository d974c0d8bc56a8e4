"""All that is measured on one split: the loss of its tokens and, if asked for, the scores of generated outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from lm.config import Config
from lm.data.pairs import Pair
from lm.data.tokenizers import Tokenizer
from lm.evaluation.evaluators import LanguageModelling
from lm.evaluation.generation import Generation
from lm.evaluation.predictions import Example
from lm.models.transformer import Model
from lm.rows import AnyEvalRows

# Of text that follows from a source, or was corrupted, these say nothing.
OF_PLAIN_TEXT = ("bits_per_byte", "word_perplexity")


class SplitEvaluation:
    """An Evaluator (see `evaluators`) made of those that the config asks for.

    Args:
        rows: as `lm.rows.eval_rows` gives them.
        pairs: by data source, what outputs are made of and scored against; empty for no scores.
        in_training: only so many rows and examples as the config allows then, with its beams for that time.
        report: told (done, all) after each batch.
    """

    def __init__(
        self,
        config: Config,
        model: Model,
        mesh: Mesh,
        tokenizer: Tokenizer,
        source_tokenizer: Tokenizer,
        rows: Mapping[str, AnyEvalRows],
        pairs: Mapping[str, Sequence[Pair]],
        *,
        name: str = "valid",
        in_training: bool = False,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        self.name = name
        self._plain = config.objective.name == "causal"
        self._loss = LanguageModelling(
            model,
            rows,
            config.objective,
            mesh,
            batch_size=config.eval.batch_size,
            name=name,
            max_rows=config.eval.max_rows if in_training else 0,
            report=report,
        )
        self._generation: Generation | None = None
        if pairs:
            settings = config.eval.generation
            if in_training:
                settings = dataclasses.replace(settings, num_beams=settings.training_beams)
            self._generation = Generation(
                model,
                tokenizer,
                source_tokenizer,
                pairs,
                settings,
                mesh,
                source_length=config.data.source_length,
                name=name,
                max_examples=settings.max_examples if in_training else 0,
                report=report,
            )

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        values = self._loss.evaluate(params, step)
        if not self._plain:
            values = {name: value for name, value in values.items() if name.rpartition("/")[2] not in OF_PLAIN_TEXT}
        if self._generation is not None:
            values |= self._generation.evaluate(params, step)
        return values

    def for_table(self, values: Mapping[str, float]) -> dict[str, float]:
        """Figures by their plain names. The loss of a target that has a source is called its nll."""
        plain = {name.removeprefix(f"{self.name}/"): value for name, value in values.items()}
        if self._plain:
            return plain
        return {name.removesuffix("loss") + "nll" if name.endswith("loss") else name: plain[name] for name in plain}

    @property
    def missing(self) -> dict[str, str]:
        """Figures that plain text should have and this one cannot, each with the reason."""
        return self._loss.missing if self._plain else {}

    @property
    def num_rows(self) -> int:
        return self._loss.num_rows

    @property
    def batch_size(self) -> int:
        return self._loss.batch_size

    @property
    def signatures(self) -> dict[str, str]:
        """Of the last evaluation's scores, by metric."""
        return {} if self._generation is None else self._generation.signatures

    @property
    def examples(self) -> list[Example]:
        """The last evaluation's outputs, in the order of the pairs."""
        return [] if self._generation is None else self._generation.examples
