"""Builds the results of an evaluation: metrics, notes and the overlap with the training data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lm.config import Config
from lm.data.storing.overlap import Hashes, files_read_differently
from lm.errors import UserError
from lm.evaluation import metric_of
from lm.evaluation.evaluator import SplitEvaluation
from lm.parallel.distributed import is_first
from lm.reporting.table import Result
from lm.tasks import task_of
from lm.tasks.task import Tokenizers
from lm.training.startup import versions

SPLITS = ("valid", "test", "train")


def make_result(
    config: Config,
    evaluation: SplitEvaluation,
    rows: Mapping[str, Any],
    values: Mapping[str, float],
    stores: Mapping[str, Any],
    tokenizers: Tokenizers,
    seconds: float,
    details: dict[str, Any],
    trained: Hashes | None,
    **labels: Any,
) -> Result:
    """Builds the result of an evaluation from its metrics (`values`). `labels` holds the run, step and split.

    `rows` holds the EvalRows of each data source. The overlap with the training examples is reported if their hashes
    (`trained`) are given. Raises UserError if the loss is not finite or a metric is NaN.
    """
    task, plain = task_of(config), evaluation.plain(values)
    _check_finite(plain, **labels)
    metrics = task.for_table(plain)
    if is_first():
        metrics |= task.yardsticks(config, stores, tokenizers.target, metrics)
    signatures = evaluation.signatures
    for source, each in rows.items():
        if notes := each.examples.notes:
            signatures[f"note on {source}" if len(rows) > 1 else "note on the data"] = "; ".join(notes)
    if trained is not None:
        overlap = trained.overlap(stores)
        details = details | {"also_trained_on": dataclasses.asdict(overlap)}
        signatures |= {f"{task.noun} that are also used for training": str(overlap)} if overlap else {}
        split = labels["split"].partition("/")[0]
        if lines := files_read_differently(config.data, split if split in SPLITS else "test"):
            signatures["files that are also used for training"] = "; ".join(lines)
    return Result(
        metrics=metrics,
        rows=evaluation.num_rows,
        sequence_length=config.data.sequence_length if task.windowed else None,
        stride=config.eval.stride if task.windowed else None,
        seconds=seconds,
        missing=evaluation.missing,
        signatures=signatures,
        details=details | {"versions": versions()},
        **labels,
    )


def _check_finite(metrics: Mapping[str, float], run: str, step: int, split: str) -> None:
    for name, value in metrics.items():
        metric = name.rpartition("/")[2]
        if math.isnan(value) or (math.isinf(value) and metric == "loss"):
            what = "the loss" if metric == "loss" else metric_of(metric).heading
            raise UserError(
                f"{run}, step {step}: {what} on {split} is {value}, so the results are meaningless and were not "
                "written. The model has diverged, or values overflow on this data; try another --step or "
                "model.dtype='float32', or train again with a lower optimizer.learning_rate."
            )
