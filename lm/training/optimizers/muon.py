"""Muon for the matrices of the blocks, AdamW for everything else."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax

from lm.config import OptimizerConfig
from lm.training.names import Path, block_of, map_with_path, matrix_axes

# AdamW's updates have a root mean square of about 0.2; orthogonal ones are scaled to the same (Liu et al. 2025, 2.2).
UPDATE_RMS = 0.2


def scale_by_muon_or_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns the direction of Muon (Jordan 2024), scaled as in Liu et al. 2025.

    Each matrix of each block is orthogonalised by itself. `b1` is the momentum of both methods, `b2` and `epsilon`
    belong to AdamW. `optax.contrib.muon` is not used, because it would decay every parameter that AdamW updates.
    """

    def method(path: Path, _: Any) -> str:
        return "muon" if path[-1] == "kernel" and block_of(path) is not None else "adam"

    def axes(path: Path, _: Any) -> optax.contrib.MuonDimensionNumbers:
        return optax.contrib.MuonDimensionNumbers(*matrix_axes(path))

    def to_update_rms(path: Path, update: jax.Array) -> jax.Array:
        # The root mean square of an orthogonal R x C matrix is 1 / sqrt(max(R, C)).
        sizes = [math.prod(update.shape[axis] for axis in axes) for axes in matrix_axes(path)]
        return update * (UPDATE_RMS * math.sqrt(max(sizes)))

    orthogonal = optax.chain(
        optax.contrib.scale_by_muon(beta=config.b1, weight_dimension_numbers=lambda tree: map_with_path(axes, tree)),
        optax.stateless(lambda updates, params: map_with_path(to_update_rms, updates)),
    )
    adam = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
    return optax.partition({"muon": orthogonal, "adam": adam}, lambda tree: map_with_path(method, tree))
