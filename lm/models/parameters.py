"""Parameter trees: names and axes, counting, stacking and unstacking layers, and merging low-rank adapters.

The parameters of N repeated layers are either stacked along a leading axis of size N and named `layers/...`, or
separate and named `layer_n/...` for layer n. If all layers share their parameters, these are named `shared_layer/...`.
`lm/training/names.py` relies on these names.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lm.config import ModelConfig
from lm.models.int8 import Int8Matrix
from lm.models.protocol import Model

STACK_NAME, LAYER_PREFIX, SHARED_NAME, ADAPTER = "layers", "layer_", "shared_layer", ("lora_a", "lora_b")

VOCABULARIES = ("token_embedding", "source_embedding")  # modules with a table that has one row per token

# Modules whose kernels have several input axes, as in (H, K, D), or several output axes, as in (D, H, K).
INPUT_AXES = {"out": 2}
OUTPUT_AXES = {"query": 2, "key": 2, "value": 2}


def matrix_axes(path: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the input axes and the output axes of a matrix, counted from the end; any other axes are batch axes.

    A kernel of shape (D, H, K) counts as a D x HK matrix, and one of shape (H, K, D) as an HK x D matrix. The kernels
    of N stacked layers count as N matrices.
    """
    parent = path[-2] if len(path) > 1 else ""
    inputs, outputs = INPUT_AXES.get(parent, 1), OUTPUT_AXES.get(parent, 1)
    return tuple(range(-inputs - outputs, -outputs)), tuple(range(-outputs, 0))


@functools.lru_cache(maxsize=16)  # a command needs the shapes repeatedly, and tracing a model takes about a second
def abstract_params(model: Model) -> Any:
    """Returns the shapes and dtypes of the parameters, boxed with their logical axes. Equal models share the result."""
    return jax.eval_shape(lambda: model.initial_params(jax.random.key(0)))


def logical_axes(model: Model) -> dict[str, tuple[str | None, ...]]:
    """Returns the logical axes of every parameter by name, such as {"layers/mlp/up/kernel": ("layers", ...), ...}."""
    specs = nn.get_partition_spec(abstract_params(model))
    return {name: tuple(spec) for name, spec in flatten_dict(specs, sep="/").items()}


def count_parameters(params: Any) -> int:
    """Returns the number of parameters in a tree of arrays or abstract arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Splits stacked layers into one subtree per layer. Returns the tree unchanged if no layers are stacked."""
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
    """Stacks separate layers into one subtree. Returns the tree unchanged if no layers are separate."""
    rest = {
        name: stack_layers(value) if isinstance(value, dict) else value
        for name, value in params.items()
        if not name.startswith(LAYER_PREFIX)
    }
    if layers := [params[f"{LAYER_PREFIX}{n}"] for n in range(len(params) - len(rest))]:
        rest[STACK_NAME] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return rest


def with_int8_matrices(params: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a Transformer with all projections and token embeddings rounded to 8 bits."""

    def convert(path: tuple[Any, ...], leaf: Any) -> Any:
        names = tuple(str(entry.key) for entry in path)
        if names[-1] == "kernel":
            return Int8Matrix.of(leaf, matrix_axes(names)[0])
        is_table = names[-1] == "embedding" and names[-2] in VOCABULARIES
        return Int8Matrix.of(leaf, (-1,)) if is_table else leaf

    return jax.tree_util.tree_map_with_path(convert, params)


def adapters(params: dict[str, Any]) -> dict[str, Any]:
    """Returns a dict of all adapter parameters, for example {"layers/attention/query/lora_a": array, ...}."""
    return {"/".join(path): value for path, value in flatten_dict(params).items() if path[-1] in ADAPTER}


def merge_adapters(params: dict[str, Any], config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """Replaces adapted kernels with W + (lora_alpha / lora_rank) A B (Hu 2021) and disables adapters in the config.

    The merged model computes the same function. `params` may come from a Transformer of any family, with stacked or
    separate layers. It must be convertible to NumPy arrays. Merged kernels are float32; other parameters are unchanged.
    """
    assert config.lora_rank > 0, "there is nothing to merge"
    scale, flat = np.float32(config.lora_alpha / config.lora_rank), flatten_dict(params)
    for *parent, name in list(flat):
        if name == ADAPTER[0]:
            a, b = (np.asarray(flat.pop((*parent, each)), np.float32) for each in ADAPTER)
            kernel = np.asarray(flat[*parent, "kernel"], np.float32)
            layers, rank = kernel.shape[0] if STACK_NAME in parent else 1, a.shape[-1]
            difference = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
            flat[*parent, "kernel"] = kernel + scale * difference.reshape(kernel.shape)
    return unflatten_dict(flat), dataclasses.replace(config, lora_rank=0)
