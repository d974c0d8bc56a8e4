"""All that is measured on one split: the loss and, by task, predictions against labels or scores of outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from lm.config import LABELLED, Config
from lm.data.packing.piece_rows import TaskEvalRows
from lm.data.reading.pairs import Pair
from lm.data.tokenizing.tokenizers import Tokenizer
from lm.evaluation.evaluators import LanguageModelling
from lm.evaluation.generation import Generation
from lm.evaluation.predictions import write_predictions
from lm.evaluation.task_evaluation import TaskEvaluation
from lm.models.transformer.wiring import Model
from lm.reporting.table import heading, show
from lm.rows import AnyEvalRows

# Of text that follows from a source, or was corrupted, these say nothing.
OF_PLAIN_TEXT = ("bits_per_byte", "word_perplexity")
WITH_SOURCE = ("seq2seq", "span_corruption", "ul2", "infilling", "prefix_lm")


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
        self._objective = config.objective.name
        max_rows = config.eval.max_rows if in_training else 0
        self._task: TaskEvaluation | None = None
        self._loss: TaskEvaluation | LanguageModelling
        if self._objective in LABELLED:
            labelled = {source: each for source, each in rows.items() if isinstance(each, TaskEvalRows)}
            self._task = TaskEvaluation(config, model, labelled, mesh, name=name, max_rows=max_rows, report=report)
            self._loss = self._task
        else:
            size = config.eval.batch_size
            self._loss = LanguageModelling(
                model, rows, config.objective, mesh, batch_size=size, name=name, max_rows=max_rows, report=report
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
        if self._objective != "causal":
            values = {name: value for name, value in values.items() if name.rpartition("/")[2] not in OF_PLAIN_TEXT}
        if self._generation is not None:
            values |= self._generation.evaluate(params, step)
        return values

    def for_table(self, values: Mapping[str, float]) -> dict[str, float]:
        """Figures by their plain names. The loss of a target that has a source is its nll, a task's is task_loss."""
        plain = {name.removeprefix(f"{self.name}/"): value for name, value in values.items()}
        if self._objective == "masked" and plain["loss"] == plain["mlm_loss"]:
            del plain["loss"]
        called = "task_loss" if self._task is not None else "nll" if self._objective in WITH_SOURCE else "loss"
        return {name.removesuffix("loss") + called if _is_loss(name) else name: plain[name] for name in plain}

    @property
    def missing(self) -> dict[str, str]:
        """Figures that plain text should have and this one cannot, each with the reason."""
        return self._loss.missing if isinstance(self._loss, LanguageModelling) and self._objective == "causal" else {}

    @property
    def num_rows(self) -> int:
        return self._loss.num_rows

    @property
    def batch_size(self) -> int:
        return self._loss.batch_size

    @property
    def signatures(self) -> dict[str, str]:
        """How the last evaluation's scores were made, and how sure they are; by figure."""
        if self._task is not None:
            found = [
                f"{heading(name)} {show(name, low)} to {show(name, high)}"
                for name, (low, high) in self._task.intervals().items()
            ]
            return {"95 % intervals": ", ".join(found)} if found else {}
        return {} if self._generation is None else self._generation.signatures

    def told(self, count: int) -> list[tuple[str, ...]]:
        """Of the last evaluation's first examples: the text, what the model made of it, and what is right."""
        if self._task is not None:
            whole = self._task.whole()
            return [whole.told(index) for index in range(min(count, len(whole.raw)))]
        examples = [] if self._generation is None else self._generation.examples
        return [(each.source, each.prediction, each.references[0]) for each in examples[:count]]

    def write(self, directory: Path, stem: str) -> list[Path]:
        """Writes `STEM.jsonl` with the last evaluation's outputs, if there are any. May raise OSError."""
        if self._task is not None:
            return self._task.write(directory, stem)
        if self._generation is None:
            return []
        path = directory / f"{stem}.jsonl"
        write_predictions(path, self._generation.examples)
        return [path]


def _is_loss(name: str) -> bool:
    return name.rpartition("/")[2] == "loss"
