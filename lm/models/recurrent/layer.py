"""A stack of recurrent layers, in one direction or in both."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import normal, ones, orthogonal

from lm.batch import Array
from lm.config import ModelConfig
from lm.models.layers import Norm, parameter
from lm.models.parameters import LAYER_PREFIX
from lm.models.recurrent.cells import CELLS, CellStep
from lm.models.recurrent.recurrence import State, Steps, recur

DIRECTIONS = ("forward", "backward")


def zero_state(config: ModelConfig, rows: int, width: int) -> State:
    return {name: jnp.zeros((rows, width), jnp.float32) for name in CELLS[config.cell].states}


class Values(nn.Module):
    """A vector of parameters of the given kind, "bias" or "scale"."""

    kind: str
    initializer: Any
    size: int

    @nn.compact
    def __call__(self) -> Array:
        return parameter(self, self.kind, self.initializer, ("norm",), (self.size,))


class Matrix(nn.Module):
    """A matrix of parameters."""

    initializer: Any
    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> Array:
        return parameter(self, "kernel", self.initializer, ("embed", "activation"), self.shape)


class Direction(nn.Module):
    """A recurrent layer with `width` units that reads a text in one direction."""

    config: ModelConfig
    width: int

    @nn.compact
    def __call__(
        self,
        x_LBE: Array,
        starts_LB: Array,
        is_text_LB: Array,
        train: bool,
        state: State,
        initial: State | None = None,
    ) -> tuple[State, State]:
        """Returns the states after each token, as arrays of shape (L, B, H), and the state after the last token.

        See `Steps` for the other arguments.

        Args:
            state: the state before the first token.
        """
        config, H, E = self.config, self.width, x_LBE.shape[-1]
        cell = CELLS[config.cell]
        G = cell.gates * H
        kernel_EG = Matrix(normal(config.init_std or E**-0.5), (E, G), name="input")()
        x_LBG = (x_LBE.reshape(-1, E).astype(config.dtype) @ kernel_EG.astype(config.dtype)).reshape(
            *x_LBE.shape[:2], G
        )
        if config.cell_norm:
            x_LBG = Norm(config, name="input_norm")(x_LBG)
        x_LBG = x_LBG.astype(jnp.float32) + Values("bias", _bias(cell.ones, H), G, name="gates")().reshape(1, 1, G)
        weights = {}
        if cell.candidate_bias:
            weights["candidate/bias"] = Values("bias", jax.nn.initializers.zeros, H, name="candidate")()
        if config.cell_norm:
            weights["recurrent_norm/scale"] = Values("scale", ones, G, name="recurrent_norm")()
            if cell.state_norm:
                weights["state_norm/scale"] = Values("scale", ones, H, name="state_norm")()
        kernel_HG = Matrix(_orthogonal(cell.gates), (H, G), name="recurrent")()
        kernel_HG, mask_BH = self._dropped(kernel_HG, x_LBE.shape[1], train)
        steps = Steps(x_LBG, starts_LB, is_text_LB, initial)
        return recur(CellStep.of(config), config.dtype, weights, kernel_HG, mask_BH, steps, state)

    def _dropped(self, kernel_HG: Array, rows: int, train: bool) -> tuple[Array, Array | None]:
        """Applies model.recurrent_dropout. Returns the recurrent matrix and a mask for its input."""
        if not (train and self.config.recurrent_dropout):
            return kernel_HG, None
        dropout = nn.Dropout(self.config.recurrent_dropout, deterministic=False)
        if self.config.recurrent_dropout_of == "weights":
            return dropout(kernel_HG), None
        return kernel_HG, dropout(jnp.ones((rows, self.width), jnp.float32))


def _bias(ones: tuple[int, ...], width: int) -> Any:
    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        gates = jnp.arange(shape[0]) // width
        return jnp.isin(gates, jnp.array(ones, jnp.int32)).astype(dtype) if ones else jnp.zeros(shape, dtype)

    return init


def _orthogonal(gates: int) -> Any:
    """Initialises the matrix of each gate to a random orthogonal matrix (Saxe 2014)."""

    def init(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
        H = shape[0]
        return jnp.concatenate([orthogonal()(each, (H, H), dtype) for each in jax.random.split(key, gates)], axis=1)

    return init


class RecurrentLayer(nn.Module):
    """A layer that reads a text in one direction or in both, with an output of width d_model."""

    config: ModelConfig
    bidirectional: bool

    @nn.compact
    def __call__(
        self,
        x_LBE: Array,
        segments_BL: Array,
        train: bool,
        state: State | None,
        starts_BL: Array | None,
        initial: State | None,
    ) -> tuple[Array, dict[str, State], State]:
        """Returns the output (L, B, D), {direction: states after each token}, and the state after the last token.

        Args:
            state: the state before the first token if the tokens continue a text; not supported if bidirectional.
            starts_BL: if the tokens continue a text, whether a new text starts at each token; if None, none starts.
            initial: for each token, the initial state of a text that starts there, as (L, B, D) arrays; if None, zeros.
        """
        directions = DIRECTIONS if self.bidirectional else DIRECTIONS[:1]
        width = self.config.d_model // len(directions)
        before = zero_state(self.config, len(segments_BL), width) if state is None else state
        after, last = {}, before
        for name in directions:
            flip = partial(jnp.flip, axis=0) if name == "backward" else lambda x: x
            segments_LB = flip(segments_BL.T)
            starts_LB = jnp.pad(segments_LB, ((1, 0), (0, 0)), constant_values=-1)[:-1] != segments_LB
            if state is not None:
                starts_LB = jnp.zeros_like(starts_LB) if starts_BL is None else starts_BL.T
            texts = starts_LB, segments_LB > 0
            states, last = Direction(self.config, width, name=name)(flip(x_LBE), *texts, train, before, initial)
            after[name] = jax.tree.map(flip, states)
        return jnp.concatenate([states["h"] for states in after.values()], axis=-1), after, last


class StackOutput(NamedTuple):
    layers_LBD: list[Array]  # the output of each layer
    states: list[dict[str, State]]  # for each layer and direction, the states after each token, (L, B, H)
    last: tuple[State, ...]  # for each layer, the state after the last token of each row


class RecurrentStack(nn.Module):
    """A stack of layers, with dropout before, between and after them (Zaremba 2014)."""

    config: ModelConfig
    num_layers: int
    bidirectional: bool = False

    @nn.compact
    def __call__(
        self,
        x_BLE: Array,
        segments_BL: Array,
        train: bool,
        states: tuple[State, ...] | None = None,
        starts_BL: Array | None = None,
        initial: tuple[State, ...] | None = None,
    ) -> tuple[Array, StackOutput]:
        """Returns the last layer's output after dropout, (B, L, D), and the outputs and states of all layers.

        Args:
            states: the state of each layer before the first token, if the tokens continue a text.
            starts_BL: with `states`, whether a new text starts at each token; if None, none starts.
            initial: for each layer, the initial states of texts; if None, zeros.
        """
        # A locked dropout mask is the same for all tokens of a row (Gal 2016).
        axes = (0,) if self.config.locked_dropout else ()
        dropout = nn.Dropout(self.config.dropout, axes, deterministic=not train)
        x_LBD, found = dropout(jnp.swapaxes(x_BLE, 0, 1)), StackOutput([], [], ())
        for n in range(self.num_layers):
            layer = RecurrentLayer(self.config, self.bidirectional, name=f"{LAYER_PREFIX}{n}")
            before, start = (None if each is None else each[n] for each in (states, initial))
            h_LBD, after, last = layer(x_LBD, segments_BL, train, before, starts_BL, start)
            found = StackOutput([*found.layers_LBD, h_LBD], [*found.states, after], (*found.last, last))
            x_LBD = dropout(h_LBD.astype(self.config.dtype))
        return jnp.swapaxes(x_LBD, 0, 1), found
