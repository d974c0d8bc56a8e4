"""Fits the baselines of a task to the training split of a run, and scores them on the evaluated split."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm.config import Config
from lm.data.storing.splits import split_sources
from lm.data.tokenizing.base import Tokenizers
from lm.evaluation.baselines.baseline import BaselineSetup, NotComputed
from lm.files import hash_of
from lm.parallel.distributed import is_first
from lm.reporting.progress import counting
from lm.reporting.table import Result
from lm.runs.prepare import prepare_split
from lm.tasks import task_of


@dataclass
class Baselines:
    """The baselines of several evaluations. Evaluations on the same data share baselines, which are computed once."""

    known: dict[str, list[Result]] = field(default_factory=dict)

    def score(
        self,
        own: Config,
        config: Config,
        tokenizers: Tokenizers,
        stores: Mapping[str, Any],
        references: Mapping[str, Sequence[Any]],
        section: str,
        split: str,
    ) -> list[Result]:
        """Returns a result for each baseline, and prints one line per baseline.

        If a baseline cannot be computed, its result states why and has no metrics. Only the first process computes
        baselines; the others return an empty list.

        Args:
            own: the config of the run, whose training and validation splits are read.
            config: the config of the evaluation.
            stores, references: the stores and the references of the evaluated split, keyed by data source.
            section: the section of config.data that names the evaluated data sources (valid, test or train).
            split: the name of the split in tables.
        """
        task = task_of(config)
        found = task.baselines(config)
        if not found:
            needed = f"; {task.baselines_need}" if task.baselines_need else ""
            if is_first():
                print(f"no baselines: there are none for objective.name={task.name}{needed}", flush=True)
            return []
        train = prepare_split(own, tokenizers, "train") if any(each.needs_train for each in found) else {}
        valid = prepare_split(own, tokenizers, "valid") if any(each.needs_valid for each in found) else {}
        if not is_first():
            return []
        prefixes = {each.name: each.config.prefix for each in split_sources(config.data, section)}
        setup = BaselineSetup(config, task, tokenizers.target, train, valid, stores, references, prefixes)
        key = _key(setup, split)
        if key not in self.known:
            self.known[key] = [_result(each, setup, split) for each in found]
        return self.known[key]


def _result(baseline: Any, setup: BaselineSetup, split: str) -> Result:
    began = time.monotonic()
    try:
        with counting(1, f"baseline ({baseline.name})") as report:
            scores = baseline.score(dataclasses.replace(setup, report=report))
    except NotComputed as reason:
        print(f"baseline {baseline.name}: not computed, because {reason}", flush=True)
        return Result(baseline.name, 0, split, {}, 0, None, None, 0.0, signatures={baseline.name: f"none: {reason}"})
    seconds = time.monotonic() - began
    print(f"baseline {baseline.name}: {seconds:.1f} s", flush=True)
    metrics = setup.task.for_table(scores.metrics)
    return Result(baseline.name, 0, split, metrics, 0, None, None, seconds, signatures=scores.signatures)


def _key(setup: BaselineSetup, split: str) -> str:
    """Returns a string that is equal for evaluations with the same baselines."""
    config, splits = setup.config, (setup.train, setup.valid, setup.stores)
    of_stores = [sorted((name, store.fingerprint) for name, store in each.items()) for each in splits]
    pairs = [(name, setup.prefixes.get(name, ""), list(each)) for name, each in sorted(setup.references.items())]
    settings = [config.objective.name, config.seed, config.data.labels, dataclasses.asdict(config.eval)]
    return json.dumps([split, *of_stores, hash_of(repr(pairs)), *settings, setup.tokenizer.fingerprint])
