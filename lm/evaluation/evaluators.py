"""Evaluators: named plug-ins that training and eval.py run alike, `evaluate(params, step) -> figures`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lm.batch import Array, Batch
from lm.config import ObjectiveConfig
from lm.data.loader import prefetch
from lm.evaluation.metrics import Sums, figures, missing_figures
from lm.models.transformer import Model
from lm.objectives.cross_entropy import loss_sums
from lm.parallel.mesh import batch_sharding, local_rows, on_mesh, to_global
from lm.rows import AnyEvalRows

BATCHES_AHEAD = 2


class Evaluator(Protocol):
    """What the training loop and eval.py ask of any evaluator."""

    name: str

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        """Figures of these parameters, as `NAME/figure`. Every process calls it and gets the same."""
        ...


class LanguageModelling:
    """Loss, perplexity, bits per byte and accuracy over all rows of a split, each token scored once.

    Args:
        rows: by source. With several there are figures for each, `NAME/SOURCE/figure`, and of the whole.
        objective: the loss reported is the plain cross-entropy, without smoothing or z-loss.
        batch_size: rows at a time, rounded up to what the mesh divides.
        max_rows: score only so many, spread evenly; 0 for all. Then `NAME/rows` says how many there were,
            and the bytes and words of the scored part are taken in proportion to its tokens.
        report: told (rows done, rows in all) after each batch.

    The forward pass is compiled at the first call and reused by later ones.
    """

    def __init__(
        self,
        model: Model,
        rows: Mapping[str, AnyEvalRows],
        objective: ObjectiveConfig,
        mesh: Mesh,
        *,
        batch_size: int,
        name: str = "valid",
        max_rows: int = 0,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        assert rows, "a split has at least one source"
        self.name = name
        self._rows, self._mesh, self._report = dict(rows), mesh, report
        self._row_ids = choose_rows({source: each.num_rows for source, each in rows.items()}, max_rows)
        self._limited = any(len(ids) < rows[source].num_rows for source, ids in self._row_ids.items())
        self._sharding = batch_sharding(mesh)
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        largest = max(len(ids) for ids in self._row_ids.values())
        self.batch_size = shards * -(-min(batch_size, largest) // shards)
        self._mine = local_rows(self._sharding, self.batch_size)
        self._model, self._objective = model, objective

    @property
    def num_rows(self) -> int:
        """Rows that an evaluation scores."""
        return sum(len(ids) for ids in self._row_ids.values())

    @property
    def missing(self) -> dict[str, str]:
        """Figures that the text or the tokenizer do not allow, each with the reason."""
        whole = Sums()
        for rows in self._rows.values():
            whole += _text_of(rows, rows.totals["targets"])
        return missing_figures(whole)

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        """Figures of the split; see the class. `step` plays no part: all of the split is scored each time."""
        result: dict[str, float] = {}
        total, done = Sums(), 0
        for source, rows in self._rows.items():
            row_ids = self._row_ids[source]
            if not len(row_ids):
                continue
            sums = self._source_sums(params, rows, row_ids, done)
            done += len(row_ids)
            if len(row_ids) == rows.num_rows:
                assert sums.weight == rows.totals["targets"], (source, sums.weight, rows.totals)
            total += sums
            if len(self._rows) > 1:
                result |= {f"{self.name}/{source}/{figure}": value for figure, value in figures(sums).items()}
        result |= {f"{self.name}/{figure}": value for figure, value in figures(total).items()}
        if self._limited:
            result[f"{self.name}/rows"] = float(self.num_rows)
        return result

    def _source_sums(self, params: Any, rows: AnyEvalRows, row_ids: np.ndarray, done: int) -> Sums:
        num_batches = -(-len(row_ids) // self.batch_size)
        # Ids past the end are rows of padding, which weigh nothing.
        padded = np.full(num_batches * self.batch_size, rows.num_rows, np.int64)
        padded[: len(row_ids)] = row_ids

        def make(i: int) -> Batch:
            return rows.rows(padded[i * self.batch_size + self._mine])

        # Summed over a batch in float32 on the device, over batches in float64 here.
        nll, correct, weight = 0.0, 0.0, 0.0
        held: Array | None = None
        with prefetch(make, 0, num_batches, 0, BATCHES_AHEAD) as batches, on_mesh(self._mesh):
            for i, local in enumerate(batches):
                assert self.batch_size * local.shape[1] < 2**24, "a float32 could not count the tokens of a batch"
                batch = to_global(local, self._mine, self._sharding, self.batch_size)
                # The batch before is read when this one is under way, so that the device never waits.
                before, held = held, batch_sums(self._model, self._objective, params, batch)
                for each in (before, held if i == num_batches - 1 else None):
                    if each is not None:
                        read = np.asarray(each, np.float64)
                        nll, correct, weight = nll + read[0], correct + read[1], weight + read[2]
                if self._report is not None:
                    self._report(done + min((i + 1) * self.batch_size, len(row_ids)), self.num_rows)
        return Sums(nll=float(nll), correct=float(correct), weight=float(weight)) + _text_of(rows, weight)


@functools.partial(jax.jit, static_argnums=(0, 1))
def batch_sums(model: Model, objective: ObjectiveConfig, params: Any, batch: Batch) -> Array:
    """(nll, correct, weight) of a batch, on every device. Compiled once for all evaluators of a model."""
    sums = loss_sums(model.apply({"params": params}, batch, train=False).logits, batch, objective)
    return jax.lax.with_sharding_constraint(jnp.stack([sums.nll, sums.correct, sums.weight]), PartitionSpec())


def _text_of(rows: AnyEvalRows, targets: float) -> Sums:
    """Size of the text behind `targets` scored tokens; exact for all of them, else in proportion."""
    share = targets / rows.totals["targets"] if rows.totals["targets"] else 0.0
    return Sums(bytes=share * rows.totals["bytes"], words=share * rows.totals["words"], unknown=rows.totals["unknown"])


def choose_rows(num_rows: Mapping[str, int], max_rows: int) -> dict[str, np.ndarray]:
    """Row ids by source: all, or about `max_rows` of them spread evenly, every source in proportion."""
    total = sum(num_rows.values())
    if max_rows == 0 or max_rows >= total:
        return {source: np.arange(count) for source, count in num_rows.items()}
    chosen = {}
    for source, count in num_rows.items():
        wanted = min(count, max(1, round(max_rows * count / total)))
        chosen[source] = np.arange(wanted) * count // max(1, wanted)
    return chosen
