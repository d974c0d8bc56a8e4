"""Derives the properties of a parameter from its name: its kind, its block, and whether weight decay applies to it.

Optimizers rely on names, never on the number of dimensions: since scanned models stack their layers, a stacked bias has
as many dimensions as a single matrix. Every model in `lm/models` uses these names:

    .../kernel                           a projection; `lm.models.parameters.matrix_axes` returns its axes
    .../bias, .../scale                  biases, and the scales of norms
    .../lora_a, .../lora_b               the adapter of a projection: (input axes, rank) and (rank, output axes)
    .../embedding                        a table with one row per token (`VOCABULARIES`), position, token type, ...
    .../layers/...  or  .../layer_3/...  inside blocks: all layers stacked on a leading axis N, or a single layer
    .../shared_layer/...                 inside the only block, which is applied N times

If a model has another kind of parameter, add that kind to `DECAYS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
from flax.core import meta

from lm.models.parameters import LAYER_PREFIX, SHARED_NAME, STACK_NAME, VOCABULARIES

Path = tuple[str, ...]

# Whether weight decay applies, by kind of parameter (the last part of its name). Adapters are exempt, because decay
# would pull them back to a state in which they have no effect. Among embeddings, decay applies only to those in
# VOCABULARIES.
DECAYS = {"kernel": True, "bias": False, "scale": False, "embedding": False, "lora_a": False, "lora_b": False}
STATIC = ("static_embedding",)  # modules whose parameters are never trained


def map_with_path(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Maps `function(path, leaf, ...)` over nested dicts, like `jax.tree.map`. Boxed values are leaves.

    `flax.traverse_util.path_aware_map` is not used, because it takes only one tree and treats optax's empty nodes as
    leaves.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(tuple(str(entry.key) for entry in path), *leaves),
        tree,
        *others,
        is_leaf=lambda node: isinstance(node, meta.AxisMetadata),
    )


def block_of(path: Path) -> int | None:
    """Returns the index of a parameter's block, -1 if all blocks are stacked, or None if it belongs to no block."""
    for part in path:
        if part == STACK_NAME:
            return -1
        if part == SHARED_NAME:
            return 0
        if re.fullmatch(rf"{LAYER_PREFIX}\d+", part):
            return int(part.removeprefix(LAYER_PREFIX))
    return None


def without_layer(path: Path) -> Path:
    """Returns the path that the parameter would have if its layers were stacked."""
    return tuple(STACK_NAME if re.fullmatch(rf"{LAYER_PREFIX}\d+", part) else part for part in path)


def decayed(path: Path) -> bool:
    """Returns whether weight decay applies to a parameter."""
    assert path[-1] in DECAYS, f"{'/'.join(path)}: add this kind of parameter to DECAYS in lm/training/names.py."
    return DECAYS[path[-1]] or path[-2:] in [(name, "embedding") for name in VOCABULARIES]
