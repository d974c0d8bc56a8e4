"""The evaluator of losses: sums over all rows of a split, each target scored once, and the metrics that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lm.config import ObjectiveConfig
from lm.data.packing.rows import EvalRows
from lm.evaluation.evaluator import HasLoss, Report, choose_rows
from lm.evaluation.metrics import Sums, loss_of
from lm.evaluation.scorer import Scorer

Metrics = Callable[[Sums], dict[str, float]]


class TokenEvaluator:
    """Loss, perplexity, accuracy and the like over all rows of a split.

    Args:
        task: gives the loss; the one reported is the plain cross-entropy, without smoothing or z-loss.
        metrics: sums over the targets -> metrics.
        missing: sums over the targets -> the reason for each metric that the text does not allow; None for no such.
        rows: by source. With several there are metrics for each, `NAME/SOURCE/metric`, and for the whole.
        batch_size: rows at a time, rounded up to what the mesh divides.
        max_rows: score only about this many rows, spread evenly; 0 for all. Then `NAME/rows` gives their number, and
            the bytes and words of the scored part are estimated in proportion to its tokens.
        report: called with (rows done, rows in all) after each batch.

    The forward pass is compiled at the first call and reused by later ones.
    """

    signatures: dict[str, str] = {}  # noqa: RUF012

    def __init__(
        self,
        model: Any,
        rows: Mapping[str, EvalRows],
        task: HasLoss,
        objective: ObjectiveConfig,
        mesh: Mesh,
        metrics: Metrics,
        *,
        missing: Callable[[Sums], dict[str, str]] | None = None,
        batch_size: int,
        name: str = "valid",
        max_rows: int = 0,
        report: Report | None = None,
    ) -> None:
        assert rows, "a split has at least one source"
        self.name = name
        self._rows, self._metrics, self._missing, self._report = dict(rows), metrics, missing, report
        self._row_ids = choose_rows({source: each.num_rows for source, each in rows.items()}, max_rows)
        self._limited = any(len(ids) < rows[source].num_rows for source, ids in self._row_ids.items())
        largest = max(len(ids) for ids in self._row_ids.values())
        self._scorer = Scorer(model, task, objective, mesh, min(batch_size, largest))
        self.batch_size = self._scorer.batch_size

    @classmethod
    def of(cls, setup: Any, task: HasLoss, metrics: Metrics, missing: Any = None) -> TokenEvaluator:
        """Returns the evaluator of a task's `EvaluationSetup`."""
        config = setup.config
        return cls(
            setup.model,
            setup.rows,
            task,
            config.objective,
            setup.mesh,
            metrics,
            missing=missing,
            batch_size=config.eval.batch_size,
            name=setup.name,
            max_rows=setup.max_rows,
            report=setup.report,
        )

    @property
    def num_rows(self) -> int:
        """Rows that an evaluation scores."""
        return sum(len(ids) for ids in self._row_ids.values())

    @property
    def missing(self) -> dict[str, str]:
        """The reason for each metric that the text or the tokenizer do not allow."""
        whole = Sums()
        for rows in self._rows.values():
            whole += _text_of(rows, rows.totals["targets"])
        return {} if self._missing is None else self._missing(whole)

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        """Returns the metrics of the split; see the class. `step` plays no role."""
        result: dict[str, float] = {}
        total, done = Sums(), 0
        for source, rows in self._rows.items():
            row_ids = self._row_ids[source]
            if not len(row_ids):
                continue
            sums = self._source_sums(params, rows, row_ids, done)
            done += len(row_ids)
            if len(row_ids) == rows.num_rows:
                assert sums.weight == rows.totals["targets"], (source, sums.weight, rows.totals)
            total += sums
            if len(self._rows) > 1:
                metrics = self._metrics(sums)
                result |= {f"{self.name}/{source}/{metric}": value for metric, value in metrics.items()}
        result |= {f"{self.name}/{metric}": value for metric, value in self._metrics(total).items()}
        if self._limited:
            result[f"{self.name}/rows"] = float(self.num_rows)
        return result

    def _source_sums(self, params: Any, rows: EvalRows, row_ids: np.ndarray, done: int) -> Sums:
        total = Sums()
        for scored in self._scorer.score(params, rows, row_ids):
            total += loss_of(scored.sums)
            done += len(scored.row_ids)
            if self._report is not None:
                self._report(done, self.num_rows)
        return total + _text_of(rows, total.weight)

    def previews(self, count: int) -> list[tuple[str, ...]]:
        return []

    def write(self, directory: Path, stem: str) -> list[Path]:
        return []


def _text_of(rows: EvalRows, targets: float) -> Sums:
    """Size of the text behind this number of scored targets; exact for all of them, else in proportion."""
    share = targets / rows.totals["targets"] if rows.totals["targets"] else 0.0
    return Sums(bytes=share * rows.totals["bytes"], words=share * rows.totals["words"], unknown=rows.totals["unknown"])
