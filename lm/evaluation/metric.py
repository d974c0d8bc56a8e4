"""The declaration of metrics. Each is declared beside the code that computes it; `lm.evaluation.METRICS` lists all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Formats of values.
points = "{:.2f}".format  # for values from 0 to 100
share = "{:.2%}".format  # for values from 0 to 1


@dataclass(frozen=True)
class Metric:
    """The declaration of a number that evaluations compute.

    Attributes:
        name: its key, after the split's name, in metrics.jsonl, result files and checkpoint.best_metric.
        heading: its name in tables and plots.
        show: formats a value; `points` and `share` are examples.
        higher_is_better: whether the best value is the highest; otherwise it is the lowest.
        drawn: whether the curves of a run include it, in percent.
        recorded: whether the results table in README.md includes it.
    """

    name: str
    heading: str
    show: Callable[[float], str] = "{:.4f}".format
    higher_is_better: bool = False
    drawn: bool = False
    recorded: bool = False

    @property
    def is_percentage(self) -> bool:
        return self.show in (points, share)

    def percent(self, values: Any) -> Any:
        """Converts values (a number or an array) to percent if the metric is a percentage."""
        return 100.0 * values if self.show is share else values


def names(metrics: tuple[Metric, ...]) -> tuple[str, ...]:
    return tuple(each.name for each in metrics)


def finite_or_none(value: float) -> float | None:
    """Returns a value for JSON: None (null) in place of infinity or NaN, which JSON lacks."""
    return value if math.isfinite(value) else None
