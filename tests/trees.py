"""Converts trees of parameters and states to and from a flat dict by path."""

from typing import Any

import jax
from flax import traverse_util


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf}, with paths such as "layers/mlp/up/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(flat, sep="/")
