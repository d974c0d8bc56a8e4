"""The evaluator of losses: sums over all rows of a split, each target scored once, and the metrics that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lm.data.packing.rows import EvalRows
from lm.evaluation.evaluator import EvaluationSetup
from lm.evaluation.row_evaluator import HasLoss, RowEvaluator, Scored
from lm.evaluation.token_metrics import Sums


class TokenEvaluator(RowEvaluator):
    """Loss, perplexity, accuracy and the like.

    If not all rows are scored, the bytes and words of their text are estimated in proportion to its tokens.

    Args:
        metrics: sums over the targets -> metrics.
        missing: sums over the targets -> the reason for each metric that the text does not allow.
    """

    def __init__(
        self,
        task: HasLoss,
        setup: EvaluationSetup,
        metrics: Callable[[Sums], dict[str, float]],
        missing: Callable[[Sums], dict[str, str]] = lambda _: {},
    ) -> None:
        super().__init__(task, setup)
        self._metrics_of, self._missing_of = metrics, missing

    @property
    def missing(self) -> dict[str, str]:
        return self._missing_of(self._combine([_text(rows, rows.totals["targets"]) for rows in self._rows.values()]))

    def _collect(self, source: str, batches: Iterator[Scored]) -> Sums:
        sums, rows = self._combine([each.sums for each in batches]), self._rows[source]
        if len(self._row_ids[source]) == rows.num_rows:
            assert sums.weight == rows.totals["targets"], (source, sums.weight, rows.totals)
        return sums + _text(rows, sums.weight)

    def _combine(self, parts: list[Sums]) -> Sums:
        return sum(parts, Sums())

    def _metrics(self, part: Sums) -> dict[str, float]:
        return self._metrics_of(part)


def _text(rows: EvalRows, targets: float) -> Sums:
    """Returns the size of the text of this number of scored targets; exact for all of them, else in proportion."""
    share = targets / rows.totals["targets"] if rows.totals["targets"] else 0.0
    return Sums(bytes=share * rows.totals["bytes"], words=share * rows.totals["words"], unknown=rows.totals["unknown"])
