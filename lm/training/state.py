"""Everything a training run carries from one step to the next."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lm.batch import Array
from lm.config import Config
from lm.models.protocol import Model
from lm.parallel.mesh import on_mesh, param_shardings, state_shardings


@flax.struct.dataclass
class TrainState:
    """The whole of it: data order, masks and dropout follow from `step` and the config."""

    step: Array  # int32: steps done
    params: Any  # float32
    opt_state: Any
    ema: Any  # average of the parameters, or None
    bad_steps: Array  # int32: steps skipped because loss or gradient was not finite
    bad_in_row: Array  # int32: how many of them just now


def initial_state(config: Config, model: Model, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """Unboxed; every random number comes from `key`, whatever the mesh."""
    params = nn.unbox(model.initial_params(key))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay > 0 else None,
        bad_steps=jnp.zeros((), jnp.int32),
        bad_in_row=jnp.zeros((), jnp.int32),
    )


def abstract_state(config: Config, model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, with nothing allocated."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    with on_mesh(mesh):
        boxed = jax.eval_shape(lambda k: model.initial_params(k), key)
        state = jax.eval_shape(lambda k: initial_state(config, model, optimizer, k), key)
    shardings = state_shardings(state, state.params, param_shardings(boxed, mesh), mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def make_state(
    config: Config, model: Model, optimizer: optax.GradientTransformation, abstract: TrainState, mesh: Mesh
) -> TrainState:
    """A fresh state, each device making its own part."""
    key = jax.random.key(config.seed)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    with on_mesh(mesh):
        init = jax.jit(lambda k: initial_state(config, model, optimizer, k), out_shardings=shardings)
        return init(key)


def with_params(state: TrainState, values: dict[str, Any]) -> TrainState:
    """A fresh state that begins with these parameters in place of its own, and with their average.

    `values` is nested as the parameters and may lack some; its arrays have their shardings. Nothing of an optimizer's
    first state depends on the parameters.
    """

    def replaced(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        return {
            name: replaced(value, new.get(name, {})) if isinstance(value, dict) else new.get(name, value)
            for name, value in old.items()
        }

    params = replaced(state.params, values)
    if state.ema is None:
        return dataclasses.replace(state, params=params)
    # Arrays of its own: the step takes both for its outputs.
    ema = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=jax.tree.map(lambda x: x.sharding, params))
    return dataclasses.replace(state, params=params, ema=ema(params))
