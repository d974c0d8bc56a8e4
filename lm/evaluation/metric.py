"""The class `Metric`, which declares a metric. Each metric is declared next to the code that computes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Functions that format values.
points = "{:.2f}".format  # formats values from 0 to 100
share = "{:.2%}".format  # formats values from 0 to 1


@dataclass(frozen=True)
class Metric:
    """The declaration of a metric: its name, its format and where it appears."""

    name: str  # as in metrics.jsonl, result files and checkpoint.best_metric, but without the split
    heading: str  # as shown in tables and plots
    show: Callable[[float], str] = "{:.4f}".format  # formats a value
    higher_is_better: bool = False  # if False, lower values are better
    drawn: bool = False  # whether the plots of a run include the metric (in percent)
    recorded: bool = False  # whether the results table in README.md includes the metric

    @property
    def is_percentage(self) -> bool:
        return self.show in (points, share)

    def percent(self, values: Any) -> Any:
        """Converts values (a number or an array) to percent if the metric is a share from 0 to 1."""
        return 100.0 * values if self.show is share else values


def names(metrics: tuple[Metric, ...]) -> tuple[str, ...]:
    return tuple(each.name for each in metrics)


def finite_or_none(value: float) -> float | None:
    """Returns a finite value unchanged, and None for infinity and NaN, which JSON cannot represent."""
    return value if math.isfinite(value) else None
