"""The device mesh, and the table that maps logical axes to mesh axes.

The axis `data` is for data parallelism; `fsdp` splits the parameters, the optimizer state and the batch (Rajbhandari
2020, ZeRO-3); `tensor` splits the heads, the MLP and the vocabulary (Shoeybi 2019, Megatron).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lm.config import Config, MeshConfig
from lm.config.checks import MODELS
from lm.config.schema import entries
from lm.errors import UserError

AXES = ("data", "fsdp", "tensor")
FSDP_SIZES = ("d_model", "embedding_width")  # model sizes that fsdp must divide; for tensor, see `Architecture`

# Maps the logical axes of parameters and activations to mesh axes. If the rules assign the same mesh axis to two
# axes of an array, the first rule wins.
RULES: tuple[tuple[str, Any], ...] = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    *((name, "tensor") for name in ("mlp", "heads", "kv_heads", "vocab")),
    *(
        (name, None)
        for name in ("length", "activation", "head_dim", "positions", "ngrams", "norm", "classes", "latent", "layers")
    ),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of `devices` (by default, all). Raises UserError if the sizes do not match the device count."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = [config.data, config.fsdp, config.tensor]
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(1, len(devices) // rest)
    if math.prod(sizes) != len(devices):
        given = f"data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}"
        raise UserError(f"config.mesh: {given} does not match the {len(devices)} devices; change the sizes.")
    # The axes are Auto, because Linen's sharding constraints fail with JAX's default, Explicit.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def check_divisible(config: Config, mesh: Mesh) -> None:
    """Raises UserError if the mesh cannot evenly divide the batch or a model dimension that it splits."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    architecture = entries(MODELS)[config.model.architecture]
    trained = architecture.fit is None  # by gradient descent
    for section, microbatches in (("train", config.train.accumulation), ("eval", 1))[not trained :]:
        size = getattr(config, section).batch_size
        if size // microbatches % rows:
            raise UserError(
                f"config.{section}.batch_size: {size} rows in {microbatches} microbatch{'es' * (microbatches > 1)} "
                f"cannot be split over data x fsdp = {rows} devices; use a multiple of {rows * microbatches}."
            )
    for name, size in architecture.fsdp_sizes(config.model).items():
        if size % (count := mesh.shape["fsdp"]):
            raise UserError(f"config.mesh.fsdp: {count} does not divide model.{name} = {size}; change one of them.")
    for name in (*(FSDP_SIZES if trained else ()), *architecture.tensor_sizes):
        axis, size = "fsdp" if name in FSDP_SIZES else "tensor", getattr(config.model, name)
        if size % (count := mesh.shape[axis]):
            hint = " (set model.vocab_multiple)" if name.endswith("vocab_size") else ""
            raise UserError(
                f"config.mesh.{axis}: {count} does not divide model.{name}={size}; change one of them{hint}."
            )


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Provides the mesh and RULES to functions traced in the block. `with mesh:` would silently ignore constraints."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Returns the shardings of parameters, real or abstract, that are boxed with their logical axes."""
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)


def current_mesh() -> AbstractMesh | None:
    """Returns the mesh of the enclosing `on_mesh` block, or None if there is no such block or only one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def current_platform() -> str:
    """Returns the platform, such as "cpu", of the enclosing `on_mesh` block or of the default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def shards_of(axis: str) -> int:
    """Returns the number of parts into which the current mesh splits a logical axis."""
    (names,), mesh = nn.logical_to_mesh_axes((axis,)), jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(name, 1) for name in axis_names(names))


def mesh_axes(names: tuple[str | None, ...]) -> PartitionSpec:
    """Returns the mesh axes that split an array with these logical axes."""
    return nn.logical_to_mesh_axes(names, RULES)


def axis_names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns an entry of a PartitionSpec as a tuple of mesh axes."""
    return (entry,) if isinstance(entry, str) else entry or ()


def spread(
    spec: PartitionSpec, shape: tuple[int, ...], candidates: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Returns `spec` with each missing mesh axis added to the shortest of the `candidates` that the axis can divide.

    The candidates are axes of the array, counted from the end. Mesh axes of size 1 are omitted.
    """
    spec = PartitionSpec(*spec, *[None] * (len(shape) - len(spec)))
    order = sorted(candidates, key=lambda axis: (shape[axis], axis_names(spec[axis])))  # unchanged by transposition
    split = [tuple(name for name in axis_names(each) if mesh.shape[name] > 1) for each in spec]
    for name, size in mesh.shape.items():
        if size > 1 and not any(name in each for each in split):
            for axis in order:
                if shape[axis] % (size * math.prod(mesh.shape[each] for each in split[axis])) == 0:
                    split[axis] += (name,)
                    break
    return PartitionSpec(*(each or None for each in split))


def state_shardings(state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Returns the shardings of the leaves of a training state or an optimizer state.

    If the path of a leaf ends with the path of a parameter of the same shape, as for Adam's moments, the leaf is
    sharded like this parameter. All other leaves, such as counters and factored moments, are replicated.
    optax.tree_utils.tree_map_params would not handle the moving average of the parameters.
    """

    def names_of(path: tuple) -> tuple[str, ...]:
        return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))

    leaves = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True)
    known = {(names_of(path), leaf.shape): sharding for (path, leaf), sharding in leaves}

    def find(path: tuple, leaf: Any) -> NamedSharding:
        names = names_of(path)
        found = (known.get((names[start:], leaf.shape)) for start in range(len(names)))
        return next(filter(None, found), NamedSharding(mesh, PartitionSpec()))

    return jax.tree_util.tree_map_with_path(find, state)


def cache_shardings(cache: Any, mesh: Mesh) -> Any:
    """Returns the shardings of the arrays of a model's cache, real or abstract."""

    def is_axes(each: Any) -> bool:
        return isinstance(each, tuple) and all(isinstance(name, str) for name in each)

    return jax.tree.map(lambda axes: NamedSharding(mesh, mesh_axes(axes)), cache.axes(), is_leaf=is_axes)


def place_cache(cache: Any) -> Any:
    """Constrains the arrays of a cache to their `cache_shardings`, in a function that is traced `on_mesh`."""
    return jax.tree.map(nn.with_logical_constraint, cache, cache.axes())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch, which splits the rows, but not the length, over the mesh axes data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None))
