"""Evaluators: named plug-ins that training and eval.py run alike, `evaluate(params, step) -> figures`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from lm.config import ObjectiveConfig
from lm.evaluation.metrics import Sums, contrastive_figures, figures, masked_figures, missing_figures
from lm.evaluation.scorer import Scorer
from lm.models.transformer.wiring import Model
from lm.objectives.cross_entropy import LossSums
from lm.rows import AnyEvalRows


class Evaluator(Protocol):
    """What the training loop and eval.py ask of any evaluator."""

    name: str

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        """Figures of these parameters, as `NAME/figure`. Every process calls it and gets the same."""
        ...


class LanguageModelling:
    """Loss, perplexity, bits per byte and accuracy over all rows of a split, each token scored once.

    Args:
        rows: by source. With several there are figures for each, `NAME/SOURCE/figure`, and of the whole.
        objective: the loss reported is the plain cross-entropy, without smoothing or z-loss.
        batch_size: rows at a time, rounded up to what the mesh divides.
        max_rows: score only so many, spread evenly; 0 for all. Then `NAME/rows` says how many there were,
            and the bytes and words of the scored part are taken in proportion to its tokens.
        report: told (rows done, rows in all) after each batch.

    The forward pass is compiled at the first call and reused by later ones.
    """

    def __init__(
        self,
        model: Model,
        rows: Mapping[str, AnyEvalRows],
        objective: ObjectiveConfig,
        mesh: Mesh,
        *,
        batch_size: int,
        name: str = "valid",
        max_rows: int = 0,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        assert rows, "a split has at least one source"
        self.name = name
        self._rows, self._report = dict(rows), report
        self._figures = {"masked": masked_figures, "contrastive": contrastive_figures}.get(objective.name, figures)
        self._row_ids = choose_rows({source: each.num_rows for source, each in rows.items()}, max_rows)
        self._limited = any(len(ids) < rows[source].num_rows for source, ids in self._row_ids.items())
        largest = max(len(ids) for ids in self._row_ids.values())
        self._scorer = Scorer(model, objective, mesh, min(batch_size, largest))
        self.batch_size = self._scorer.batch_size

    @property
    def num_rows(self) -> int:
        """Rows that an evaluation scores."""
        return sum(len(ids) for ids in self._row_ids.values())

    @property
    def missing(self) -> dict[str, str]:
        """Figures that the text or the tokenizer do not allow, each with the reason."""
        whole = Sums()
        for rows in self._rows.values():
            whole += _text_of(rows, rows.totals["targets"])
        return missing_figures(whole)

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        """Figures of the split; see the class. `step` plays no part: all of the split is scored each time."""
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
                result |= {f"{self.name}/{source}/{figure}": value for figure, value in self._figures(sums).items()}
        result |= {f"{self.name}/{figure}": value for figure, value in self._figures(total).items()}
        if self._limited:
            result[f"{self.name}/rows"] = float(self.num_rows)
        return result

    def _source_sums(self, params: Any, rows: AnyEvalRows, row_ids: np.ndarray, done: int) -> Sums:
        total = Sums()
        for scored in self._scorer.score(params, rows, row_ids):
            total += loss_of(scored.sums)
            done += len(scored.row_ids)
            if self._report is not None:
                self._report(done, self.num_rows)
        return total + _text_of(rows, total.weight)


def loss_of(sums: LossSums) -> Sums:
    """The part of Sums that a model's loss gives."""
    names = ("nll", "correct", "weight", "pair_nll", "pair_correct", "pairs")
    return Sums(**{name: float(getattr(sums, name)) for name in names})


def _text_of(rows: AnyEvalRows, targets: float) -> Sums:
    """Size of the text behind `targets` scored tokens; exact for all of them, else in proportion."""
    share = targets / rows.totals["targets"] if rows.totals["targets"] else 0.0
    return Sums(bytes=share * rows.totals["bytes"], words=share * rows.totals["words"], unknown=rows.totals["unknown"])


def choose_rows(num_rows: Mapping[str, int], max_rows: int) -> dict[str, np.ndarray]:
    """Row ids by source: all, or about `max_rows` of them spread evenly, every source in proportion."""
    total = sum(num_rows.values())
    if max_rows == 0 or max_rows >= total:
        return {source: np.arange(count) for source, count in num_rows.items()}
    chosen = {}
    for source, count in num_rows.items():
        wanted = min(count, max(1, round(max_rows * count / total)))
        chosen[source] = np.arange(wanted) * count // max(1, wanted)
    return chosen
