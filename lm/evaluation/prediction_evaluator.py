"""The evaluator of labelled tasks: what a model predicts for every example of a split, and how right it is.

Shape letters: E raw examples, T tokens of an example, C labels.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from lm.config import Config
from lm.data.examples.labelled import LabelledExamples
from lm.data.packing.rows import EvalRows
from lm.errors import UserError
from lm.evaluation.evaluator import HasLoss, Report, choose_rows
from lm.evaluation.intervals import Interval, intervals
from lm.evaluation.metrics import Sums, loss_of
from lm.evaluation.scorer import Scorer


class Predictions(abc.ABC):
    """What a model predicts for some raw examples of a task."""

    raw: list[Any]  # the examples

    @abc.abstractmethod
    def metrics(self, indices_E: np.ndarray | None = None) -> dict[str, float]:
        """Returns metrics of all examples, or of those with these indices (some perhaps several times)."""

    @abc.abstractmethod
    def write(self, directory: Path, stem: str) -> list[Path]:
        """Writes `STEM.jsonl`, and perhaps pictures, and returns the paths. May raise OSError."""

    @abc.abstractmethod
    def joined(self, others: Sequence[Any]) -> Predictions:
        """Returns these together with those of other data sources of the same task."""

    @abc.abstractmethod
    def preview(self, index: int) -> tuple[str, ...]:
        """Returns an example, its prediction and what is right, to be printed on one line."""

    def _all_raw(self, others: Sequence[Predictions]) -> list[Any]:
        return [example for each in (self, *others) for example in each.raw]


class PredictsLabels(HasLoss, Protocol):
    """A labelled task, as far as its evaluation needs it."""

    def predict(self, config: Config, examples: Any, logits: Mapping[int, Any]) -> Predictions: ...


class PredictionEvaluator:
    """Metrics of predictions against labels, each example counted once.

    Args:
        rows: by data source. With several there are metrics for each, `NAME/SOURCE/metric`, and for the whole, whose
            predictions are those of all sources together.
        max_rows: score only about this many rows, spread evenly; 0 for all. Examples of which a part lies in another
            row are left out, and `NAME/examples` says how many are scored.
        report: called with (rows done, rows in all) after each batch.

    `loss` is the task's own, without smoothing or class weights. Raises UserError if `max_rows` leaves a source
    without a whole example.
    """

    missing: dict[str, str] = {}  # noqa: RUF012

    def __init__(
        self,
        task: PredictsLabels,
        config: Config,
        model: Any,
        rows: Mapping[str, EvalRows],
        mesh: Mesh,
        *,
        name: str = "valid",
        max_rows: int = 0,
        report: Report | None = None,
    ) -> None:
        self.name = name
        self.predictions: dict[str, Predictions] = {}  # of the last evaluation, by source
        self._task, self._config, self._rows, self._report = task, config, dict(rows), report
        self._row_ids = choose_rows({source: each.num_rows for source, each in rows.items()}, max_rows)
        self._limited = any(len(ids) < rows[source].num_rows for source, ids in self._row_ids.items())
        self._check_limit()
        batch_size = min(config.eval.batch_size, max(len(ids) for ids in self._row_ids.values()))
        self._scorer = Scorer(model, task, config.objective, mesh, batch_size, with_logits=True)
        self.batch_size = self._scorer.batch_size

    def _check_limit(self) -> None:
        for source, rows in self._rows.items() if self._limited else ():
            present = {example for row in self._row_ids[source].tolist() for example, _ in rows.starts(row)}
            if not whole_examples(_labelled(rows), present):
                raise UserError(
                    f"config.eval.max_rows: no example of {source} lies entirely within {len(self._row_ids[source])} "
                    f"of its {rows.num_rows} rows; raise it, or set 0 for all."
                )

    @property
    def num_rows(self) -> int:
        return sum(len(ids) for ids in self._row_ids.values())

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        """Returns the metrics of the split; see the class. `step` plays no role."""
        self.predictions = {}
        result: dict[str, float] = {}
        total, done = Sums(), 0
        for source, rows in self._rows.items():
            sums = Sums()
            logits: dict[int, np.ndarray] = {}
            for scored in self._scorer.score(params, rows, self._row_ids[source]):
                sums += loss_of(scored.sums)
                assert scored.logits_RLC is not None
                logits.update(_by_example(rows, scored.row_ids, scored.logits_RLC))
                done += len(scored.row_ids)
                if self._report is not None:
                    self._report(done, self.num_rows)
            self.predictions[source] = self._task.predict(self._config, rows.examples, logits)
            total += sums
            if len(self._rows) > 1:
                metrics = _with_loss(sums, self.predictions[source].metrics())
                result |= {f"{self.name}/{source}/{metric}": value for metric, value in metrics.items()}
        whole = _with_loss(total, self.whole().metrics())
        result |= {f"{self.name}/{metric}": value for metric, value in whole.items()}
        if self._limited:
            result[f"{self.name}/examples"] = float(len(self.whole().raw))
        return result

    def whole(self) -> Predictions:
        """Returns the predictions of all sources together."""
        first, *others = self.predictions.values()
        return first.joined(others) if others else first

    def intervals(self) -> dict[str, Interval]:
        """Returns the 95 % confidence interval of each metric of the last evaluation, by eval.bootstrap resamples."""
        whole, samples = self.whole(), self._config.eval.bootstrap
        if not samples:
            return {}
        return intervals(whole.metrics, len(whole.raw), samples=samples, seed=self._config.seed)

    @property
    def signatures(self) -> dict[str, str]:
        from lm.reporting.table import heading, show

        found = [
            f"{heading(name)} {show(name, low)} to {show(name, high)}" for name, (low, high) in self.intervals().items()
        ]
        return {"95 % intervals": ", ".join(found)} if found else {}

    def previews(self, count: int) -> list[tuple[str, ...]]:
        whole = self.whole()
        return [whole.preview(index) for index in range(min(count, len(whole.raw)))]

    def write(self, directory: Path, stem: str) -> list[Path]:
        return self.whole().write(directory, stem)


def whole_examples(examples: LabelledExamples, present: Container[int]) -> dict[int, list[int]]:
    """Returns the raw examples all of whose parts are present, in order, with the numbers of their parts."""
    of_raw: dict[int, list[int]] = {}
    for number, raw in enumerate(examples.example_of.tolist()):
        of_raw.setdefault(raw, []).append(number)
    return {raw: numbers for raw, numbers in of_raw.items() if all(number in present for number in numbers)}


def _labelled(rows: EvalRows) -> LabelledExamples:
    assert isinstance(rows.examples, LabelledExamples), rows.examples
    return rows.examples


def _with_loss(sums: Sums, metrics: dict[str, float]) -> dict[str, float]:
    return {"loss": sums.nll / sums.weight if sums.weight else math.nan, **metrics}


def _by_example(rows: EvalRows, row_ids: np.ndarray, logits_RLC: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    sizes = rows.examples.sizes(0)[0]
    for row, logits_LC in zip(row_ids.tolist(), logits_RLC, strict=True):
        for example, first in rows.starts(row):
            yield example, logits_LC[first : first + int(sizes[example])].copy()
