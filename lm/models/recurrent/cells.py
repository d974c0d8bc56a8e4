"""The recurrent cells: Elman's tanh RNN, the LSTM and the GRU.

The input of each gate is x W + h U + b, where x is the cell's input and h is its previous output. `layer.py` computes
x W + b, and `recurrence.py` computes h U and passes both to the cell. The gates are defined and ordered as in PyTorch.

Flax's cells are not used: they multiply the input by W inside the loop over tokens, which is slower than one matrix
multiplication for all tokens, and they have no layer normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm.batch import Array
from lm.config import ModelConfig
from lm.models.layers import NORMS
from lm.models.recurrent.recurrence import State

# The parameters of a cell besides W, U and b, for example {"recurrent_norm/scale": (G,)}.
Weights = Mapping[str, Array]


def _rnn(weights: Weights, x_BG: Array, r_BG: Array, state: State, norm: Callable[..., Array]) -> State:
    return {"h": jnp.tanh(x_BG + norm("recurrent_norm", r_BG))}


def _lstm(weights: Weights, x_BG: Array, r_BG: Array, state: State, norm: Callable[..., Array]) -> State:
    write, forget, new, output = jnp.split(x_BG + norm("recurrent_norm", r_BG), 4, axis=-1)
    sigmoid = jax.nn.sigmoid
    c_BH = sigmoid(forget) * state["c"] + sigmoid(write) * jnp.tanh(new)
    return {"h": sigmoid(output) * jnp.tanh(norm("state_norm", c_BH)), "c": c_BH}


def _gru(weights: Weights, x_BG: Array, r_BG: Array, state: State, norm: Callable[..., Array]) -> State:
    x_reset, x_update, x_new = jnp.split(x_BG, 3, axis=-1)
    r_reset, r_update, r_new = jnp.split(norm("recurrent_norm", r_BG), 3, axis=-1)
    reset, update = jax.nn.sigmoid(x_reset + r_reset), jax.nn.sigmoid(x_update + r_update)
    new = jnp.tanh(x_new + reset * (r_new + weights["candidate/bias"][None]))
    return {"h": (1 - update) * new + update * state["h"]}


@dataclass(frozen=True)
class Cell:
    """A cell that can be selected with model.cell."""

    doc: str
    function: Callable[..., State]
    gates: int  # W and U have `gates` times as many columns as the cell has units
    states: tuple[str, ...] = ("h",)
    ones: tuple[int, ...] = ()  # the gates whose biases are initialised to 1
    candidate_bias: bool = False  # whether a bias is added to h U of the last gate
    state_norm: bool = False  # whether model.cell_norm also normalises the cell state


CELLS: dict[str, Cell] = {
    "rnn": Cell("tanh RNN (Elman 1990)", _rnn, gates=1),
    # The forget gate is open at first (Gers 2000, Jozefowicz 2015).
    "lstm": Cell("LSTM (Hochreiter 1997)", _lstm, gates=4, states=("h", "c"), ones=(1,), state_norm=True),
    "gru": Cell("GRU (Cho 2014)", _gru, gates=3, candidate_bias=True),
}


@dataclass(frozen=True)
class CellStep:
    """Advances a cell by one token (see `Step`).

    With a norm, h U and the cell state are normalised (Ba 2016, equations 20 to 22).
    """

    cell: str
    norm: str = ""  # a key of NORMS, or "" for no normalisation
    epsilon: float = 0.0

    @classmethod
    def of(cls, config: ModelConfig) -> CellStep:
        return cls(config.cell, config.norm, config.norm_epsilon) if config.cell_norm else cls(config.cell)

    def __call__(self, weights: Weights, x_BG: Array, r_BG: Array, state: State) -> State:
        def norm(name: str, x: Array) -> Array:
            if not self.norm:
                return x
            return NORMS[self.norm].normalize(x, self.epsilon) * weights[f"{name}/scale"][None]

        return CELLS[self.cell].function(weights, x_BG, r_BG, state, norm)
