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


def muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns the direction of Muon (Jordan 2024), scaled as in Liu et al. 2025.

    Each matrix of each block is orthogonalised by itself. `b1` is the momentum of both methods, `b2` and `epsilon`
    belong to AdamW. `optax.contrib.muon` is not used, because it would decay every parameter that AdamW updates.
    """
    orthogonal = optax.chain(
        optax.contrib.scale_by_muon(beta=config.b1, weight_dimension_numbers=_dimension_numbers),
        optax.stateless(lambda updates, params: map_with_path(_scale_orthogonal, updates)),
    )
    return optax.partition(
        {"muon": orthogonal, "adam": optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon)},
        lambda tree: map_with_path(lambda path, _: "muon" if _is_orthogonalised(path) else "adam", tree),
    )


def _is_orthogonalised(path: Path) -> bool:
    return path[-1] == "kernel" and block_of(path) is not None


def _dimension_numbers(tree: Any) -> Any:
    return map_with_path(lambda path, _: optax.contrib.MuonDimensionNumbers(*matrix_axes(path)), tree)


def _scale_orthogonal(path: Path, update: jax.Array) -> jax.Array:
    """Scales an update to UPDATE_RMS; that of an orthogonal R x C matrix is 1 / sqrt(max(R, C))."""
    sizes = [math.prod(update.shape[axis] for axis in axes) for axes in matrix_axes(path)]
    return update * (UPDATE_RMS * math.sqrt(max(sizes)))
