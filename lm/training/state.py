"""The training state: everything that a run carries from one step to the next."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh

from lm.batch import Array
from lm.config import Config
from lm.models.parameters import abstract_params
from lm.models.protocol import Model
from lm.parallel.mesh import cache_shardings, on_mesh, param_shardings, state_shardings
from lm.training.optimizers.muon import split_momentum


@dataclass(frozen=True)
class TrainState:
    """The complete state of a run. The data order, masks and dropout depend only on `step` and the config.

    This class is a pytree. If `carried` is None, the pytree omits it, as in checkpoints that predate this field.
    """

    step: Array  # int32: number of completed steps
    params: Any  # float32
    opt_state: Any
    ema: Any  # moving average of the parameters, or None
    bad_steps: Array  # int32: steps skipped because the loss or gradient was not finite
    bad_in_row: Array  # int32: steps skipped since the last good step
    carried: Any = None  # the model's cache after the last batch if data.stateful is set, otherwise None

    def children(self) -> dict[str, Any]:
        """Returns the children of the pytree by name."""
        return {name: value for name, value in vars(self).items() if name != "carried" or value is not None}


jax.tree_util.register_pytree_with_keys(
    TrainState,
    lambda state: (
        [(jax.tree_util.GetAttrKey(name), value) for name, value in state.children().items()],
        tuple(state.children()),
    ),
    lambda names, values: TrainState(**dict(zip(names, values, strict=True))),
)


def initial_state(config: Config, model: Model, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """Returns the unboxed initial state of a run, which is the same on every mesh."""
    return _with_zeros(config, model, optimizer, nn.unbox(model.initial_params(key)))


def _with_zeros(config: Config, model: Model, optimizer: optax.GradientTransformation, params: Any) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay > 0 else None,
        bad_steps=jnp.zeros((), jnp.int32),
        bad_in_row=jnp.zeros((), jnp.int32),
        carried=_empty_cache(config, model),
    )


def _empty_cache(config: Config, model: Model) -> Any:
    """Returns the state that a stateful run carries into its first batch, or None if the run is not stateful."""
    return model.empty_cache(config.train.batch_size, config.data.sequence_length) if config.data.stateful else None


def abstract_state(config: Config, model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the shapes, dtypes and shardings of the state without allocating it."""
    boxed = abstract_params(model)
    params = nn.unbox(boxed)
    with on_mesh(mesh):
        state = jax.eval_shape(lambda params: _with_zeros(config, model, optimizer, params), params)
    shardings = state_shardings(state, state.params, param_shardings(boxed, mesh), mesh)
    shardings = dataclasses.replace(shardings, opt_state=split_momentum(state.opt_state, shardings.opt_state))
    if state.carried is not None:
        shardings = dataclasses.replace(shardings, carried=cache_shardings(state.carried, mesh))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def make_state(
    config: Config, model: Model, optimizer: optax.GradientTransformation, abstract: TrainState, mesh: Mesh
) -> TrainState:
    """Creates the initial state of a run. Each device computes its own shards."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    with on_mesh(mesh):
        init = jax.jit(lambda key: initial_state(config, model, optimizer, key), out_shardings=shardings)
        return init(jax.random.key(config.seed))


def with_params(state: TrainState, values: dict[str, Any]) -> TrainState:
    """Returns the initial state of a run with some parameters and their moving averages replaced.

    `values` is nested like the parameters, but may omit some of them. The arrays in `values` must be sharded like the
    parameters. The optimizer state is kept, because no optimizer's initial state depends on the values of the
    parameters.
    """
    old, new = traverse_util.flatten_dict(state.params), traverse_util.flatten_dict(values)
    params = traverse_util.unflatten_dict(old | new)
    if state.ema is None:
        return dataclasses.replace(state, params=params)
    # The moving average must not share buffers with the parameters, because the training step donates both.
    ema = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=jax.tree.map(lambda x: x.sharding, params))
    return dataclasses.replace(state, params=params, ema=ema(params))
