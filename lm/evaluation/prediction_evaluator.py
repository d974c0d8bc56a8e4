"""The evaluator for labelled tasks, which compares the predictions for a split with the true labels.

E is the number of raw examples, R is the number of rows in a batch, L is the length of a row, and C is the number of
labels.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lm.config import Config
from lm.data.examples.labelled import LabelledExamples
from lm.errors import UserError
from lm.evaluation import metric_of
from lm.evaluation.evaluator import EvaluationSetup
from lm.evaluation.intervals import Interval, intervals
from lm.evaluation.predictions import write_objects
from lm.evaluation.row_evaluator import RowEvaluator, Scored
from lm.evaluation.token_metrics import Sums, ratio


class Predictions(abc.ABC):
    """A model's predictions for raw examples of a task: one output per example, and values shared by all examples."""

    label_key: ClassVar[str]  # the key under which `line` stores the correct output
    keys: ClassVar[tuple[str, ...]]  # the keys of `line` by which lm.compare recognises this class

    def __init__(self, raw: Sequence[Any], outputs: Sequence[Any] | np.ndarray, *shared: Any):
        self.raw, self.outputs, self.shared = list(raw), list(outputs), shared

    @classmethod
    @abc.abstractmethod
    def read(cls, lines: Sequence[Mapping[str, Any]], config: Config | None = None) -> Predictions:
        """Restores predictions from objects that `line` returned. `config` is the config of the run, if known.

        Raises KeyError, TypeError or ValueError for invalid objects.
        """

    @abc.abstractmethod
    def metrics(self, indices_E: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """Computes the metrics of all examples or of the examples with the given indices, which may repeat."""

    @property
    def signatures(self) -> dict[str, str]:
        """Returns the definition used for each metric that can be defined in several ways."""
        return {}

    def joined(self, others: Sequence[Predictions]) -> Predictions:
        """Concatenates these predictions with the predictions for other data sources."""
        parts = (self, *others)
        raw, outputs = [each for part in parts for each in part.raw], [each for part in parts for each in part.outputs]
        return type(self)(raw, outputs, *self.shared)

    @abc.abstractmethod
    def preview(self, index: int) -> dict[str, str]:
        """Returns the input, prediction and correct output of an example, keyed by name, for display."""

    @abc.abstractmethod
    def line(self, index: int) -> dict[str, Any]:
        """Returns an example and its prediction as a JSON object, one line of `STEM.jsonl`."""

    def details(self, index: int) -> dict[str, Any]:
        """Returns the fields that lm.predict writes for a prediction in addition to the fields of `line`."""
        return {}

    def input_line(self, index: int) -> dict[str, Any]:
        """Returns the JSON object that lm.predict writes for an unlabelled example and its prediction."""
        line = self.line(index)
        del line[self.label_key]
        return line | self.details(index)

    def write(self, directory: Path, stem: str) -> list[Path]:
        """Writes `STEM.jsonl` and, for some tasks, images. Returns the paths of the files. May raise OSError."""
        path = directory / f"{stem}.jsonl"
        write_objects(path, map(self.line, range(len(self.raw))))
        return [path]


class PredictionEvaluator(RowEvaluator):
    """Compares predictions with labels and computes metrics. Each example counts once.

    The metrics of the whole split are computed from the predictions for all data sources together. If only some rows
    are scored, only the examples that lie entirely in scored rows count. Raises UserError if a data source has no such
    example. `task` provides `predict`, as `LabelledTask` does.
    """

    with_logits = True
    whole: Predictions  # the predictions of the last evaluation for all data sources

    def __init__(self, task: Any, setup: EvaluationSetup) -> None:
        super().__init__(task, setup)
        self.undefined: set[str] = set()
        for source, rows in self._rows.items() if self._limited else ():
            present = {example for row in self._row_ids[source].tolist() for example, _ in rows.starts(row)}
            if not whole_examples(rows.examples, present):
                raise UserError(
                    f"config.eval.max_rows: no example of {source} lies entirely within its "
                    f"{len(self._row_ids[source])} scored rows (of {rows.num_rows}); raise eval.max_rows, or set it "
                    "to 0 to score all rows."
                )

    def _collect(self, source: str, batches: Iterator[Scored]) -> tuple[Sums, Predictions]:
        sums, examples, logits = Sums(), self._rows[source].examples, dict[int, np.ndarray]()
        for scored in batches:
            sums += scored.sums
            logits.update(self._by_example(source, scored))
        if sums.weight == 0:
            self.undefined.add(f"{source}/loss")
        return sums, self._task.predict(self._config, examples, logits)

    def stream(self, params: Any) -> Iterator[Any]:
        """Yields the predictions for all examples in order, one batch at a time, without computing metrics.

        Raises UserError if an output of the model is not finite.
        """
        for source, rows in self._rows.items():
            waiting: dict[int, np.ndarray] = {}  # logits of the parts of raw examples that are still incomplete
            for scored in self._batches(params, source):
                waiting.update(self._by_example(source, scored))
                if not all(np.isfinite(each).all() for each in waiting.values()):
                    raise UserError(
                        "the model's outputs are not finite numbers; either training has diverged, or the checkpoint "
                        "and the tokenizer do not match. Choose another checkpoint with --step."
                    )
                if whole := whole_examples(rows.examples, waiting):
                    parts = {number: waiting.pop(number) for numbers in whole.values() for number in numbers}
                    yield self._task.predict(self._config, rows.examples, parts)

    def _by_example(self, source: str, scored: Scored) -> Iterator[tuple[int, np.ndarray]]:
        rows = self._rows[source]
        sizes = rows.examples.sizes(0)[0]
        assert scored.logits_RLC is not None
        for row, logits_LC in zip(scored.row_ids.tolist(), scored.logits_RLC, strict=True):
            for example, first in rows.starts(row):
                yield example, logits_LC[first : first + int(sizes[example])].copy()

    def _combine(self, parts: list[tuple[Sums, Predictions]]) -> tuple[Sums, Predictions]:
        first, *others = (predictions for _, predictions in parts)
        self.whole = first.joined(others) if others else first
        sums = sum((sums for sums, _ in parts), Sums())
        if sums.weight == 0:
            self.undefined.add("loss")
        return sums, self.whole

    def _metrics(self, part: tuple[Sums, Predictions]) -> dict[str, float]:
        sums, predictions = part
        return {"loss": ratio(sums.nll, sums.weight), **predictions.metrics()}

    @property
    def missing(self) -> dict[str, str]:
        reason = "no example has a target, such as an answer in the text"
        return {self._task.loss_name: reason} if "loss" in self.undefined else {}

    def _count(self) -> tuple[str, int]:
        return "examples", len(self.whole.raw)

    def intervals(self) -> dict[str, Interval]:
        """Computes 95% confidence intervals for the metrics of the last evaluation from eval.bootstrap resamples."""
        samples, seed, size = self._config.eval.bootstrap, self._config.seed, len(self.whole.raw)
        return intervals(self.whole.metrics, size, samples=samples, seed=seed) if samples else {}

    @property
    def signatures(self) -> dict[str, str]:
        found = [(metric_of(name), each) for name, each in self.intervals().items()]
        texts = [f"{metric.heading} {metric.show(low)} to {metric.show(high)}" for metric, (low, high) in found]
        return self.whole.signatures | ({"95 % intervals": ", ".join(texts)} if texts else {})

    def previews(self, count: int) -> list[dict[str, str]]:
        return [self.whole.preview(index) for index in range(min(count, len(self.whole.raw)))]

    def write(self, directory: Path, stem: str) -> list[Path]:
        return self.whole.write(directory, stem)


def whole_examples(examples: LabelledExamples, present: Iterable[int]) -> dict[int, list[int]]:
    """Returns {raw example: sorted indices of its parts} for the raw examples whose parts are all present."""
    counts, of_raw = np.bincount(examples.example_of), dict[int, list[int]]()
    for number in sorted(present):
        of_raw.setdefault(int(examples.example_of[number]), []).append(number)
    return {raw: numbers for raw, numbers in of_raw.items() if len(numbers) == counts[raw]}
