"""Turns gradients into updates with an optax chain, in which only the update direction depends on the optimizer.

The chain casts gradients to float32, clips their global norm, computes the update direction, adds decoupled weight
decay where `decayed` is true, and multiplies the result by minus the learning rate. Parameters are distinguished by
name (`lm/training/names.py`), so stacked and unrolled layers get equal updates. To add an optimizer (from optax or your
own), add an entry to `OPTIMIZERS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from lm.config import OptimizerConfig
from lm.training.multipliers import Multiplier, all_one, with_multipliers
from lm.training.names import decayed, map_with_path
from lm.training.optimizers.adafactor import scale_by_factored_rms
from lm.training.optimizers.muon import Axes, scale_by_muon_or_adam
from lm.training.schedules import make_schedule


class StateSize(NamedTuple):
    """The number of values in the optimizer state per scalar parameter, for each kind of parameter."""

    block_matrix: float  # kernels inside blocks
    matrix: float  # other kernels, and embeddings
    vector: float  # biases and scales


# One example per kind of parameter, large enough that counters and factored moments round to 0 values per parameter.
EXAMPLES = {"layer_0/up/kernel": (4096, 4096), "token_embedding/embedding": (4096, 4096), "final_norm/scale": (4096,)}


@dataclass(frozen=True)
class Optimizer:
    """An optimizer's update direction for clipped float32 gradients. `make_optimizer` adds the rest of the chain."""

    direction: Callable[..., optax.GradientTransformation]  # (config) or, if `divides_matrices`, (config, axes)
    reads: tuple[str, ...] = ("b1", "b2", "epsilon")  # settings that this optimizer reads but some others do not
    # Whether the state and the updates of the matrices in blocks are divided among all devices. `axes` holds the
    # logical axes of each parameter, keyed by name; it is None if the devices are unknown.
    divides_matrices: bool = False

    def build(self, config: OptimizerConfig, axes: Axes | None = None) -> optax.GradientTransformation:
        return self.direction(config, axes) if self.divides_matrices else self.direction(config)

    def state_size(self, config: OptimizerConfig) -> StateSize:
        """Returns the state size per scalar parameter, rounded to one decimal, for the estimate in `lm/costs.py`."""

        def size(name: str, shape: tuple[int, ...]) -> float:
            params = traverse_util.unflatten_dict({name: jax.ShapeDtypeStruct(shape, jnp.float32)}, sep="/")
            state = jax.eval_shape(self.build(config).init, params)
            return round(sum(leaf.size for leaf in jax.tree.leaves(state)) / math.prod(shape), 1)

        return StateSize(*(size(name, shape) for name, shape in EXAMPLES.items()))


OPTIMIZERS: dict[str, Optimizer] = {
    # Loshchilov and Hutter 2019
    "adamw": Optimizer(lambda config: optax.scale_by_adam(config.b1, config.b2, config.epsilon)),
    # Kingma and Ba 2015, algorithm 2; the second moment is a decaying maximum
    "adamax": Optimizer(lambda config: optax.scale_by_adamax(config.b1, config.b2, config.epsilon)),
    # Shazeer and Stern 2018; b2 is the upper bound of the decay rate
    "adafactor": Optimizer(lambda config: scale_by_factored_rms(config.b2), ("b2",)),
    # Chen et al. 2023
    "lion": Optimizer(lambda config: optax.scale_by_lion(config.b1, config.b2), ("b1", "b2")),
    # Jordan 2024; b2 and epsilon are used only by AdamW, which updates everything except the matrices of the blocks
    "muon": Optimizer(scale_by_muon_or_adam, divides_matrices=True),
    # Duchi et al. 2011, with accumulators that start at 0
    "adagrad": Optimizer(lambda config: optax.scale_by_rss(0.0, config.epsilon**2), ("epsilon",)),
    # Polyak 1964; b1 is the momentum (heavy ball)
    "sgd": Optimizer(lambda config: optax.trace(config.b1) if config.b1 > 0 else optax.identity(), ("b1",)),
}


def make_optimizer(
    config: OptimizerConfig,
    num_steps: int,
    multipliers: Mapping[str, Multiplier] | None = None,
    axes: Axes | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer for a run of `num_steps` steps.

    `init(params)` takes a tree of float32 parameters. If the parameters are boxed with logical axes, so is the state.
    `update(grads, state, params)` takes unboxed trees. `config` must have been resolved by `Config.from_dict`.
    `multipliers` is the result of `learning_rate_multipliers`; None means that all multipliers are 1. `axes` is the
    result of `logical_axes`, which Muon needs to divide its work among the devices of a mesh.
    """
    chain = [optax.stateless(lambda updates, params: optax.tree.cast(updates, jnp.float32))]
    if config.clip_norm > 0:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    chain.append(OPTIMIZERS[config.name].build(config, axes))
    if config.weight_decay > 0:
        mask = partial(map_with_path, lambda path, _: decayed(path))
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=mask))
    chain.append(optax.scale_by_learning_rate(make_schedule(config, num_steps)))
    optimizer = optax.chain(*chain)
    return optimizer if multipliers is None or all_one(multipliers) else with_multipliers(optimizer, multipliers)


def global_norm(tree: Any) -> jax.Array:
    """Returns the L2 norm of all values in a tree as a float32 scalar. Gradients are clipped by this norm."""
    return optax.tree.norm(optax.tree.cast(tree, jnp.float32))
