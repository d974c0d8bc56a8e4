"""The base class of evaluators that apply a model to rows, and the evaluator of token-level metrics."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lm.batch import Array, Batch
from lm.config import ObjectiveConfig
from lm.data.packing.prefetch import prefetch
from lm.data.packing.rows import EvalRows
from lm.evaluation.evaluator import EvaluationSetup, Evaluator, Report, choose, named_metrics
from lm.evaluation.token_metrics import Sums
from lm.models.protocol import Model
from lm.objectives.losses import LossSums
from lm.parallel.mesh import batch_sharding, local_rows, on_mesh, to_global

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Scored:
    """The results of one batch, which are the same in every process."""

    row_ids: np.ndarray  # the rows of the batch, without padding rows
    sums: Sums
    logits_RLC: np.ndarray | None  # float32 logits of the same rows


class RowEvaluator(Evaluator):
    """Scores all rows of a split. During training, scores only about eval.max_rows evenly spaced rows.

    If there are several data sources, metrics are computed for each data source (`NAME/SOURCE/metric`) and for the
    whole split. If only some rows are scored, `NAME/rows` or `NAME/examples` is the number of scored rows or examples.
    The loss is the task's loss without label smoothing, z-loss or class weights. The forward pass is compiled only
    once.

    Args:
        task: a `lm.tasks.task.Task`. Evaluators for the same task and model reuse the same compiled programs.

    Attributes:
        num_rows: the number of rows that an evaluation scores.
        batch_size: the number of rows per batch, rounded up to a multiple of the number of shards.
    """

    with_logits = False

    def __init__(self, task: Any, setup: EvaluationSetup) -> None:
        config, mesh = setup.config, setup.mesh
        assert setup.rows, "a split must have at least one data source"
        self.name, self._rows = setup.name, dict(setup.rows)
        self._report: Report | None = None  # reports the progress of the current evaluation
        max_rows = config.eval.max_rows if setup.in_training else 0
        self._row_ids = choose({source: each.num_rows for source, each in setup.rows.items()}, max_rows)
        self.num_rows = sum(len(ids) for ids in self._row_ids.values())
        self._limited = any(len(ids) < self._rows[source].num_rows for source, ids in self._row_ids.items())
        self._model, self._task, self._objective, self._mesh = setup.model, task, config.objective, mesh
        self._sharding = batch_sharding(mesh)
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        largest = max(len(ids) for ids in self._row_ids.values())
        self.batch_size = shards * -(-min(config.eval.batch_size, largest) // shards)
        self._mine = local_rows(self._sharding, self.batch_size)

    def evaluate(self, params: Any, step: int, report: Report | None = None) -> dict[str, float]:
        self._report = report
        parts, done = {}, 0
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
        """Reduces the scored batches of a data source to the values from which its metrics are computed."""

    @abc.abstractmethod
    def _combine(self, parts: list[Any]) -> Any:
        """Combines the values that `_collect` returned for all data sources."""

    @abc.abstractmethod
    def _metrics(self, part: Any) -> dict[str, float]:
        """Computes the metrics of a data source or of the whole split from the reduced values."""

    def _count(self, whole: Any) -> tuple[str, int]:
        """Returns the unit of the scored subset, such as "rows", and the size of the subset in this unit."""
        return "rows", self.num_rows

    def _score(self, params: Any, source: str, done: int) -> Iterator[Scored]:
        """Yields the results of each batch. `done` is the number of rows already scored in other data sources.

        Sums within a batch are computed in float32 on the device. The sums of the batches are added in float64.
        """
        for scored in self._batches(params, self._rows[source], self._row_ids[source]):
            done += len(scored.row_ids)
            yield scored
            if self._report is not None:
                self._report(done, self.num_rows)

    def _batches(self, params: Any, rows: EvalRows, row_ids: np.ndarray) -> Iterator[Scored]:
        # A row id equal to the number of rows stands for a padding row, whose weights are 0.
        padded = np.pad(row_ids, (0, -len(row_ids) % self.batch_size), constant_values=rows.num_rows)

        def make(i: int) -> Batch:
            return rows.rows(padded[i * self.batch_size + self._mine])

        running: tuple[np.ndarray, tuple[Array, Array | None]] | None = None
        with prefetch(make, 0, len(padded) // self.batch_size, 0, BATCHES_AHEAD) as batches, on_mesh(self._mesh):
            for i, local in enumerate(batches):
                assert self.batch_size * local.shape[1] < 2**24, "a batch has too many tokens to be counted in float32"
                batch = to_global(local, self._mine, self._sharding, self.batch_size)
                # The results of a batch are read while the next batch is running, so that the device never waits.
                ids = row_ids[i * self.batch_size : (i + 1) * self.batch_size]
                found = forward_batch(self._model, self._task, self._objective, self.with_logits, params, batch)
                previous, running = running, (ids, found)
                if previous is not None:
                    yield _read(*previous)
            if running is not None:
                yield _read(*running)


class TokenEvaluator(RowEvaluator):
    """Computes metrics such as loss, perplexity and accuracy from sums over the target tokens.

    If only some rows are scored, the numbers of bytes and words are estimated from the share of the targets that these
    rows contain.

    Args:
        metrics: a function that computes the metrics from `Sums`.
        missing: a function of `Sums` that maps each metric that cannot be computed to the reason.
    """

    def __init__(
        self,
        task: Any,
        setup: EvaluationSetup,
        metrics: Callable[[Sums], dict[str, float]],
        missing: Callable[[Sums], dict[str, str]] = lambda _: {},
    ) -> None:
        super().__init__(task, setup)
        self._metrics_of, self._missing_of = metrics, missing

    @property
    def missing(self) -> dict[str, str]:
        return self._missing_of(self._combine([_text(rows, rows.totals["targets"]) for rows in self._rows.values()]))

    def _collect(self, source: str, batches: Iterator[Scored]) -> Sums:
        sums, rows = self._combine([each.sums for each in batches]), self._rows[source]
        if len(self._row_ids[source]) == rows.num_rows:
            assert sums.weight == rows.totals["targets"], (source, sums.weight, rows.totals)
        return sums + _text(rows, sums.weight)

    def _combine(self, parts: list[Sums]) -> Sums:
        return sum(parts, Sums())

    def _metrics(self, part: Sums) -> dict[str, float]:
        return self._metrics_of(part)


def _text(rows: EvalRows, targets: float) -> Sums:
    """Returns the size of the scored text. If `targets` is less than the number of all targets, it is an estimate."""
    share = targets / rows.totals["targets"] if rows.totals["targets"] else 0.0
    sizes = {name: share * rows.totals[name] for name in ("bytes", "words")}
    # `changed` is counted only for windows over whole documents; other rows do not cover every byte of the text.
    return Sums(**sizes, unknown=rows.totals["unknown"], changed=rows.totals.get("changed", 0))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def forward_batch(
    model: Model, task: Any, objective: ObjectiveConfig, with_logits: bool, params: Any, batch: Batch
) -> tuple[Array, Array | None]:
    """Returns the stacked `LossSums` of a batch and, if `with_logits` is true, the logits. Both are replicated on all
    devices.

    All evaluators of the same model and task share one compiled program.
    """
    output = model.apply({"params": params}, batch, train=False)
    sums = jnp.stack(dataclasses.astuple(task.loss(output, batch, objective)))
    found = sums, output.logits if with_logits else None
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), found)


def _read(row_ids: np.ndarray, found: tuple[Array, Array | None]) -> Scored:
    sums, logits = found
    names = (field.name for field in dataclasses.fields(LossSums))
    named = dict(zip(names, np.asarray(sums, np.float64).tolist(), strict=True))
    del named["loss"]  # evaluations report the plain cross-entropy, `nll`
    return Scored(row_ids, Sums(**named), None if logits is None else np.asarray(logits)[: len(row_ids)])
