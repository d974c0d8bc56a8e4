"""What an evaluator is, and what it is made from."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jax.sharding import Mesh

from lm.config import Config
from lm.data.tokenizing.base import Tokenizers

Report = Callable[[int, int], None]  # (done, total), called after each batch
Part = TypeVar("Part")


@dataclass(frozen=True)
class EvaluationSetup:
    """What the evaluators of a split are made from."""

    config: Config
    model: Any  # lm.models.protocol.Model
    mesh: Mesh
    tokenizers: Tokenizers
    rows: Mapping[str, Any]  # EvalRows by data source
    references: Mapping[str, Sequence[Any]]  # pairs whose outputs are scored, by data source; empty for none
    name: str = "valid"
    in_training: bool = False  # score only as much as the config allows during training
    report: Report | None = None

    @property
    def max_rows(self) -> int:
        return self.config.eval.max_rows if self.in_training else 0


class Evaluator(abc.ABC):
    """Scores every example of a split exactly once."""

    name: str  # of the split

    @abc.abstractmethod
    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        """Returns the metrics of these parameters as `NAME/metric`. All processes call it and get the same values."""

    @property
    def missing(self) -> dict[str, str]:
        """The reason for each metric that the data or the tokenizer do not allow."""
        return {}

    @property
    def signatures(self) -> dict[str, str]:
        """How the last evaluation's metrics were computed, for those with several definitions."""
        return {}

    def previews(self, count: int) -> list[tuple[str, ...]]:
        """Returns the last evaluation's first examples: the text, the model's output, and what is right."""
        return []

    def write(self, directory: Path, stem: str) -> list[Path]:
        """Writes the last evaluation's outputs to `STEM.jsonl` and the like; returns the paths. May raise OSError."""
        return []


def choose(sizes: Mapping[str, int], limit: int) -> dict[str, np.ndarray]:
    """Returns indices by data source: all, or about `limit` of them spread evenly, every source in proportion."""
    total = sum(sizes.values())
    if limit == 0 or limit >= total:
        return {source: np.arange(count) for source, count in sizes.items()}
    chosen = {}
    for source, count in sizes.items():
        wanted = min(count, max(1, round(limit * count / total)))
        chosen[source] = np.arange(wanted) * count // max(1, wanted)
    return chosen


def named_metrics(
    name: str, parts: Mapping[str, Part], whole: Part, metrics: Callable[[Part], Mapping[str, float]]
) -> dict[str, float]:
    """Returns `NAME/SOURCE/metric` of the part of each data source, then `NAME/metric` of the whole."""
    prefixed = [*((f"{name}/{source}", part) for source, part in parts.items()), (name, whole)]
    return {f"{prefix}/{metric}": value for prefix, part in prefixed for metric, value in metrics(part).items()}
