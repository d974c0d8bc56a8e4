"""Runs a model over evaluation rows: the sums of the loss and, if asked for, what the head gave for each token."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lm.batch import Array, Batch
from lm.config import ObjectiveConfig
from lm.data.packing.prefetch import prefetch
from lm.data.packing.rows import EvalRows
from lm.evaluation.evaluator import HasLoss
from lm.models.transformer.wiring import Model
from lm.objectives.cross_entropy import LossSums
from lm.parallel.mesh import batch_sharding, local_rows, on_mesh, to_global

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Scored:
    """What came of one batch, the same in every process."""

    row_ids: np.ndarray  # of its rows, without those of padding
    sums: LossSums  # of floats
    logits_RLC: np.ndarray | None  # of the same rows, float32


class Scorer:
    """Compiled at the first call and reused by later ones; `batch_size` is rounded up to what the mesh divides."""

    def __init__(
        self,
        model: Model,
        task: HasLoss,
        objective: ObjectiveConfig,
        mesh: Mesh,
        batch_size: int,
        with_logits: bool = False,
    ) -> None:
        self._model, self._task, self._objective, self._mesh, self._with_logits = (
            model,
            task,
            objective,
            mesh,
            with_logits,
        )
        self._sharding = batch_sharding(mesh)
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = shards * -(-batch_size // shards)
        self._mine = local_rows(self._sharding, self.batch_size)

    def score(self, params: Any, rows: EvalRows, row_ids: np.ndarray) -> Iterator[Scored]:
        """Batch by batch. Summed over a batch in float32 on the device; add up over batches in float64."""
        num_batches = -(-len(row_ids) // self.batch_size)
        # Ids past the end are rows of padding, which weigh nothing.
        padded = np.full(num_batches * self.batch_size, rows.num_rows, np.int64)
        padded[: len(row_ids)] = row_ids

        def make(i: int) -> Batch:
            return rows.rows(padded[i * self.batch_size + self._mine])

        held: tuple[np.ndarray, tuple[Array, Array | None]] | None = None
        with prefetch(make, 0, num_batches, 0, BATCHES_AHEAD) as batches, on_mesh(self._mesh):
            for i, local in enumerate(batches):
                assert self.batch_size * local.shape[1] < 2**24, "a float32 could not count the tokens of a batch"
                batch = to_global(local, self._mine, self._sharding, self.batch_size)
                # The batch before is read when this one is under way, so that the device never waits.
                before = held
                ids = row_ids[i * self.batch_size : (i + 1) * self.batch_size]
                held = ids, forward_batch(self._model, self._task, self._objective, self._with_logits, params, batch)
                if before is not None:
                    yield _read(*before)
            if held is not None:
                yield _read(*held)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def forward_batch(
    model: Model, task: HasLoss, objective: ObjectiveConfig, with_logits: bool, params: Any, batch: Batch
) -> tuple[Array, Array | None]:
    """Sums of a batch, and the logits, on every device. Compiled once for all evaluators of a model."""
    output = model.apply({"params": params}, batch, train=False)
    sums = jnp.stack(dataclasses.astuple(task.loss(output, batch, objective)))
    found = sums, output.logits if with_logits else None
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), found)


def _read(row_ids: np.ndarray, found: tuple[Array, Array | None]) -> Scored:
    sums, logits = found
    values = np.asarray(sums, np.float64).tolist()
    return Scored(row_ids, LossSums(*values), None if logits is None else np.asarray(logits)[: len(row_ids)])
