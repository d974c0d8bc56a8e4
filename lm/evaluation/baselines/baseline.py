"""The interface of baselines, and the base class of baselines that predict labels."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.tokenizing.base import Tokenizer
from lm.evaluation.evaluator import Report

Outputs = Sequence[Any] | np.ndarray  # one output per example


class NotComputed(Exception):
    """Raised if a baseline cannot be computed. The message gives the reason, such as a missing package."""


@dataclass(frozen=True)
class BaselineSetup:
    """The data from which baselines are computed. All stores are keyed by data source."""

    config: Config  # the config of the evaluation
    task: Any  # lm.tasks.task.Task
    tokenizer: Tokenizer
    train: Mapping[str, Any]  # the stores of the training split; empty unless a baseline `needs_train`
    valid: Mapping[str, Any]  # the stores of the validation split; empty unless a baseline `needs_valid`
    stores: Mapping[str, Any]  # the stores of the evaluated split
    references: Mapping[str, Sequence[Any]]  # the pairs to score for each data source; may be empty
    prefixes: Mapping[str, str] = field(default_factory=dict)  # the prefix of the source texts of each data source
    report: Report | None = None


@dataclass(frozen=True)
class Scores:
    metrics: dict[str, float]  # keys: METRIC and, if there are several data sources, SOURCE/METRIC
    # The definition used for each metric that can be defined in several ways, and the baseline's settings, keyed by its
    # name.
    signatures: dict[str, str] = field(default_factory=dict)


class Baseline(abc.ABC):
    """A model that is not a neural network. Baselines have no state."""

    name: str  # the name of its row in tables
    needs_train = True  # whether anything is fitted to the training split
    needs_valid = False  # whether a setting is chosen on the validation split

    @abc.abstractmethod
    def score(self, setup: BaselineSetup) -> Scores:
        """Fits the baseline to the training split and scores it on the evaluated split.

        Raises NotComputed if the baseline does not suit the data or needs a package that is not installed.
        """


class LabelBaseline(Baseline):
    """Base class for baselines that predict one output per raw example, as models trained on a labelled task do."""

    @abc.abstractmethod
    def outputs(self, setup: BaselineSetup, train: Sequence[Any], raw: Sequence[Any]) -> tuple[Outputs, str]:
        """Returns an output for each example of `raw`, in the form that `setup.task.predictions_of` expects.

        Also returns a description of the fitted model, or "". `train` holds the examples of the training split.
        """

    def score(self, setup: BaselineSetup) -> Scores:
        raw = raw_examples(setup.stores)
        outputs, settings = self.outputs(setup, raw_examples(setup.train), raw)
        predictions = setup.task.predictions_of(setup.config, raw, outputs)
        ends = list(itertools.accumulate(len(store.raw) for store in setup.stores.values()))
        parts = dict(zip(setup.stores, map(slice, [0, *ends], ends), strict=True))
        metrics = by_source(parts, slice(None), predictions.metrics)
        return Scores(metrics, predictions.signatures | ({self.name: settings} if settings else {}))


def raw_examples(stores: Mapping[str, Any]) -> list[Any]:
    return [example for store in stores.values() for example in store.raw]


def by_source(parts: Mapping[str, Any], whole: Any, metrics: Callable[[Any], Mapping[str, float]]) -> dict[str, float]:
    """Computes the metrics of the whole split and, if there are several data sources, `SOURCE/metric` for each."""
    several = parts if len(parts) > 1 else {}
    found = {f"{source}/{name}": value for source, part in several.items() for name, value in metrics(part).items()}
    return {**metrics(whole), **found}


def limited(examples: Sequence[Any], size: Callable[[Any], int], most: int) -> tuple[list[Any], str]:
    """Returns evenly spaced examples with a total size of about `most`, or all examples if they are small enough.

    Also returns a note about the omitted examples, or "".
    """
    total = sum(map(size, examples))
    if total <= most:
        return list(examples), ""
    count = max(1, len(examples) * most // total)
    chosen = [examples[number * len(examples) // count] for number in range(count)]
    return chosen, f"fitted to {count:,} of {len(examples):,} training examples"
