"""Converts the length of a run between steps and epochs. An epoch is a pass over the training data."""

from __future__ import annotations

import math
from fractions import Fraction

from lm.config import Config
from lm.data.packing.rows import TrainRows


def with_epochs(config: Config, rows: TrainRows) -> Config:
    """Derives the numbers of steps, warm-up steps and decay steps from train.num_epochs, if that is set."""
    epochs = config.train.num_epochs
    return config.with_num_steps(steps_in(epochs, rows, config.train.batch_size)) if epochs else config


def steps_in(epochs: float, rows: TrainRows, batch_size: int) -> int:
    """Returns the number of steps (at least 1) needed to read the first `epochs` epochs of all data sources.

    The rows of every epoch are counted separately, since repacking may change their number. The last step may read a
    few rows of the next epoch.
    """
    whole, part = divmod(Fraction(repr(epochs)), 1)  # repr preserves a decimal number such as 0.1 exactly
    counts = sum(sum(rows.rows_per_epoch(epoch).values()) for epoch in range(whole))
    if part:
        counts += math.ceil(part * sum(rows.rows_per_epoch(whole).values()))
    return max(1, -(-counts // batch_size))


def describe_epochs(config: Config, rows: TrainRows) -> str:
    """Describes the length of a run in epochs. If train.num_epochs is set, the warm-up is described as well."""
    if set_epochs := config.train.num_epochs:
        return f"{set_epochs:g} epochs (train.num_epochs), warm-up of {config.optimizer.warmup_steps:,} steps"
    epochs = config.train.batch_size * config.train.num_steps / sum(rows.rows_per_epoch().values())
    return f"{epochs:.3g} epochs" if epochs < 1000 else f"{epochs:,.0f} epochs"
