"""A training state on a mesh, its abstract form, and its bits."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

LOSS = "valid/loss"


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    ema: Any
    bad_steps: Any
    extra: Any = None


def init(key: jax.Array, ema: bool = False) -> State:
    params = {
        "embed": {"table": jax.random.normal(key, (32, 16))},
        "blocks": {"kernel": jax.random.normal(key, (2, 16, 8)), "scale": jnp.full((16,), 1 / 3, jnp.bfloat16)},
    }
    optimizer = optax.adamw(1e-3)
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    average = jax.tree.map(lambda x: x / 2, params) if ema else None
    return State(jnp.int32(7), params, opt_state, average, jnp.int32(2), {"none": None, "flags": jnp.arange(5) > 2})


def make_mesh(*shape: int) -> Mesh:
    axes = ("data", "fsdp")[: len(shape)]
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(shape), devices=jax.devices()[: np.prod(shape)])


def sharded(tree: Any, mesh: Mesh) -> Any:
    """Returns abstract leaves; the first axis that is divisible by the mesh's last axis is split over it."""

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        name, size = mesh.axis_names[-1], mesh.devices.shape[-1]
        axis = next((i for i, n in enumerate(x.shape) if n % size == 0), None)
        spec = P() if axis is None else P(*[None] * axis, name)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(leaf, tree)


def make_state(mesh: Mesh, seed: int = 0, ema: bool = False) -> State:
    make = jax.jit(lambda key: init(key, ema), out_shardings=jax.tree.map(lambda x: x.sharding, abstract(mesh, ema)))
    return make(jax.random.key(seed))


def abstract(mesh: Mesh, ema: bool = False) -> State:
    return sharded(jax.eval_shape(lambda key: init(key, ema), jax.random.key(0)), mesh)


def bits(tree: Any) -> list[tuple[str, Any, bytes]]:
    def raw(x: Any) -> Any:
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf.dtype, raw(leaf).tobytes()) for path, leaf in leaves]
