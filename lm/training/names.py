"""The properties of a parameter that follow from its name: kind, block, matrix axes, and whether it decays.

Optimizers decide by names and never by the number of dimensions: scanned models stack their layers, so a bias there has
as many dimensions as a matrix elsewhere. Every model in `lm/models` uses these names:

    .../kernel                           a projection: 2-D, or as `INPUT_AXES` and `OUTPUT_AXES` say
    .../bias, .../scale                  biases, and the scales of norms
    .../lora_a, .../lora_b               the adapter of a projection: its axes, with the rank as last or first axis
    .../embedding                        a table with one row per token (`VOCABULARIES`), position, token type, ...
    .../layers/...  or  .../layer_3/...  inside blocks: all layers stacked on a leading axis N, or one single layer

A model with another kind of parameter adds it to `DECAYS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
from flax.core import meta

from lm.models.parameters import LAYER_PREFIX, STACK_NAME

Path = tuple[str, ...]

# Whether a parameter decays, by its kind (the last part of its name). Adapters do not: they start without effect, and
# decay would pull them back there. Of the embeddings, only those in VOCABULARIES decay.
DECAYS = {"kernel": True, "bias": False, "scale": False, "embedding": False, "lora_a": False, "lora_b": False}
VOCABULARIES = ("token_embedding", "source_embedding")

# Modules whose kernels have more than one input axis, (H, K, D), or more than one output axis, (D, H, K).
INPUT_AXES = {"out": 2}
OUTPUT_AXES = {"query": 2, "key": 2, "value": 2}


def map_with_path(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Maps like `jax.tree.map` over nested dicts, with the path as first argument; boxed parameters are leaves.

    `flax.traverse_util.path_aware_map` takes only one tree, and treats the empty nodes of optax as leaves.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(tuple(str(entry.key) for entry in path), *leaves),
        tree,
        *others,
        is_leaf=lambda node: isinstance(node, meta.AxisMetadata),
    )


def block_of(path: Path) -> int | None:
    """Returns the number of the block that a parameter is in, -1 for all blocks stacked, None outside of blocks."""
    for part in path:
        if part == STACK_NAME:
            return -1
        if re.fullmatch(rf"{LAYER_PREFIX}\d+", part):
            return int(part.removeprefix(LAYER_PREFIX))
    return None


def decayed(path: Path) -> bool:
    """Returns whether weight decay acts on the parameter at `path`."""
    assert path[-1] in DECAYS, f"does weight decay act on {'/'.join(path)}? Say so in DECAYS of lm/training/names.py."
    return DECAYS[path[-1]] or path[-2:] in [(name, "embedding") for name in VOCABULARIES]


def matrix_axes(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the input axes and the output axes of a matrix, counted from the end; other axes number its copies.

    (D, H, K) is a matrix of D x HK, and (H, K, D) one of HK x D; stacked layers are N such matrices.
    """
    parent = path[-2] if len(path) > 1 else ""
    inputs, outputs = INPUT_AXES.get(parent, 1), OUTPUT_AXES.get(parent, 1)
    return tuple(range(-inputs - outputs, -outputs)), tuple(range(-outputs, 0))
