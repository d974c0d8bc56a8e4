"""From gradients to updates: one optax chain, the same for every optimizer except for its direction.

The chain is: gradients to float32, clipping of the global norm, the optimizer's direction, decoupled weight decay where
`decayed` says so, minus the learning rate. What is done to a parameter depends on its name (`lm/training/names.py`), so
that stacked and unrolled layers get equal updates. Learning-rate multipliers and frozen parameters are handled in
`lm/training/multipliers.py`.

To add an optimizer, from optax or our own, add an entry to `OPTIMIZERS`; no other code knows their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm.config import OptimizerConfig
from lm.training.multipliers import Multiplier, all_one, with_multipliers
from lm.training.names import decayed, map_with_path
from lm.training.optimizers.adafactor import scale_by_factored_rms
from lm.training.optimizers.muon import muon
from lm.training.optimizers.optimizer import Optimizer
from lm.training.schedules import make_schedule

OPTIMIZERS: dict[str, Optimizer] = {
    # Loshchilov and Hutter 2019
    "adamw": Optimizer(lambda config: optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon)),
    # Shazeer and Stern 2018; b2 is the upper bound of its decay, b1 and epsilon are not read
    "adafactor": Optimizer(lambda config: scale_by_factored_rms(b2=config.b2)),
    # Chen et al. 2023; epsilon is not read
    "lion": Optimizer(lambda config: optax.scale_by_lion(b1=config.b1, b2=config.b2)),
    # Jordan 2024; b2 and epsilon are those of AdamW, which updates everything except the matrices of the blocks
    "muon": Optimizer(muon),
    # Polyak 1964; b1 is the momentum (heavy ball), b2 and epsilon are not read
    "sgd": Optimizer(lambda config: optax.trace(decay=config.b1) if config.b1 > 0 else optax.identity()),
}


def make_optimizer(
    config: OptimizerConfig, num_steps: int, multipliers: Mapping[str, Multiplier] | None = None
) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `num_steps` steps.

    `init(params)` takes float32 parameters, named as in `lm/training/names.py`, plain or boxed with their logical
    axes; the state mirrors them, boxes included. `update(grads, state, params)` takes plain ones. It returns float32
    updates, whatever the dtype of the gradients, to be added to the parameters. The state holds the step count that
    the schedule reads.

    Args:
        config: resolved by `Config.from_dict`.
        multipliers: those of `learning_rate_multipliers`; None for 1 everywhere.
    """
    chain = [optax.stateless(lambda updates, params: _to_float32(updates))]
    if config.clip_norm > 0:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    chain.append(OPTIMIZERS[config.name].direction(config))
    if config.weight_decay > 0:
        mask = lambda tree: map_with_path(lambda path, _: decayed(path), tree)  # noqa: E731
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=mask))
    chain.append(optax.scale_by_learning_rate(make_schedule(config, num_steps)))
    optimizer = optax.chain(*chain)
    return optimizer if multipliers is None or all_one(multipliers) else with_multipliers(optimizer, multipliers)


def global_norm(tree: Any) -> jax.Array:
    """Returns the root of the sum of all squares in a tree, a float32 scalar, as clipping measures it."""
    return optax.tree.norm(_to_float32(tree))


def _to_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
