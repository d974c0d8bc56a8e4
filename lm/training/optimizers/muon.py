"""The update direction of Muon (Jordan 2024), whose orthogonalisation is divided among the devices of a mesh.

On a mesh, every matrix and its momentum are split over all mesh axes, as far as their sizes allow. An all-to-all
exchange then assembles each matrix on one device. Each device orthogonalises its share of the matrices, and another
exchange returns the parts. Matrices of equal size are exchanged together, whether their layers are stacked or not, so
that the shares are as equal as possible. The momentum stays split, even over the axis `data`, so the compiler can
replace the all-reduce of the gradients with a reduce-scatter. This saves as many bytes as gathering the updates costs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from optax.contrib import MuonState

from lm.batch import Array
from lm.config import OptimizerConfig
from lm.models.parameters import matrix_axes
from lm.parallel.mesh import axis_names, current_mesh, mesh_axes, spread
from lm.training.names import Path, block_of, map_with_path, without_layer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration (Jordan 2024)
ITERATIONS = 5
NORM_EPSILON = 1e-8
UPDATE_RMS = 0.2  # roughly the value for AdamW; orthogonal updates are scaled to this value (Liu et al. 2025, sec. 2.2)
Axes = Mapping[str, tuple[str | None, ...]]  # the logical axes of each parameter, by name


def scale_by_muon_or_adam(config: OptimizerConfig, axes: Axes | None = None) -> optax.GradientTransformation:
    """Returns the direction of Muon (Jordan 2024), scaled as in Liu et al. 2025.

    The update of each matrix in each block is orthogonalised separately; all other parameters are updated by AdamW.
    Both methods use `b1` as their momentum; only AdamW uses `b2` and `epsilon`. `optax.contrib.muon` is not used,
    because it would decay every parameter that AdamW updates, and orthogonalise every matrix on every device.

    Args:
        axes: the logical axes of the parameters. They determine how updates traced `on_mesh` are divided among the
            devices. If None, every device orthogonalises all matrices.
    """

    def method(path: Path, _: Any) -> str:
        return "muon" if path[-1] == "kernel" and block_of(path) is not None else "adam"

    adam = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
    transforms = {"muon": scale_by_muon(config.b1, axes), "adam": adam}
    return optax.partition(transforms, lambda tree: map_with_path(method, tree))


def scale_by_muon(b1: float, axes: Axes | None = None) -> optax.GradientTransformation:
    """Returns Muon's direction for a tree of matrices: Nesterov's momentum with bias correction, orthogonalised.

    On one device, the state and the results are the same as those of `optax.contrib.scale_by_muon`.
    """

    def init(params: Any) -> MuonState:
        momentum = optax.tree.zeros_like(params)
        return MuonState(count=jnp.zeros((), jnp.int32), mu=momentum, ns_coeffs=jnp.asarray(COEFFICIENTS))

    def update(grads: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        del params
        momentum = optax.tree.update_moment(grads, state.mu, b1, 1)
        count = optax.safe_increment(state.count)
        looking_ahead = jax.tree.map(
            lambda m, g: b1 * m + (1 - b1) * g,
            optax.tree.bias_correction(momentum, b1, optax.safe_increment(count)),
            optax.tree.bias_correction(grads, b1, count),
        )
        updates = orthogonalise(looking_ahead, state.ns_coeffs, axes)
        return map_with_path(to_update_rms, updates), MuonState(count, momentum, state.ns_coeffs)

    return optax.GradientTransformation(init, update)


def split_momentum(state: Any, shardings: Any) -> Any:
    """Returns the shardings of a training state, with Muon's momentum split over all mesh axes where possible.

    `state` holds the shapes. In `shardings`, the momentum is sharded like the parameters.
    """

    def split(path: Path, leaf: Any, sharding: NamedSharding) -> NamedSharding:
        return NamedSharding(sharding.mesh, spread(sharding.spec, leaf.shape, _leading_axes(path), sharding.mesh))

    def node(shapes: Any, found: Any) -> Any:
        return found._replace(mu=map_with_path(split, shapes.mu, found.mu)) if isinstance(shapes, MuonState) else found

    return jax.tree.map(node, state, shardings, is_leaf=lambda each: isinstance(each, MuonState))


class Layout(NamedTuple):
    """How matrices are oriented and split. Matrices with the same layout are exchanged and orthogonalised together."""

    rows: int  # rows of a whole matrix; a matrix with more rows than columns is transposed
    columns: int
    row_axes: tuple[str, ...] = ()  # the mesh axes that split the rows
    column_axes: tuple[str, ...] = ()
    name: str = ""  # without a mesh, the parameter's name (no layer number), to keep groups small and save memory

    @property
    def axes(self) -> tuple[str, ...]:
        return self.row_axes + self.column_axes

    @property
    def transposed(self) -> Layout:
        return Layout(self.columns, self.rows, self.column_axes, self.row_axes, self.name)


class Parameter(NamedTuple):
    """A parameter that holds N matrices: its matrix axes, and the layout of its matrices, which may be transposed."""

    inputs: int  # number of input axes, which are followed by the output axes
    outputs: int
    layout: Layout
    is_transposed: bool

    def matrices(self, part: Array) -> Array:
        """Returns a device's part of the parameter as an array of shape (N, rows, columns)."""
        sides = part.shape[-self.inputs - self.outputs :]
        x_NRC = part.reshape(-1, math.prod(sides[: self.inputs]), math.prod(sides[self.inputs :]))
        return x_NRC.swapaxes(1, 2) if self.is_transposed else x_NRC


def orthogonalise(tree: Any, coefficients: Array, axes: Axes | None = None) -> Any:
    """Replaces the singular values of each matrix of each layer with values near 1, and keeps the singular vectors."""
    mesh = None if axes is None else current_mesh()
    specs: list[PartitionSpec] = []
    parameters: list[Parameter] = []

    def describe(path: Path, leaf: Array) -> None:
        inputs, outputs = matrix_axes(path)
        rows, columns = (math.prod(leaf.shape[axis] for axis in each) for each in (inputs, outputs))
        if axes is None or mesh is None:
            layout = Layout(rows, columns, name="/".join(without_layer(path)))
        else:
            leading = _leading_axes(path)
            specs.append(spread(mesh_axes(axes["/".join(path)]), leaf.shape, leading, mesh))
            row_axes, column_axes = (axis_names(specs[-1][axis]) for axis in leading)
            layout = Layout(rows, columns, row_axes, column_axes)
        least = min(layout, layout.transposed)
        parameters.append(Parameter(len(inputs), len(outputs), least, least != layout))

    map_with_path(describe, tree)
    leaves, structure = jax.tree.flatten(tree)
    sizes = {} if mesh is None else dict(mesh.shape)
    run = partial(_orthogonalise_parts, parameters, sizes)
    if specs:
        run = jax.shard_map(run, in_specs=(specs, PartitionSpec()), out_specs=specs)
    return jax.tree.unflatten(structure, run(leaves, coefficients))


def _orthogonalise_parts(
    parameters: list[Parameter], sizes: Mapping[str, int], parts: list[Array], coefficients: Array
) -> list[Array]:
    """Orthogonalises the parameters, of which this device holds `parts`. `sizes` holds the sizes of the mesh axes."""
    groups: dict[Layout, list[int]] = defaultdict(list)
    for index, parameter in enumerate(parameters):
        groups[parameter.layout].append(index)
    result = list(parts)
    for layout, members in groups.items():
        stacks = [parameters[index].matrices(parts[index]) for index in members]
        x_NRC = jnp.concatenate(stacks) if len(stacks) > 1 else stacks[0]
        split = [math.prod(sizes[axis] for axis in axes) for axes in (layout.row_axes, layout.column_axes)]
        if layout.axes:
            x_NRC = _scatter(newton_schulz(_gather(x_NRC, layout, split), coefficients), layout, split)
        else:
            x_NRC = newton_schulz(x_NRC, coefficients)
        start = 0
        for index, stack in zip(members, stacks, strict=True):
            own_NRC = x_NRC[start : start + len(stack)]
            own_NRC = own_NRC.swapaxes(1, 2) if parameters[index].is_transposed else own_NRC
            result[index], start = own_NRC.reshape(parts[index].shape), start + len(stack)
    return result


def _gather(x_NRC: Array, layout: Layout, split: list[int]) -> Array:
    """Exchanges this device's parts of all N matrices for this device's share of the whole matrices.

    The shares are padded with zero matrices if the number of devices does not divide N.
    """
    (r, c), (N, R, C) = split, x_NRC.shape
    x_NRC = jnp.pad(x_NRC, ((0, -N % (r * c)), (0, 0), (0, 0)))
    x = jax.lax.all_to_all(x_NRC.reshape(r * c, -1, R, C), layout.axes, split_axis=0, concat_axis=0)
    return x.reshape(r, c, -1, R, C).transpose(2, 0, 3, 1, 4).reshape(-1, r * R, c * C)


def _scatter(x_MRC: Array, layout: Layout, split: list[int]) -> Array:
    """Undoes `_gather`, except that the zero matrices remain at the end."""
    (r, c), (M, R, C) = split, x_MRC.shape
    x = x_MRC.reshape(M, r, R // r, c, C // c).transpose(1, 3, 0, 2, 4).reshape(r * c, M, R // r, C // c)
    return jax.lax.all_to_all(x, layout.axes, split_axis=0, concat_axis=0).reshape(-1, R // r, C // c)


def newton_schulz(x_NRC: Array, coefficients: Array) -> Array:
    """Orthogonalises N matrices with at most as many rows as columns, as in `optax.contrib`."""
    x_NRC /= jnp.linalg.norm(x_NRC, ord="fro", axis=(1, 2), keepdims=True) + NORM_EPSILON
    for _ in range(ITERATIONS):
        a_NRR = x_NRC @ x_NRC.mT
        b_NRR = coefficients[1] * a_NRR + coefficients[2] * a_NRR @ a_NRR
        x_NRC = coefficients[0] * x_NRC + b_NRR @ x_NRC
    return x_NRC


def _leading_axes(path: Path) -> tuple[int, int]:
    """Returns the first input axis and the first output axis, the only axes that a mesh may split."""
    inputs, outputs = matrix_axes(path)
    return inputs[0], outputs[0]


def to_update_rms(path: Path, update: Array) -> Array:
    """Scales the orthogonalised matrices of a parameter to a root mean square of UPDATE_RMS."""
    # The root mean square of an orthogonal R x C matrix is 1 / sqrt(max(R, C)).
    sizes = [math.prod(update.shape[axis] for axis in axes) for axes in matrix_axes(path)]
    return update * (UPDATE_RMS * math.sqrt(max(sizes)))
