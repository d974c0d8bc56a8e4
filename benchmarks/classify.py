"""Compares two kinds of classifiers on a data set: logistic regression on n-grams, and our runs with several seeds.

    python -m benchmarks.classify --config=configs/classify_mr.py:DIR --runs=scratch=runs/mr,tuned=runs/mr_tuned

The n-gram model is the baseline of `eval.py --baselines`, trained on the same training examples and scored on the same
test examples as the runs; its only setting is chosen on the validation examples.
`--runs` names directories written by `train.py --seeds=...`; their scores are reported as the mean and standard
deviation over the seeds.
"""

from __future__ import annotations

import time
from pathlib import Path

from absl import flags

from benchmarks.record import repeated_results, surroundings, write_record
from lm.config import Config, TokenizerConfig, command
from lm.data.tokenizing import build_tokenizer
from lm.errors import UserError
from lm.evaluation.baselines.baseline import BaselineSetup
from lm.evaluation.baselines.labels import LogisticNgrams
from lm.reporting.table import Result, print_table, with_means
from lm.runs.prepare import prepare_split
from lm.tasks import task_of
from lm.tasks.task import Tokenizers

FLAGS = flags.FLAGS


def define_flags() -> None:
    command.define_config_flag()
    flags.DEFINE_list("runs", [], "NAME=DIRECTORY,..., where each directory contains one run per seed.")
    flags.DEFINE_string("output", None, "JSON file in which to write the record.")


def ngram_classifier(config: Config) -> tuple[Result, str]:
    """Returns the result on the test split and a description of the fitted model."""
    began = time.monotonic()
    # Any tokenizer will do: only the texts and labels of the stores are read.
    tokenizer = build_tokenizer(TokenizerConfig(kind="bytes"), [])
    splits = ("train", "valid", "test")
    stores = [prepare_split(config, Tokenizers(tokenizer, tokenizer), split) for split in splits]
    config = task_of(config).resolve_data(config, stores[0])
    baseline = LogisticNgrams()
    scores = baseline.score(BaselineSetup(config, task_of(config), tokenizer, *stores, references={}))
    size = sum(len(store.raw) for store in stores[-1].values())
    result = Result(baseline.name, 0, "test", scores.metrics, size, None, None, time.monotonic() - began)
    return result, scores.signatures[baseline.name]


def main() -> int:
    config = command.config_from_flags()
    if config is None:
        raise UserError(
            "--config is missing; pass the config that names the data, e.g. --config=configs/classify_mr.py:DIR."
        )
    baseline, settings = ngram_classifier(config)
    shown, record = [baseline], {baseline.run: {"metrics": baseline.metrics, "settings": settings}}
    for each in FLAGS.runs:
        name, _, directory = each.partition("=")
        seeds = repeated_results(Path(directory))
        mean, deviation = with_means(seeds)[-2:]
        shown += [
            Result(f"{name}, {mean.run} seeds", 0, "test", mean.metrics, 0, None, None, 0.0),
            Result("  standard deviation", 0, "test", deviation.metrics, 0, None, None, 0.0),
        ]
        record[name] = {"mean": mean.metrics, "deviation": deviation.metrics, "seeds": [s.metrics for s in seeds]}
    print_table(shown)
    if FLAGS.output:
        content = {"name": Path(FLAGS.output).stem, "test_examples": baseline.rows, "models": record, **surroundings()}
        write_record(Path(FLAGS.output), content)
    return command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
