"""The declaration of a metric, made once beside the code that computes it; all are in `lm.evaluation.METRICS`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# How values are shown.
points = "{:.2f}".format  # on a scale from 0 to 100
share = "{:.2%}".format  # on a scale from 0 to 1
four_decimals = "{:.4f}".format


@dataclass(frozen=True)
class Metric:
    """Declares a number that evaluations give.

    Attributes:
        name: its key in metrics.jsonl, result files and checkpoint.best_metric, after the name of the split.
        heading: what tables and pictures call it.
        show: makes a text of a value, for example one of the functions above.
        higher_is_better: whether the highest value is the best; otherwise the lowest is.
        drawn: whether the curves of a run show it, in percent.
        recorded: whether the table of results in README.md shows it.
    """

    name: str
    heading: str
    show: Callable[[float], str] = four_decimals
    higher_is_better: bool = False
    drawn: bool = False
    recorded: bool = False

    def percent(self, values: Any) -> Any:
        """Returns values (numbers or arrays) of a metric that is `drawn` in percent."""
        return 100.0 * values if self.show is share else values


def names(metrics: tuple[Metric, ...]) -> tuple[str, ...]:
    return tuple(each.name for each in metrics)


def finite_or_none(value: float) -> float | None:
    """Returns a value for JSON, which has no infinity and no NaN: they are written as null."""
    return value if math.isfinite(value) else None
