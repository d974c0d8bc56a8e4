"""Trees of parameters: their number, and the two forms that the layers of a model can have.

A model that repeats a layer N times names the parameters of all layers `layers/...`, stacked on a leading axis N, or
those of layer n `layer_n/...`. The settings of training rely on these names.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

STACK_NAME, LAYER_PREFIX = "layers", "layer_"


def count_parameters(params: Any) -> int:
    """Returns the number of parameters in a tree of arrays or abstract arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters with one subtree for each layer. A model without stacked layers stays as it is."""
    rest = {
        name: unstack_layers(value) if isinstance(value, dict) else value
        for name, value in params.items()
        if name != STACK_NAME
    }
    stacked = params.get(STACK_NAME, {})
    for n in range(jax.tree.leaves(stacked)[0].shape[0] if stacked else 0):
        rest[f"{LAYER_PREFIX}{n}"] = jax.tree.map(lambda x, n=n: x[n], stacked)
    return rest


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters with all layers stacked. A model that has no separate layers stays as it is."""
    rest = {
        name: stack_layers(value) if isinstance(value, dict) else value
        for name, value in params.items()
        if not name.startswith(LAYER_PREFIX)
    }
    if layers := [params[f"{LAYER_PREFIX}{n}"] for n in range(len(params) - len(rest))]:
        rest[STACK_NAME] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return rest
