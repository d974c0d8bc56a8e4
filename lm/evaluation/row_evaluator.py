"""The base of the evaluators that run a model over rows: sums of the loss and, if needed, the logits."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lm.batch import Array, Batch, Output
from lm.config import ObjectiveConfig
from lm.data.packing.prefetch import prefetch
from lm.data.packing.rows import EvalRows
from lm.evaluation.evaluator import EvaluationSetup, Evaluator, choose, named_metrics
from lm.evaluation.token_metrics import Sums
from lm.models.protocol import Model
from lm.objectives.losses import LossSums
from lm.parallel.mesh import batch_sharding, local_rows, on_mesh, to_global

BATCHES_AHEAD = 2


class HasLoss(Protocol):
    """The methods of a task that scoring a batch needs. Hashable: compiled programs are shared by task."""

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums: ...


@dataclass(frozen=True)
class Scored:
    """The result of one batch, the same in every process."""

    row_ids: np.ndarray  # without those of padding
    sums: Sums
    logits_RLC: np.ndarray | None  # of the same rows, float32


class RowEvaluator(Evaluator):
    """Scores all rows of a split, or during training about eval.max_rows of them, spread evenly.

    With several data sources there are metrics for each, `NAME/SOURCE/metric`, and for the whole. If not all rows are
    scored, `NAME/rows` or `NAME/examples` gives the number of what is. The loss is the task's own, without smoothing,
    z-loss or class weights. The forward pass is compiled at the first call and reused by later ones.

    Attributes:
        batch_size: rows at a time, rounded up to what the mesh divides.
    """

    with_logits = False

    def __init__(self, task: HasLoss, setup: EvaluationSetup) -> None:
        config, mesh = setup.config, setup.mesh
        assert setup.rows, "a split has at least one data source"
        self.name, self._rows, self._report = setup.name, dict(setup.rows), setup.report
        self._row_ids = choose({source: each.num_rows for source, each in setup.rows.items()}, setup.max_rows)
        self._limited = any(len(ids) < self._rows[source].num_rows for source, ids in self._row_ids.items())
        self._model, self._task, self._objective, self._mesh = setup.model, task, config.objective, mesh
        self._sharding = batch_sharding(mesh)
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        largest = max(len(ids) for ids in self._row_ids.values())
        self.batch_size = shards * -(-min(config.eval.batch_size, largest) // shards)
        self._mine = local_rows(self._sharding, self.batch_size)

    @property
    def num_rows(self) -> int:
        """Rows that an evaluation scores."""
        return sum(len(ids) for ids in self._row_ids.values())

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        """Returns the metrics of the split. `step` plays no role."""
        parts: dict[str, Any] = {}
        done = 0
        for source, row_ids in self._row_ids.items():
            if len(row_ids):
                parts[source] = self._collect(source, self._score(params, source, done))
                done += len(row_ids)
        whole = self._combine(list(parts.values()))
        result = named_metrics(self.name, parts if len(self._rows) > 1 else {}, whole, self._metrics)
        if self._limited:
            noun, count = self._count(whole)
            result[f"{self.name}/{noun}"] = float(count)
        return result

    @abc.abstractmethod
    def _collect(self, source: str, batches: Iterator[Scored]) -> Any:
        """Returns what is needed of the batches of a data source."""

    @abc.abstractmethod
    def _combine(self, parts: list[Any]) -> Any:
        """Returns what was collected from all data sources as one."""

    @abc.abstractmethod
    def _metrics(self, part: Any) -> dict[str, float]:
        """Returns the metrics of what was collected."""

    def _count(self, whole: Any) -> tuple[str, int]:
        """Returns what is counted if only a part is scored, and how many of it were."""
        return "rows", self.num_rows

    def _score(self, params: Any, source: str, done: int) -> Iterator[Scored]:
        """Yields batch by batch; `done` rows of other data sources were scored before.

        Sums are added up over a batch in float32 on the device; add them up over batches in float64.
        """
        rows, row_ids = self._rows[source], self._row_ids[source]
        for scored in self._batches(params, rows, row_ids):
            done += len(scored.row_ids)
            yield scored
            if self._report is not None:
                self._report(done, self.num_rows)

    def _batches(self, params: Any, rows: EvalRows, row_ids: np.ndarray) -> Iterator[Scored]:
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
                # The batch before is read once this one is under way, so that the device never waits.
                before = held
                ids = row_ids[i * self.batch_size : (i + 1) * self.batch_size]
                held = ids, forward_batch(self._model, self._task, self._objective, self.with_logits, params, batch)
                if before is not None:
                    yield _read(*before)
            if held is not None:
                yield _read(*held)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def forward_batch(
    model: Model, task: HasLoss, objective: ObjectiveConfig, with_logits: bool, params: Any, batch: Batch
) -> tuple[Array, Array | None]:
    """Returns the sums of a batch, and the logits, on every device. Compiled once for all evaluators of a model."""
    output = model.apply({"params": params}, batch, train=False)
    sums = jnp.stack(dataclasses.astuple(task.loss(output, batch, objective)))
    found = sums, output.logits if with_logits else None
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), found)


def _read(row_ids: np.ndarray, found: tuple[Array, Array | None]) -> Scored:
    sums, logits = found
    names = (field.name for field in dataclasses.fields(LossSums))
    named = dict(zip(names, np.asarray(sums, np.float64).tolist(), strict=True))
    del named["loss"]  # evaluations report the plain cross-entropy
    return Scored(row_ids, Sums(**named), None if logits is None else np.asarray(logits)[: len(row_ids)])
