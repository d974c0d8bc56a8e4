"""What training and eval.py ask of an evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lm.batch import Batch, Output
from lm.config import ObjectiveConfig
from lm.objectives.cross_entropy import LossSums

Report = Callable[[int, int], None]  # (done, total), called after each batch


class Evaluator(Protocol):
    """Scores every example of a split exactly once."""

    name: str

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        """Returns the metrics of these parameters as `NAME/metric`. All processes call it and get the same values."""
        ...

    @property
    def missing(self) -> dict[str, str]:
        """The reason for each metric that the data or the tokenizer do not allow."""
        ...

    @property
    def signatures(self) -> dict[str, str]:
        """How the last evaluation's metrics were computed, for those with several definitions."""
        ...

    def previews(self, count: int) -> list[tuple[str, ...]]:
        """Returns the last evaluation's first examples: the text, what the model made of it, and what is right."""
        ...

    def write(self, directory: Path, stem: str) -> list[Path]:
        """Writes the last evaluation's outputs to `STEM.jsonl` and the like; returns the paths. May raise OSError."""
        ...


class RowEvaluator(Evaluator, Protocol):
    """An evaluator that runs the model over rows."""

    @property
    def num_rows(self) -> int:
        """Rows that an evaluation scores."""
        ...

    @property
    def batch_size(self) -> int: ...


class HasLoss(Protocol):
    """A task, as far as scoring a batch needs it. Hashable: compiled programs are shared by task."""

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums: ...


def choose_rows(num_rows: Mapping[str, int], max_rows: int) -> dict[str, np.ndarray]:
    """Returns row ids by source: all, or about `max_rows` of them spread evenly, every source in proportion."""
    total = sum(num_rows.values())
    if max_rows == 0 or max_rows >= total:
        return {source: np.arange(count) for source, count in num_rows.items()}
    chosen = {}
    for source, count in num_rows.items():
        wanted = min(count, max(1, round(max_rows * count / total)))
        chosen[source] = np.arange(wanted) * count // max(1, wanted)
    return chosen
