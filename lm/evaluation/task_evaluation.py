"""The evaluator of a task with labels: what the model says of every example of a split, and how right it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lm.config import Config
from lm.data.packing.piece_rows import TaskEvalRows
from lm.errors import UserError
from lm.evaluation.evaluators import choose_rows, loss_of
from lm.evaluation.intervals import Interval, intervals
from lm.evaluation.metrics import Sums
from lm.evaluation.scorer import Scorer
from lm.evaluation.tagging import scheme_of
from lm.evaluation.tasks import Predictions, predict, whole_examples
from lm.models.transformer.wiring import Model


class TaskEvaluation:
    """Figures of predictions against labels, each example counted once.

    Args:
        rows: by data source. With several there are figures for each, `NAME/SOURCE/figure`, and of the whole,
            whose predictions are those of all sources together.
        max_rows: score only about so many rows, spread evenly; 0 for all. Examples of which a part lies in
            another row are left out, and `NAME/examples` says how many were left in.
        report: told (rows done, rows in all) after each batch.

    `loss` is the objective's, without smoothing or class weights.

    Raises UserError if `max_rows` leaves a source without a whole example, or if checkpoint.best_metric is of
    entities and the tags know none.
    """

    def __init__(
        self,
        config: Config,
        model: Model,
        rows: Mapping[str, TaskEvalRows],
        mesh: Mesh,
        *,
        name: str = "valid",
        max_rows: int = 0,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        self.name = name
        self.predictions: dict[str, Predictions] = {}  # of the last evaluation, by source
        self._config, self._rows, self._report = config, dict(rows), report
        self._row_ids = choose_rows({source: each.num_rows for source, each in rows.items()}, max_rows)
        self._limited = any(len(ids) < rows[source].num_rows for source, ids in self._row_ids.items())
        self._check()
        batch_size = min(config.eval.batch_size, max(len(ids) for ids in self._row_ids.values()))
        self._scorer = Scorer(model, config.objective, mesh, batch_size, with_logits=True)
        self.batch_size = self._scorer.batch_size

    def _check(self) -> None:
        config = self._config
        metric = config.checkpoint.best_metric
        if config.objective.name == "tagging" and "/entity_" in metric and not scheme_of(config.data.labels):
            raise UserError(
                f"config.checkpoint.best_metric: {metric!r} is not measured, for the tags ({config.data.labels[0]!r}, "
                "...) follow no scheme of entities, such as BIO; take 'valid/token_accuracy'."
            )
        for source, rows in self._rows.items() if self._limited else ():
            present = {piece for row in self._row_ids[source].tolist() for piece, _ in rows.places(row)}
            if not whole_examples(rows.pieces, present):
                raise UserError(
                    f"config.eval.max_rows: no example of {source} lies whole in {len(self._row_ids[source])} of its "
                    f"{rows.num_rows} rows; raise it, or set 0 for all."
                )

    @property
    def num_rows(self) -> int:
        return sum(len(ids) for ids in self._row_ids.values())

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        """Figures of the split; see the class. `step` plays no part."""
        self.predictions = {}
        result: dict[str, float] = {}
        total, done = Sums(), 0
        for source, rows in self._rows.items():
            sums = Sums()
            logits: dict[int, np.ndarray] = {}
            for scored in self._scorer.score(params, rows, self._row_ids[source]):
                sums += loss_of(scored.sums)
                assert scored.logits_RLC is not None
                logits.update(_by_piece(rows, scored.row_ids, scored.logits_RLC))
                done += len(scored.row_ids)
                if self._report is not None:
                    self._report(done, self.num_rows)
            self.predictions[source] = predict(self._config, rows.pieces, logits)
            total += sums
            if len(self._rows) > 1:
                figures = self._with_loss(sums, self.predictions[source].figures())
                result |= {f"{self.name}/{source}/{figure}": value for figure, value in figures.items()}
        whole = self._with_loss(total, self.whole().figures())
        result |= {f"{self.name}/{figure}": value for figure, value in whole.items()}
        if self._limited:
            result[f"{self.name}/examples"] = float(len(self.whole().raw))
        return result

    def whole(self) -> Predictions:
        """Those of all sources together."""
        first, *others = self.predictions.values()
        return first.joined(others) if others else first

    def intervals(self) -> dict[str, Interval]:
        """95 % confidence of each figure of the last evaluation, by the bootstrap that eval.bootstrap asks for."""
        whole, samples = self.whole(), self._config.eval.bootstrap
        if not samples:
            return {}
        return intervals(whole.figures, len(whole.raw), samples=samples, seed=self._config.seed)

    def write(self, directory: Path, stem: str) -> list[Path]:
        """Writes the predictions of the last evaluation, and pictures of them. May raise OSError."""
        return self.whole().write(directory, stem)

    @staticmethod
    def _with_loss(sums: Sums, figures: dict[str, float]) -> dict[str, float]:
        return {"loss": sums.nll / sums.weight if sums.weight else math.nan, **figures}


def _by_piece(rows: TaskEvalRows, row_ids: np.ndarray, logits_RLC: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    sizes = rows.pieces.sizes(0)
    for row, logits_LC in zip(row_ids.tolist(), logits_RLC, strict=True):
        for piece, first in rows.places(row):
            yield piece, logits_LC[first : first + int(sizes[piece])].copy()
