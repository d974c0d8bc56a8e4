"""From gradients to updates: one optax chain per optimizer, right for stacked and for unrolled layers.

Every chain is: gradients to float32, clip the global norm, the optimizer's direction, plus decoupled weight decay
where `decayed` says so, times minus the learning rate. What an optimizer does to a parameter is decided by its name
(lm/training/names.py). Parameters with a learning rate of their own, or none, are those of lm/training/multipliers.py.

Which settings are read beside learning_rate, schedule, weight_decay and clip_norm:

    adamw      b1, b2, epsilon           Loshchilov and Hutter 2019
    lion       b1, b2                    Chen et al. 2023
    sgd        b1 (momentum, heavy ball) Polyak 1964
    muon       b1 (of both parts), b2 and epsilon (of its AdamW part): Jordan 2024, scaled as Liu et al. 2025
    adafactor  b2 (its upper bound)      Shazeer and Stern 2018, see `scale_by_factored_rms`

Optimizer state mirrors the parameters, boxes with logical axis names included, so that
`nn.get_partition_spec(jax.eval_shape(optimizer.init, boxed_params))` gives its sharding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm.config import OptimizerConfig
from lm.training.adafactor import scale_by_factored_rms
from lm.training.multipliers import Rate, all_one, at_rates
from lm.training.names import Path, block_of, decayed, map_with_path, matrix_axes
from lm.training.schedules import schedule

# AdamW's updates have a root mean square of about 0.2; orthogonal ones are scaled to the same (Liu et al. 2025, 2.2).
MUON_UPDATE_RMS = 0.2


def make_optimizer(
    config: OptimizerConfig, num_steps: int, rates: Mapping[str, Rate] | None = None
) -> optax.GradientTransformation:
    """The optimizer of a run of `num_steps` steps (for `config` see `schedule`).

    `init(params)` takes plain or boxed parameters, `update(grads, state, params)` plain ones: float32 parameters
    named as in lm/training/names.py. Updates are float32 whatever the gradients are, to be added to the parameters.
    The state holds the step count that the schedule reads. `rates` are those of `rate_multipliers`, None for 1
    everywhere; see `at_rates`.
    """
    chain = [optax.stateless(lambda updates, params: _to_float32(updates))]
    if config.clip_norm > 0:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    chain.append(_direction(config))
    if config.weight_decay > 0:
        chain.append(
            optax.add_decayed_weights(
                config.weight_decay, mask=lambda tree: map_with_path(lambda path, _: decayed(path), tree)
            )
        )
    chain.append(optax.scale_by_learning_rate(schedule(config, num_steps)))
    optimizer = optax.chain(*chain)
    return optimizer if rates is None or all_one(rates) else at_rates(optimizer, rates)


def global_norm(tree: Any) -> jax.Array:
    """Root of the sum of all squares in a tree, as clipping measures it: a float32 scalar."""
    return optax.tree.norm(_to_float32(tree))


def moving_average(average: Any, params: Any, decay: float) -> Any:
    """decay * average + (1 - decay) * params; rounding never moves it away from a parameter that stands still."""

    def moved(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(old == new, old, decay * old + (1 - decay) * new)

    return jax.tree.map(moved, average, params)


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon)
    if config.name == "adamw":
        return adam
    if config.name == "lion":
        return optax.scale_by_lion(b1=config.b1, b2=config.b2)
    if config.name == "sgd":
        return optax.trace(decay=config.b1) if config.b1 > 0 else optax.identity()
    if config.name == "adafactor":
        return scale_by_factored_rms(b2=config.b2)
    assert config.name == "muon", config.name
    # optax.contrib.muon would decay every parameter of its Adam part, so its pieces are put together here.
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.b1,
            weight_dimension_numbers=lambda tree: map_with_path(
                lambda path, _: optax.contrib.MuonDimensionNumbers(*matrix_axes(path)), tree
            ),
        ),
        optax.stateless(lambda updates, params: map_with_path(_scale_orthogonal, updates)),
    )
    return optax.partition(
        {"muon": muon, "adam": adam},
        lambda tree: map_with_path(lambda path, _: "muon" if _is_muon(path) else "adam", tree),
    )


def _is_muon(path: Path) -> bool:
    return path[-1] == "kernel" and block_of(path) is not None


def _scale_orthogonal(path: Path, update: jax.Array) -> jax.Array:
    """An orthogonal matrix of R x C has a root mean square of 1 / sqrt(max(R, C))."""
    sizes = [math.prod(update.shape[axis] for axis in axes) for axes in matrix_axes(path)]
    return update * (MUON_UPDATE_RMS * math.sqrt(max(sizes)))


def _to_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
