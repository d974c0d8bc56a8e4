"""Devices, the mesh made of them, and the one table that maps logical axes onto it.

Data parallelism is the mesh's `data` axis; `fsdp` splits parameters, optimizer state and batch
(Rajbhandari 2020, ZeRO-3); `tensor` splits heads, MLP and vocabulary (Shoeybi 2019, Megatron).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm.batch import Batch
from lm.config import Config, MeshConfig
from lm.errors import UserError

AXES = ("data", "fsdp", "tensor")

RULES: tuple[tuple[str, Any], ...] = (
    # activations
    ("batch", ("data", "fsdp")),
    ("length", None),
    ("activation", None),
    # parameters (heads, kv_heads, mlp and vocab: activations too)
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("vocab", "tensor"),
    ("positions", None),
    ("norm", None),
    ("classes", None),
    ("layers", None),
)


def mesh_sizes(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) with the -1 filled in. Raises UserError when they do not give `num_devices`."""
    sizes = [config.data, config.fsdp, config.tensor]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(1, num_devices // rest)
    if math.prod(sizes) != num_devices:
        asked = f"data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}"
        raise UserError(f"config.mesh: {asked} does not make up the {num_devices} devices there are; change the sizes.")
    return sizes[0], sizes[1], sizes[2]


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all processes (or those given)."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(config, len(devices))
    # Auto axes: Linen's sharding constraints fail on JAX's default, Explicit.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def check_divisible(config: Config, mesh: Mesh) -> None:
    """Raises UserError if the mesh does not divide the batch or a split dimension of the model."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    microbatch = config.train.batch_size // config.train.accumulation
    if microbatch % rows:
        raise UserError(
            f"config.train.batch_size: {config.train.batch_size} rows in {config.train.accumulation} microbatches of "
            f"{microbatch} cannot be split over data x fsdp = {rows} devices; make it a multiple of "
            f"{rows * config.train.accumulation}."
        )
    if config.eval.batch_size % rows:
        raise UserError(
            f"config.eval.batch_size: {config.eval.batch_size} cannot be split over data x fsdp = {rows} devices; "
            f"make it a multiple of {rows}."
        )
    model = config.model
    for axis, name, size in (
        ("fsdp", "model.d_model", model.d_model),
        ("tensor", "model.num_heads", model.num_heads),
        ("tensor", "model.num_kv_heads", model.num_kv_heads),
        ("tensor", "model.d_ff", model.d_ff),
        ("tensor", "model.vocab_size", model.vocab_size),
        ("tensor", "model.source_vocab_size", model.source_vocab_size),
    ):
        if size % mesh.shape[axis]:
            hint = " (set model.vocab_multiple)" if name.endswith("vocab_size") else ""
            raise UserError(
                f"config.mesh.{axis}: {mesh.shape[axis]} does not divide {name}={size}; change one of them{hint}."
            )


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """What is traced inside finds the mesh and the rules. (`with mesh:` would silently ignore constraints.)"""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Shardings for a tree of parameters boxed with logical axes; the tree may be abstract."""
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)


def state_shardings(state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings for a tree whose leaves mirror parameters: the train state, an optimizer's.

    A leaf whose path ends in that of a parameter of the same shape (Adam's moments) is laid out like
    it; everything else (counters, factored moments) is replicated.
    """
    known = {
        _names(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def find(path: tuple, leaf: Any) -> NamedSharding:
        names = _names(path)
        for start in range(len(names)):
            shape, sharding = known.get(names[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(find, state)


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp; the length whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None))


def local_rows(sharding: NamedSharding, num_rows: int) -> np.ndarray:
    """Sorted ids of the rows of a global batch that this process has to supply."""
    ranges = set()
    for index in sharding.addressable_devices_indices_map((num_rows, 1)).values():
        assert index is not None
        ranges.add(range(*index[0].indices(num_rows)))
    return np.unique(np.concatenate(list(ranges)))


def to_global(local: Batch, row_ids: np.ndarray, sharding: NamedSharding, num_rows: int) -> Batch:
    """A batch of global arrays, from this process's rows `row_ids` of it."""

    def place(x: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(num_rows)
            first = int(np.searchsorted(row_ids, start))
            return x[first : first + stop - start]

        return jax.make_array_from_callback((num_rows, *x.shape[1:]), sharding, shard)

    return jax.tree.map(place, local)
