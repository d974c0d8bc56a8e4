"""Keeps the latest and the best checkpoints, and removes unfinished checkpoints."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orbax.checkpoint.checkpoint_managers import preservation_policy

from lm.checkpoints.reading import Damage
from lm.config import CheckpointConfig

TORN = ".orbax-checkpoint-tmp"  # appears in the name of a directory that Orbax has not finished writing

MetricsOf = Callable[[int], Mapping[str, float]]  # maps a step to its metrics; may raise Damage, OSError or ValueError


def best_first(steps: Sequence[int], metrics_of: MetricsOf, settings: CheckpointConfig) -> list[int]:
    """Returns the steps that have a finite `settings.best_metric`, best first, then newest first."""
    values = {}
    for step in steps:
        try:
            value = metrics_of(step).get(settings.best_metric, math.nan)
        except (Damage, OSError, ValueError):
            continue  # the damage is reported when the checkpoint is restored
        if math.isfinite(value):
            values[step] = value
    sign = -1 if settings.highest_is_best else 1
    return sorted(values, key=lambda step: (sign * values[step], -step))


class LatestAndBest(preservation_policy.PreservationPolicy):
    # Orbax's own BestN reads metrics from an unverified file, and keeps every checkpoint that has no metrics.

    def __init__(self, metrics_of: MetricsOf, settings: CheckpointConfig) -> None:
        self._metrics_of, self._settings = metrics_of, settings

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns, for each checkpoint in order of saving, whether to keep it."""
        steps = [each.step for each in checkpoints]
        kept = set(steps[-self._settings.keep_latest :])
        kept |= set(best_first(steps, self._metrics_of, self._settings)[: self._settings.keep_best])
        return [step in kept for step in steps]


def remove_torn(directory: Path) -> None:
    """Removes the unfinished checkpoints of a run that was killed while saving."""
    for each in directory.iterdir():
        if TORN in each.name:
            shutil.rmtree(each)
