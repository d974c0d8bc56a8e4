"""The interface of evaluators, and a class that combines all evaluators of a split."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from lm.batch import Batch
from lm.config import Config
from lm.data.tokenizing.base import Tokenizers

Report = Callable[..., None]  # called after each batch as report(done, total) or report(done, total, noun=noun)


class EvaluationRows(Protocol):
    """The rows of a data source that an evaluation scores: `EvalRows` or `StatefulEvalRows`."""

    @property
    def examples(self) -> Any: ...

    @property
    def num_rows(self) -> int: ...

    @property
    def totals(self) -> dict[str, int]:
        """The divisors of metrics: the number of `targets` with a positive weight, and text counts such as `bytes`."""

    def rows(self, row_ids: Sequence[int]) -> Batch:
        """Returns the rows with the given ids, in that order, as NumPy arrays. An id past the end gives padding."""


@dataclass(frozen=True)
class EvaluationSetup:
    """The model, data and settings from which the evaluators of a split are built."""

    config: Config
    model: Any  # lm.models.protocol.Model
    mesh: Mesh
    tokenizers: Tokenizers
    rows: Mapping[str, EvaluationRows]  # the rows of each data source
    references: Mapping[str, Sequence[Any]]  # the pairs to score for each data source; may be empty
    name: str = "valid"
    in_training: bool = False  # whether to apply the config's limits for evaluations during training


class Evaluator(abc.ABC):
    """Scores every example of a split exactly once."""

    name: str  # the name of the split
    undefined: Set[str] = frozenset()  # the metrics that were NaN in the last evaluation because there were no targets

    @abc.abstractmethod
    def evaluate(self, params: Any, step: int, report: Report | None = None) -> dict[str, float]:
        """Evaluates the model with the given parameters. Returns the metrics, keyed by `NAME/metric`.

        All processes must call this method. The result is the same in every process.
        """

    @property
    def missing(self) -> dict[str, str]:
        """Returns the metrics that cannot be computed from the data, each with the reason."""
        return {}

    @property
    def signatures(self) -> dict[str, str]:
        """Returns the definition used in the last evaluation for each metric that can be defined in several ways."""
        return {}

    def previews(self, count: int) -> list[dict[str, str]]:
        """Returns the first `count` examples of the last evaluation: input, output and reference, keyed by name."""
        return []

    def write(self, directory: Path, stem: str) -> list[Path]:
        """Writes the last evaluation's outputs to files such as `STEM.jsonl`. Returns the paths. May raise OSError."""
        return []


class SplitEvaluation(Evaluator):
    """Combines the evaluators of a split. The first one must be a RowEvaluator, which determines the batch size."""

    def __init__(self, name: str, evaluators: Sequence[Any]) -> None:
        self.name, self._evaluators = name, evaluators
        self.num_rows, self.batch_size = evaluators[0].num_rows, evaluators[0].batch_size

    def evaluate(self, params: Any, step: int, report: Report | None = None) -> dict[str, float]:
        return {name: value for each in self._evaluators for name, value in each.evaluate(params, step, report).items()}

    def plain(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics that are defined, keyed by names without the split, for display in tables."""
        undefined = {f"{self.name}/{name}" for each in self._evaluators for name in each.undefined}
        return {name.removeprefix(f"{self.name}/"): each for name, each in values.items() if name not in undefined}

    @property
    def missing(self) -> dict[str, str]:
        return {name: reason for each in self._evaluators for name, reason in each.missing.items()}

    @property
    def signatures(self) -> dict[str, str]:
        return {name: text for each in self._evaluators for name, text in each.signatures.items()}

    def previews(self, count: int) -> list[dict[str, str]]:
        return [preview for each in self._evaluators for preview in each.previews(count)][:count]

    def write(self, directory: Path, stem: str) -> list[Path]:
        return [path for each in self._evaluators for path in each.write(directory, stem)]


def choose(sizes: Mapping[str, int], limit: int) -> dict[str, np.ndarray]:
    """Chooses about `limit` items in total, or all items if `limit` is 0.

    Returns the indices of the chosen items of each data source. The items of a data source are evenly spaced, and their
    number is proportional to the size of the data source.
    """
    total = max(1, sum(sizes.values()))
    limit = min(limit or total, total)
    wanted = {source: min(count, max(1, round(limit * count / total))) for source, count in sizes.items()}
    return {source: np.arange(wanted[source]) * count // max(1, wanted[source]) for source, count in sizes.items()}


def named_metrics(
    name: str, parts: Mapping[str, Any], whole: Any, metrics: Callable[[Any], Mapping[str, float]]
) -> dict[str, float]:
    """Computes `NAME/SOURCE/metric` for each data source, then `NAME/metric` for the whole split."""
    prefixed = [*((f"{name}/{source}", part) for source, part in parts.items()), (name, whole)]
    return {f"{prefix}/{metric}": value for prefix, part in prefixed for metric, value in metrics(part).items()}
