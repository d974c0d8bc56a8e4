"""Describes the arrays of a checkpoint by path, shape, dtype and checksum, so that damage can be detected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lm.errors import UserError

PART_BYTES = 2**26  # maximum number of bytes of a NumPy array that are copied to a device at once


def describe(tree: Any, *, with_sums: bool = False) -> dict[str, dict[str, Any]]:
    """Returns {path: {shape, dtype}} for a tree of real or abstract arrays.

    If `with_sums` is true, each entry also has the checksum, called `sum`.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    described: dict[str, dict[str, Any]] = {
        jax.tree_util.keystr(path, simple=True, separator="/"): {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in leaves
    }
    assert len(described) == len(leaves), "two leaves have the same path"
    if with_sums:
        for each, (_, leaf) in zip(described.values(), leaves, strict=True):
            each["sum"] = checksum(leaf)
    return described


def is_described(leaf: Any) -> bool:
    """Returns whether a JSON value describes an array in the format of `describe`, including its checksum."""
    try:
        if not leaf["dtype"].startswith("key<"):  # the dtype of random keys, which NumPy lacks
            jnp.dtype(leaf["dtype"])
        sizes = [*leaf["shape"], leaf["sum"]]
    except (TypeError, KeyError, AttributeError):
        return False
    return isinstance(leaf["shape"], list) and all(type(size) is int and size >= 0 for size in sizes)


def check_same_tree(where: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError if two descriptions differ in a path, shape or dtype."""
    problems = []
    for path in sorted(set(saved) | set(wanted)):
        if path not in wanted:
            problems.append(f"{path} is in the checkpoint but not in this model")
        elif path not in saved:
            problems.append(f"{path} is not in the checkpoint")
        else:
            for key in ("shape", "dtype"):
                if (there := saved[path][key]) != (here := wanted[path][key]):
                    problems.append(f"{path} has {key} {there} in the checkpoint but {here} in this model")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        listed = f"{'; '.join(problems[:3])}{more}. Use the settings of the run that wrote the checkpoint."
        raise UserError(f"{where}: this checkpoint belongs to another model or optimizer: {listed}")


def nested(leaves: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the subtree called `name` in a description, as abstract arrays without shardings."""
    below = {
        path.removeprefix(f"{name}/"): jax.ShapeDtypeStruct(leaf["shape"], jnp.dtype(leaf["dtype"]))
        for path, leaf in leaves.items()
        if path.startswith(f"{name}/")
    }
    return traverse_util.unflatten_dict(below, sep="/")


def checksum(leaf: Any) -> int:
    """Returns the checksum of an array or a random key. Every process gets the checksum of the whole array.

    A large array is processed in parts along its first axis, unless that axis is sharded, because computing a checksum
    on a CPU takes as much memory as the array itself.
    """
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    if is_key or leaf.nbytes <= PART_BYTES or leaf.dtype.itemsize > 4 or not leaf.ndim or _splits_rows(leaf):
        return int(leaf_sum(leaf))
    words = leaf.size // len(leaf)  # number of words per row
    rows = max(1, PART_BYTES // (words * leaf.dtype.itemsize))
    total = 0
    for start in range(0, len(leaf), rows):
        count, first = min(rows, len(leaf) - start), np.uint32(start * words % 2**32)
        part: Any = leaf[start : start + count] if isinstance(leaf, np.ndarray) else None
        if part is None:  # the start is an argument, so that all parts share a compiled program
            part = jax.lax.dynamic_slice_in_dim(leaf, jnp.int32(start), count)
        total += int(leaf_sum(part, first))
    return total % 2**32


def _splits_rows(leaf: Any) -> bool:
    """Returns whether an array is sharded along its first axis."""
    return isinstance(leaf, jax.Array) and leaf.sharding.shard_shape(leaf.shape)[0] < len(leaf)


@jax.jit
def leaf_sum(x: jax.Array, first: jax.typing.ArrayLike = 0) -> jax.Array:
    """Returns the checksum of an array: the sum over i of mix(word_i xor mix(i)), modulo 2^32, as a uint32.

    If the array is a part of a larger one, `first` is the index of its first word in the larger array.

    An integer sum does not depend on the order of its terms and is therefore the same on every mesh. Because `mix` is a
    bijection, changing a single word always changes the sum; any other change, including a permutation, changes it
    with probability 1 - 2^-32.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = min(8 * x.dtype.itemsize, 32)  # bitcast turns a 64-bit value into two 32-bit words
    words = jax.lax.bitcast_convert_type(x, f"uint{bits}").astype(jnp.uint32)
    index, stride = jnp.full(words.shape, first, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mix(words ^ _mix(index)), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """Applies the finalizer of MurmurHash3, a bijection of uint32 that mixes all bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def json_hash(content: Any) -> str:
    """Returns the SHA-256 hash of a JSON value. The hash does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
