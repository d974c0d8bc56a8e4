"""The average of the parameters of several checkpoints of a run (Vaswani 2017, section 6.1)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lm.checkpoints.checkpoints import Checkpoints
from lm.errors import UserError


def averaged_params(
    checkpoints: Checkpoints, abstract_params: Any, count: int, last: int | None = None, ema: bool = False
) -> tuple[Any, list[int]]:
    """Returns the mean of the `count` latest checkpoints (up to step `last`), float32, and their steps.

    Checkpoints are read one at a time, so memory holds two trees. Raises UserError if there are fewer checkpoints
    (checkpoint.keep_latest says how many are kept) or one of them is damaged.
    """
    steps = [step for step in checkpoints.steps() if last is None or step <= last]
    if len(steps) < count:
        raise UserError(
            f"{checkpoints.directory}: {count} checkpoints are to be averaged and there are {len(steps)}"
            f"{'' if last is None else f' up to step {last}'}; train with a larger config.checkpoint.keep_latest."
        )
    steps = steps[-count:]
    total: Any = None
    for step in steps:
        params, _ = checkpoints.restore_params(abstract_params, step, ema=ema)
        total = params if total is None else jax.tree.map(jnp.add, total, params)
    return jax.tree.map(lambda x: x / count, total), steps
