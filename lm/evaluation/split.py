"""All evaluators of one split as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.evaluation.evaluator import Evaluator


class SplitEvaluation(Evaluator):
    """An evaluator made of several; the first is a RowEvaluator and gives the loss."""

    def __init__(self, name: str, evaluators: Sequence[Any]) -> None:
        self.name = name
        self._evaluators: Sequence[Evaluator] = evaluators
        self._loss = evaluators[0]

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        return {name: value for each in self._evaluators for name, value in each.evaluate(params, step).items()}

    def plain(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns metrics without the name of the split."""
        return {name.removeprefix(f"{self.name}/"): value for name, value in values.items()}

    @property
    def num_rows(self) -> int:
        return self._loss.num_rows

    @property
    def batch_size(self) -> int:
        return self._loss.batch_size

    @property
    def missing(self) -> dict[str, str]:
        return {name: reason for each in self._evaluators for name, reason in each.missing.items()}

    @property
    def signatures(self) -> dict[str, str]:
        return {name: text for each in self._evaluators for name, text in each.signatures.items()}

    def previews(self, count: int) -> list[tuple[str, ...]]:
        return [preview for each in self._evaluators for preview in each.previews(count)][:count]

    def write(self, directory: Path, stem: str) -> list[Path]:
        return [path for each in self._evaluators for path in each.write(directory, stem)]
