"""Applies a recurrent cell along the rows of a batch, with an efficient gradient of the recurrent matrix.

The gradient of the recurrent matrix is a sum over all tokens. Automatic differentiation of the loop would update this
sum at every step. Here, the loop only returns the gradient of each step's product h U, and a single matrix
multiplication after the loop computes the sum (Appleyard 2016, section 3.3).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lm.batch import Array

State = Any  # a dict of float32 (B, H) arrays, one of which is "h", the output of the cell


class Step(Protocol):
    """One step of a cell. Steps must be hashable, so that compiled programs can be reused."""

    def __call__(self, weights: Any, x_BG: Array, r_BG: Array, state: State) -> State:
        """Returns the new state.

        Args:
            weights: the parameters of the cell, except those of the two matrix multiplications.
            x_BG: the projected input of the step, float32 (B, G).
            r_BG: the product of the previous output and the recurrent matrix, float32 (B, G).
        """


class Steps(NamedTuple):
    """The inputs of all steps of a recurrence. The first axis of each array is the length L."""

    x_LBG: Array  # the projected inputs, float32
    starts_LB: Array  # bool: whether a text starts at this token
    is_text_LB: Array  # bool: False for padding, which leaves the state unchanged
    initial: State | None  # (L, B, H): the state before a text that starts at this token; if None, zeros


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def recur(
    step: Step, dtype: str, weights: Any, kernel_HG: Array, mask_BH: Array | None, steps: Steps, state: State
) -> tuple[State, State]:
    """Returns the states after each step, as arrays of shape (L, B, H), and the state after the last step.

    Args:
        dtype: the data type in which the recurrent matrix multiplication is computed.
        kernel_HG: the recurrent matrix U, float32 (H, G).
        mask_BH: in each step, the previous output is multiplied by this mask before U is applied; None means no mask.
        state: the state before the first step.
    """
    return _forward(step, dtype, weights, kernel_HG, mask_BH, steps, state)[0]


def _forward(
    step: Step, dtype: str, weights: Any, kernel_HG: Array, mask_BH: Array | None, steps: Steps, state: State
) -> tuple[tuple[State, State], Any]:
    kernel_HG = kernel_HG.astype(dtype)

    def advance(state: State, now: Steps) -> tuple[State, Any]:
        before = _with_starts(now, state)
        r_BG = (_masked(before["h"], mask_BH).astype(dtype) @ kernel_HG).astype(jnp.float32)
        new = step(weights, now.x_LBG, r_BG, before)
        new = jax.tree.map(partial(_where, now.is_text_LB), new, state)
        return new, (new, (before, r_BG))

    last, (states, saved) = jax.lax.scan(advance, state, steps)
    return (states, last), saved


def _forward_for_gradient(
    step: Step, dtype: str, weights: Any, kernel_HG: Array, mask_BH: Array | None, steps: Steps, state: State
) -> tuple[tuple[State, State], Any]:
    output, saved = _forward(step, dtype, weights, kernel_HG, mask_BH, steps, state)
    return output, (weights, kernel_HG, mask_BH, steps, saved)


def _backward(step: Step, dtype: str, residuals: Any, gradients: Any) -> tuple[Any, Array, None, Steps, State]:
    weights, kernel_HG, mask_BH, steps, saved = residuals
    d_states, d_last = gradients
    kernel_GH = kernel_HG.T.astype(dtype)

    def go_back(carry: Any, now: Any) -> tuple[Any, Any]:
        """Computes the gradient of the state before a step from the gradient of the state after it."""
        (d_state, d_weights), (d_output, here, (before, r_BG)) = carry, now
        d_state = jax.tree.map(jnp.add, d_state, d_output)
        d_new = jax.tree.map(partial(_only, here.is_text_LB), d_state)
        _, pull_back = jax.vjp(step, weights, here.x_LBG, r_BG, before)
        d_more, d_x_BG, d_r_BG, d_before = pull_back(d_new)
        through_h_BH = (d_r_BG.astype(dtype) @ kernel_GH).astype(jnp.float32)
        d_before = {**d_before, "h": d_before["h"] + _masked(through_h_BH, mask_BH)}
        starts_B = here.starts_LB & here.is_text_LB
        d_initial = None if here.initial is None else jax.tree.map(partial(_only, starts_B), d_before)
        d_before = jax.tree.map(partial(_only, ~starts_B), d_before)
        d_state = jax.tree.map(partial(_where, here.is_text_LB), d_before, d_state)
        return (d_state, jax.tree.map(jnp.add, d_weights, d_more)), (d_x_BG, d_r_BG, d_initial)

    carry = d_last, jax.tree.map(jnp.zeros_like, weights)
    carry, each = jax.lax.scan(go_back, carry, (d_states, steps, saved), reverse=True)
    (d_state, d_weights), (d_x_LBG, d_r_LBG, d_initial) = carry, each
    inputs_LBH = _masked(saved[0]["h"], mask_BH).astype(dtype)
    d_kernel_HG = jnp.einsum("LBH,LBG->HG", inputs_LBH, d_r_LBG.astype(dtype), preferred_element_type=jnp.float32)
    return d_weights, d_kernel_HG, None, Steps(d_x_LBG, None, None, d_initial), d_state


recur.defvjp(_forward_for_gradient, _backward)


def _with_starts(now: Steps, state: State) -> State:
    """Replaces the state with the initial state in rows where a text starts."""
    starts_B = now.starts_LB & now.is_text_LB
    if now.initial is None:
        return jax.tree.map(partial(_only, ~starts_B), state)
    return jax.tree.map(partial(_where, starts_B), now.initial, state)


def _masked(x: Array, mask_BH: Array | None) -> Array:
    """Multiplies an array of shape (B, H) or (L, B, H) by the mask, if there is one."""
    return x if mask_BH is None else x * mask_BH.reshape((1,) * (x.ndim - 2) + mask_BH.shape)


def _where(chosen_B: Array, x_BH: Array, other_BH: Array) -> Array:
    return jnp.where(chosen_B[:, None], x_BH, other_BH)


def _only(chosen_B: Array, x_BH: Array) -> Array:
    return _where(chosen_B, x_BH, jnp.zeros_like(x_BH))
