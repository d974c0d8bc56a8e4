"""The update direction of Adafactor, which treats each matrix of each layer separately."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.core import meta

from lm.batch import Array
from lm.models.parameters import matrix_axes
from lm.training.names import Path, block_of, map_with_path

FACTORED_EPSILON = 1e-30  # Shazeer and Stern's epsilon_1, added to squared gradients
MIN_FACTORED_SIZE = 128  # as in T5 and optax; factoring a smaller matrix would save hardly any memory


class Factored(NamedTuple):
    """The second moment of a matrix, factored into its row and column means. Batch axes are kept."""

    row: Array  # the parameter's shape without its output axes
    column: Array  # the parameter's shape without its input axes


class FactoredState(NamedTuple):
    count: Array  # int32 scalar
    moments: Any  # holds, for each parameter, a Factored or an array of the parameter's shape


def scale_by_factored_rms(b2: float, min_size: int = MIN_FACTORED_SIZE) -> optax.GradientTransformation:
    """Returns Adafactor's update direction, g / sqrt(v) with a rank-one v, clipped to a root mean square of at most 1.

    This is algorithm 4 of Shazeer and Stern 2018 without a first moment and without the relative step size. The decay
    rate of v at update t is 1 - t^-0.8, as in the paper, but at most `b2`. The moments are factored and the updates
    are clipped separately for each matrix of each layer (`matrix_axes`), whereas `optax.scale_by_factored_rms` may mix
    layers or split heads. Biases, scales and matrices with a side shorter than `min_size` keep a full second moment.
    """

    def factored_axes(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        if path[-1] not in ("kernel", "embedding"):
            return None
        inputs, outputs = (tuple(axis % len(shape) for axis in axes) for axes in matrix_axes(path))
        sides = [math.prod(shape[axis] for axis in axes) for axes in (inputs, outputs)]
        return None if min(sides) < min_size else (inputs, outputs)

    def init(params: Any) -> FactoredState:
        def zeros(path: Path, param: Any) -> Any:
            if (axes := factored_axes(path, meta.unbox(param).shape)) is None:
                return _zeros_without(param, ())
            return Factored(row=_zeros_without(param, axes[1]), column=_zeros_without(param, axes[0]))

        return FactoredState(jnp.zeros((), jnp.int32), map_with_path(zeros, params))

    def update(grads: Any, state: FactoredState, params: Any = None) -> tuple[Any, FactoredState]:
        del params
        count = optax.safe_increment(state.count)
        decay = jnp.minimum(b2, 1.0 - count.astype(jnp.float32) ** -0.8)

        def average(old: jax.Array, new: jax.Array) -> jax.Array:
            return decay * old + (1.0 - decay) * new

        def next_moment(path: Path, grad: jax.Array, moment: Any) -> Any:
            squares = jnp.square(grad) + FACTORED_EPSILON
            if (axes := factored_axes(path, grad.shape)) is None:
                return average(moment, squares)
            return Factored(*(average(old, squares.mean(over)) for old, over in zip(moment, axes[::-1], strict=True)))

        def direction(path: Path, grad: jax.Array, moment: Any) -> jax.Array:
            if (axes := factored_axes(path, grad.shape)) is None:
                scaled = grad * jax.lax.rsqrt(moment)
            else:
                inputs, outputs = axes
                row, column = jnp.expand_dims(moment.row, outputs), jnp.expand_dims(moment.column, inputs)
                # v = row * column / mean(row). The roots are taken first, because the product could underflow.
                scaled = grad * jax.lax.rsqrt(row) * jax.lax.rsqrt(column) * jnp.sqrt(row.mean(inputs, keepdims=True))
            one_layer = tuple(range(1 if block_of(path) == -1 else 0, grad.ndim))
            return scaled / jnp.maximum(1.0, jnp.sqrt(jnp.mean(jnp.square(scaled), one_layer, keepdims=True)))

        moments = map_with_path(next_moment, grads, state.moments)
        return map_with_path(direction, grads, moments), FactoredState(count, moments)

    return optax.GradientTransformation(init, update)


def _zeros_without(param: Any, axes: tuple[int, ...]) -> Any:
    """Returns a float32 array of zeros with the shape that `param` has without the given axes.

    If `param` is boxed, so is the result, which keeps the names of the remaining axes.
    """
    if isinstance(param, meta.Partitioned):
        names = tuple(name for axis, name in enumerate(param.names) if axis not in axes)
        return param.replace(value=_zeros_without(param.value, axes), names=names)
    return jnp.zeros([size for axis, size in enumerate(param.shape) if axis not in axes], jnp.float32)
