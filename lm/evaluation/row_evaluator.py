"""The base class of evaluators that apply a model to rows, and the evaluator of token-level metrics."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lm.batch import Array, Batch
from lm.config import ObjectiveConfig
from lm.data.packing.prefetch import GlobalBatches, prefetch
from lm.evaluation.evaluator import EvaluationRows, EvaluationSetup, Evaluator, Report, choose, named_metrics
from lm.evaluation.token_metrics import Sums
from lm.models.protocol import Model
from lm.objectives.losses import LossSums
from lm.parallel.mesh import on_mesh, place_cache

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
    The loss is the task's loss without label smoothing, z-loss or class weights.

    Attributes:
        num_rows: the number of rows that an evaluation scores.
        batch_size: the number of rows per batch, rounded up to a multiple of the number of shards.
    """

    with_logits = False

    def __init__(self, task: Any, setup: EvaluationSetup) -> None:
        config, mesh = setup.config, setup.mesh
        assert setup.rows, "a split must have at least one data source"
        self.name, self._config = setup.name, config
        self._rows: dict[str, Any] = dict(setup.rows)  # subclasses may need more than `EvaluationRows`
        self._model, self._task, self._mesh = setup.model, task, mesh
        sizes = {source: each.num_rows for source, each in setup.rows.items()}
        self._row_ids = self._choose(sizes, config.eval.max_rows if setup.in_training else 0)
        counts = [len(ids) for ids in self._row_ids.values()]
        self.num_rows = sum(counts)
        self._limited = self.num_rows < sum(sizes.values())
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = shards * -(-min(config.eval.batch_size, max(counts)) // shards)
        self._global_batches = GlobalBatches(mesh, self.batch_size)

    def evaluate(self, params: Any, step: int, report: Report | None = None) -> dict[str, float]:
        done = 0

        def batches(source: str) -> Iterator[Scored]:
            nonlocal done
            for scored in self._batches(params, source):
                done += len(scored.row_ids)
                yield scored
                if report is not None:
                    report(done, self.num_rows)

        parts = {source: self._collect(source, batches(source)) for source, ids in self._row_ids.items() if len(ids)}
        whole = self._combine(list(parts.values()))
        result = named_metrics(self.name, parts if len(self._rows) > 1 else {}, whole, self._metrics)
        if self._limited:
            noun, count = self._count()
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

    def _count(self) -> tuple[str, int]:
        """Returns the unit in which the scored subset is counted, such as "rows", and its size in this unit."""
        return "rows", self.num_rows

    def _choose(self, sizes: Mapping[str, int], limit: int) -> dict[str, np.ndarray]:
        """Returns the indices of the rows to score, about `limit` in total; 0 means all."""
        return choose(sizes, limit)

    def _rows_per_batch(self) -> int:
        """Returns the number of rows to score in each batch; the remaining rows, up to `batch_size`, are padding."""
        return self.batch_size

    def _first_cache(self) -> Any:
        """Returns the cache that the model receives with the first batch of a data source, or None."""

    def _batches(self, params: Any, source: str) -> Iterator[Scored]:
        """Yields the results of each batch. Sums use float32 within a batch and float64 across batches."""
        rows, count = self._rows[source], self._rows_per_batch()
        chosen = np.split(self._row_ids[source], range(count, len(self._row_ids[source]), count))

        def make(i: int) -> Batch:
            # A row id equal to the number of rows stands for a padding row, whose weights are 0.
            padding = self.batch_size - len(chosen[i])
            return rows.rows(
                np.pad(chosen[i], (0, padding), constant_values=rows.num_rows)[self._global_batches.row_ids]
            )

        running: tuple[np.ndarray, tuple[Array, Array | None]] | None = None
        cache, objective = self._first_cache(), self._config.objective
        with prefetch(make, 0, len(chosen), 0, BATCHES_AHEAD) as batches, on_mesh(self._mesh):
            for ids, local in zip(chosen, batches, strict=True):
                assert self.batch_size * local.shape[1] < 2**24, "a batch has too many tokens to be counted in float32"
                batch = self._global_batches.place(local)
                # The results of a batch are read while the next batch is running, so that the device never waits.
                found, cache = forward_batch(self._model, self._task, objective, self.with_logits, params, batch, cache)
                previous, running = running, (ids, found)
                if previous is not None:
                    yield _read(*previous)
            if running is not None:
                yield _read(*running)


class TokenEvaluator(RowEvaluator):
    """Computes metrics such as loss, perplexity and accuracy from sums over the target tokens.

    `missing` returns the metrics that cannot be computed from the given sums, each with the reason. `signatures` holds
    the definition used for each metric that can be defined in several ways.
    """

    def __init__(
        self,
        task: Any,
        setup: EvaluationSetup,
        metrics: Callable[[Sums], dict[str, float]],
        missing: Callable[[Sums], dict[str, str]] = lambda _: {},
        signatures: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(task, setup)
        self._metrics_of, self._missing_of, self._signatures = metrics, missing, dict(signatures or {})

    @property
    def signatures(self) -> dict[str, str]:
        return self._signatures

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


def _text(rows: EvaluationRows, targets: float) -> Sums:
    """Returns the size of the scored text, estimated from its share of all targets."""
    share = targets / rows.totals["targets"] if rows.totals["targets"] else 0.0
    sizes = {name: share * rows.totals[name] for name in ("bytes", "words")}
    # `changed` is counted only for windows over whole documents; other rows do not cover every byte of the text.
    return Sums(**sizes, unknown=rows.totals["unknown"], changed=rows.totals.get("changed", 0))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def forward_batch(
    model: Model, task: Any, objective: ObjectiveConfig, with_logits: bool, params: Any, batch: Batch, cache: Any = None
) -> tuple[tuple[Array, Array | None], Any]:
    """Returns the stacked `LossSums` of a batch and, if `with_logits` is true, the logits, replicated on all devices.

    If a cache is given, the batch continues the cached texts, and the new cache is returned as well. All evaluators of
    the same model and task share one compiled program.
    """
    continued = {} if cache is None else {"cache": cache}
    output = model.apply({"params": params}, batch, train=False, **continued)
    sums = jnp.stack(dataclasses.astuple(task.loss(output, batch, objective)))
    found = sums, output.logits if with_logits else None
    found = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), found)
    return found, None if cache is None else place_cache(output.cache)


def _read(row_ids: np.ndarray, found: tuple[Array, Array | None]) -> Scored:
    sums, logits = found
    named = dataclasses.asdict(LossSums(*np.asarray(sums, np.float64).tolist()))
    del named["loss"]  # evaluations report the plain cross-entropy, `nll`
    return Scored(row_ids, Sums(**named), None if logits is None else np.asarray(logits)[: len(row_ids)])
