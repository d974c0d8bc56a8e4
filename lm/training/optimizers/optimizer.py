"""An entry of the registry of optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from lm.config import OptimizerConfig


class StateSize(NamedTuple):
    """Values of optimizer state per parameter, by kind of parameter, as `lm/costs.py` reads it."""

    block_matrix: float  # kernels inside blocks
    matrix: float  # other kernels, and embeddings
    vector: float  # biases and scales


# A large parameter of each kind, so that the state that does not grow with the number of parameters rounds to 0.
EXAMPLES = {
    "layer_0/mlp/up/kernel": (4096, 4096),
    "token_embedding/embedding": (4096, 4096),
    "final_norm/scale": (4096,),
}


@dataclass(frozen=True)
class Optimizer:
    """What is particular to one optimizer.

    Attributes:
        direction: returns the transformation of float32 gradients, after clipping, into the direction of the update,
            before decoupled weight decay and the learning rate, which `make_optimizer` adds.
    """

    direction: Callable[[OptimizerConfig], optax.GradientTransformation]

    def state_size(self, config: OptimizerConfig) -> StateSize:
        """Returns the number of float32 values of state per parameter of each kind, to one decimal."""
        init = self.direction(config).init

        def size(name: str, shape: tuple[int, ...]) -> float:
            params = traverse_util.unflatten_dict({name: jax.ShapeDtypeStruct(shape, jnp.float32)}, sep="/")
            values = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, params)))
            return round(values / math.prod(shape), 1)

        return StateSize(*(size(name, shape) for name, shape in EXAMPLES.items()))
