"""The declaration of a metric, which stands beside the code that computes it; `lm.evaluation.METRICS` has all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Formats of values.
points = "{:.2f}".format  # from 0 to 100
share = "{:.2%}".format  # from 0 to 1


@dataclass(frozen=True)
class Metric:
    """The declaration of a number that evaluations compute.

    Attributes:
        name: its key in metrics.jsonl, result files and checkpoint.best_metric, after the name of the split.
        heading: its name in tables and pictures.
        show: formats a value, for example one of the functions above.
        higher_is_better: whether the best value is the highest; otherwise it is the lowest.
        drawn: whether the curves of a run show it, in percent.
        recorded: whether the table of results in README.md shows it.
    """

    name: str
    heading: str
    show: Callable[[float], str] = "{:.4f}".format
    higher_is_better: bool = False
    drawn: bool = False
    recorded: bool = False

    def percent(self, values: Any) -> Any:
        """Returns values (numbers or arrays) of a `drawn` metric in percent."""
        return 100.0 * values if self.show is share else values


def names(metrics: tuple[Metric, ...]) -> tuple[str, ...]:
    return tuple(each.name for each in metrics)


def finite_or_none(value: float) -> float | None:
    """Returns a value for JSON, which has no infinity and no NaN; None is written as null."""
    return value if math.isfinite(value) else None
