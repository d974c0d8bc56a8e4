"""From gradients to updates: one optax chain per optimizer, right for stacked and for unrolled layers.

Every chain is: gradients to float32, clip the global norm, the optimizer's direction, plus decoupled weight decay
where `decayed` says so, times minus the learning rate. What an optimizer does to a parameter is decided by its name,
never by its number of dimensions: scanned models stack their layers, so that a bias there has as many dimensions as a
matrix elsewhere. The parameters' names are those of `lm/models`:

    .../kernel                           a product; under query, key and value (D, H, K), under out (H, K, D), else 2-D
    .../bias, .../scale                  biases and norm scales
    token_embedding/embedding            (V, D), and source_embedding; others are of positions
    .../layers/...  or  .../layer_3/...  in the blocks: stacked on a leading axis N, or one layer of its own

Which settings are read beside learning_rate, schedule, weight_decay and clip_norm:

    adamw      b1, b2, epsilon           Loshchilov and Hutter 2019
    lion       b1, b2                    Chen et al. 2023
    sgd        b1 (momentum, heavy ball) Polyak 1964
    muon       b1 (of both parts), b2 and epsilon (of its AdamW part): Jordan 2024, scaled as Liu et al. 2025
    adafactor  b2 (its upper bound)      Shazeer and Stern 2018, see `scale_by_factored_rms`

Optimizer state mirrors the parameters, boxes with logical axis names included, so that
`nn.get_partition_spec(jax.eval_shape(optimizer.init, boxed_params))` gives its sharding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.core import meta

from lm.batch import Array
from lm.config import OptimizerConfig
from lm.training.schedules import schedule

Path = tuple[str, ...]

# AdamW's updates have a root mean square of about 0.2; orthogonal ones are scaled to the same (Liu et al. 2025, 2.2).
MUON_UPDATE_RMS = 0.2
FACTORED_EPSILON = 1e-30  # Shazeer and Stern's epsilon_1, added to squared gradients
# Below this the memory saved is nothing; T5 and optax take the same bound.
MIN_FACTORED_SIZE = 128


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `num_steps` steps (for `config` see `schedule`).

    `init(params)` takes plain or boxed parameters, `update(grads, state, params)` plain ones: float32 parameters
    named as above. Updates are float32 whatever the gradients are, to be added to the parameters. The state holds the
    step count that the schedule reads.
    """
    chain = [optax.stateless(lambda updates, params: _to_float32(updates))]
    if config.clip_norm > 0:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    chain.append(_direction(config))
    if config.weight_decay > 0:
        chain.append(
            optax.add_decayed_weights(config.weight_decay, mask=lambda tree: _map(lambda path, _: decayed(path), tree))
        )
    chain.append(optax.scale_by_learning_rate(schedule(config, num_steps)))
    return optax.chain(*chain)


def global_norm(tree: Any) -> jax.Array:
    """Root of the sum of all squares in a tree, as clipping measures it: a float32 scalar."""
    return optax.tree.norm(_to_float32(tree))


def decayed(path: Path) -> bool:
    """Whether weight decay acts on the parameter at `path`: on products and on the token embedding, on nothing else.

    >>> decayed(("layers", "mlp", "up", "kernel")), decayed(("position_embedding", "embedding"))
    (True, False)
    """
    # A parameter of a new kind must not slip through undecided.
    assert path[-1] in ("kernel", "bias", "scale", "embedding"), f"does weight decay act on {'/'.join(path)}?"
    return path[-1] == "kernel" or path[-2:] in (("token_embedding", "embedding"), ("source_embedding", "embedding"))


def decay_table(params: Any) -> dict[str, bool]:
    """{"layers/mlp/up/kernel": True, ...}: `decayed` for each parameter of a plain, boxed or abstract tree."""
    table: dict[str, bool] = {}
    _map(lambda path, param: table.update({"/".join(path): decayed(path)}), params)
    return table


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon)
    if config.name == "adamw":
        return adam
    if config.name == "lion":
        return optax.scale_by_lion(b1=config.b1, b2=config.b2)
    if config.name == "sgd":
        return optax.trace(decay=config.b1) if config.b1 > 0 else optax.identity()
    if config.name == "adafactor":
        return scale_by_factored_rms(b2=config.b2)
    assert config.name == "muon", config.name
    # optax.contrib.muon would decay every parameter of its Adam part, so its pieces are put together here.
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.b1,
            weight_dimension_numbers=lambda tree: _map(
                lambda path, _: optax.contrib.MuonDimensionNumbers(*matrix_axes(path)), tree
            ),
        ),
        optax.stateless(lambda updates, params: _map(_scale_orthogonal, updates)),
    )
    return optax.partition(
        {"muon": muon, "adam": adam}, lambda tree: _map(lambda path, _: "muon" if _is_muon(path) else "adam", tree)
    )


def matrix_axes(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes a matrix reads from and those it writes to, counted from the end; what is left numbers its copies.

    (D, H, K) is a matrix of D x HK and (H, K, D) one of HK x D; with stacked layers there are N of them.
    """
    parent = path[-2] if len(path) > 1 else ""
    if parent in ("query", "key", "value"):
        return (-3,), (-2, -1)
    if parent == "out":
        return (-3, -2), (-1,)
    return (-2,), (-1,)


def _is_muon(path: Path) -> bool:
    in_block = any(part == "layers" or re.fullmatch(r"layer_\d+", part) for part in path)
    return path[-1] == "kernel" and in_block


def _scale_orthogonal(path: Path, update: jax.Array) -> jax.Array:
    """An orthogonal matrix of R x C has a root mean square of 1 / sqrt(max(R, C))."""
    sizes = [math.prod(update.shape[axis] for axis in axes) for axes in matrix_axes(path)]
    return update * (MUON_UPDATE_RMS * math.sqrt(max(sizes)))


class Factored(NamedTuple):
    """Second moment of a matrix as its row and column means; whole layers or other copies keep their axes."""

    row: Array  # the parameter's shape without its output axes
    column: Array  # the parameter's shape without its input axes


class FactoredState(NamedTuple):
    count: Array  # int32 scalar
    moments: Any  # for each parameter its Factored, or an array of its shape


def scale_by_factored_rms(b2: float, min_size: int = MIN_FACTORED_SIZE) -> optax.GradientTransformation:
    """Adafactor's direction: g / sqrt(v) with v of rank one, and its root mean square clipped to 1.

    Of Shazeer and Stern 2018 (algorithm 4) without the relative step size: the learning rate comes from the schedule
    alone, and there is no first moment. The decay is theirs, 1 - t^-0.8 at update t, up to `b2`. Differs from
    `optax.scale_by_factored_rms`, which factors the two largest axes of a shape and so may mix layers or split heads:
    here each matrix of each layer (`matrix_axes`) is factored, and clipped, as if it were alone. Matrices with a
    side below `min_size`, biases and scales keep a full second moment.
    """

    def factored_axes(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        if path[-1] not in ("kernel", "embedding"):
            return None
        inputs, outputs = (tuple(axis % len(shape) for axis in axes) for axes in matrix_axes(path))
        if min(math.prod(shape[axis] for axis in axes) for axes in (inputs, outputs)) < min_size:
            return None
        return inputs, outputs

    def init(params: Any) -> FactoredState:
        def zeros(path: Path, param: Any) -> Any:
            axes = factored_axes(path, meta.unbox(param).shape)
            if axes is None:
                return _zeros_without(param, ())
            inputs, outputs = axes
            return Factored(row=_zeros_without(param, outputs), column=_zeros_without(param, inputs))

        return FactoredState(jnp.zeros((), jnp.int32), _map(zeros, params))

    def update(grads: Any, state: FactoredState, params: Any = None) -> tuple[Any, FactoredState]:
        del params
        count = optax.safe_increment(state.count)
        decay = jnp.minimum(b2, 1.0 - count.astype(jnp.float32) ** -0.8)

        def average(old: jax.Array, new: jax.Array) -> jax.Array:
            return decay * old + (1.0 - decay) * new

        def next_moment(path: Path, grad: jax.Array, moment: Any) -> Any:
            squares = jnp.square(grad) + FACTORED_EPSILON
            axes = factored_axes(path, grad.shape)
            if axes is None:
                return average(moment, squares)
            inputs, outputs = axes
            return Factored(
                row=average(moment.row, squares.mean(outputs)), column=average(moment.column, squares.mean(inputs))
            )

        def direction(path: Path, grad: jax.Array, moment: Any) -> jax.Array:
            axes = factored_axes(path, grad.shape)
            if axes is None:
                scaled = grad * jax.lax.rsqrt(moment)
            else:
                inputs, outputs = axes
                row, column = jnp.expand_dims(moment.row, outputs), jnp.expand_dims(moment.column, inputs)
                # v = row * column / mean(row); roots are taken first, for a ratio of squares could underflow.
                scaled = grad * jax.lax.rsqrt(row) * jax.lax.rsqrt(column) * jnp.sqrt(row.mean(inputs, keepdims=True))
            one_layer = tuple(range(1 if "layers" in path else 0, grad.ndim))
            return scaled / jnp.maximum(1.0, jnp.sqrt(jnp.mean(jnp.square(scaled), one_layer, keepdims=True)))

        moments = _map(next_moment, grads, state.moments)
        return _map(direction, grads, moments), FactoredState(count, moments)

    return optax.GradientTransformation(init, update)


def _zeros_without(param: Any, axes: tuple[int, ...]) -> Any:
    """Float32 zeros of the shape of `param` less `axes`, boxed with the logical axes that remain if it is boxed."""
    if isinstance(param, meta.Partitioned):
        names = tuple(name for axis, name in enumerate(param.names) if axis not in axes)
        return param.replace(value=_zeros_without(param.value, axes), names=names)
    return jnp.zeros([size for axis, size in enumerate(param.shape) if axis not in axes], jnp.float32)


def _to_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`jax.tree.map` over nested dicts, with the path of names as first argument; a boxed parameter is one leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(tuple(str(entry.key) for entry in path), *leaves),
        tree,
        *others,
        is_leaf=lambda node: isinstance(node, meta.AxisMetadata),
    )
