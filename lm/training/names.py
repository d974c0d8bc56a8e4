"""What the names of parameters tell: the kind, the axes, the place in the model.

What is done to a parameter is decided by its name, never by its number of dimensions: scanned models stack their
layers, so that a bias there has as many dimensions as a matrix elsewhere. The parameters' names are those of
`lm/models`:

    .../kernel                           a product; under query, key and value (D, H, K), under out (H, K, D), else 2-D
    .../bias, .../scale                  biases and norm scales
    .../lora_a, .../lora_b               a product's adapter, on the product's axes with the rank last or first
    token_embedding/embedding            (V, D), and source_embedding; others are of positions and token types
    .../layers/...  or  .../layer_3/...  in the blocks: stacked on a leading axis N, or one layer of its own
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
from flax.core import meta

from lm.models.parameters import LAYER_PREFIX, STACK_NAME

Path = tuple[str, ...]

KINDS = ("kernel", "bias", "scale", "embedding", "lora_a", "lora_b")


def map_with_path(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`jax.tree.map` over nested dicts, with the path of names as first argument; a boxed parameter is one leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(tuple(str(entry.key) for entry in path), *leaves),
        tree,
        *others,
        is_leaf=lambda node: isinstance(node, meta.AxisMetadata),
    )


def block_of(path: Path) -> int | None:
    """The number of the block that a parameter is in, -1 for all of them stacked; None outside of blocks."""
    for part in path:
        if part == STACK_NAME:
            return -1
        if re.fullmatch(rf"{LAYER_PREFIX}\d+", part):
            return int(part.removeprefix(LAYER_PREFIX))
    return None


def decayed(path: Path) -> bool:
    """Whether weight decay acts on the parameter at `path`: on products and on the token embedding, on nothing else.

    Not on adapters either: they start at no difference to the model that they adapt, and B at 0.

    >>> decayed(("layers", "mlp", "up", "kernel")), decayed(("position_embedding", "embedding"))
    (True, False)
    """
    # A parameter of a new kind must not slip through undecided.
    assert path[-1] in KINDS, f"does weight decay act on {'/'.join(path)}?"
    return path[-1] == "kernel" or path[-2:] in (("token_embedding", "embedding"), ("source_embedding", "embedding"))


def decay_table(params: Any) -> dict[str, bool]:
    """{"layers/mlp/up/kernel": True, ...}: `decayed` for each parameter of a plain, boxed or abstract tree."""
    table: dict[str, bool] = {}
    map_with_path(lambda path, param: table.update({"/".join(path): decayed(path)}), params)
    return table


def matrix_axes(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes a matrix reads from and those it writes to, counted from the end; what is left numbers its copies.

    (D, H, K) is a matrix of D x HK and (H, K, D) one of HK x D; with stacked layers there are N of them.
    """
    parent = path[-2] if len(path) > 1 else ""
    if parent in ("query", "key", "value"):
        return (-3,), (-2, -1)
    if parent == "out":
        return (-3, -2), (-1,)
    return (-2,), (-1,)
