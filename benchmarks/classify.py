"""Compares two kinds of classifiers on a data set: logistic regression on n-grams, and our runs with several seeds.

    python -m benchmarks.classify --config=configs/classify_mr.py:DIR --runs=scratch=runs/mr,tuned=runs/mr_tuned

The n-gram model (scikit-learn; unigrams and bigrams of words, weighted by tf-idf) is trained on the same training
examples and scored on the same test examples as the runs; its only setting is chosen on the validation examples.
`--runs` names directories written by `train.py --seeds=...`; their scores are reported as the mean and standard
deviation over the seeds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks.record import repeated_results, surroundings, write_record
from lm.config import Config, TokenizerConfig, command
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing import build_tokenizer
from lm.errors import UserError
from lm.evaluation.classification import classification_metrics
from lm.reporting.table import Result, print_table, with_means
from lm.runs.prepare import prepare_split
from lm.tasks.task import Tokenizers

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # inverse strengths of the L2 penalty, compared on the validation examples

FLAGS = flags.FLAGS


def define_flags() -> None:
    command.define_config_flag()
    flags.DEFINE_list("runs", [], "NAME=DIRECTORY,..., where each directory contains one run per seed.")
    flags.DEFINE_string("output", None, "JSON file in which to write the record.")


def ngram_classifier(config: Config) -> tuple[Result, float]:
    """Returns the result on the test split and the chosen regularisation strength."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    began = time.monotonic()
    # Any tokenizer will do: only the texts and labels of the stores are read.
    tokenizer = build_tokenizer(TokenizerConfig(kind="bytes"), [])
    texts, labels = {}, {}
    for split in ("train", "valid", "test"):
        texts[split], labels[split] = _examples(prepare_split(config, Tokenizers(tokenizer, tokenizer), split))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True)
    features = {"train": vectorizer.fit_transform(texts["train"])}
    features |= {split: vectorizer.transform(texts[split]) for split in ("valid", "test")}
    models = {C: LogisticRegression(C=C, max_iter=1000).fit(features["train"], labels["train"]) for C in STRENGTHS}
    best = max(STRENGTHS, key=lambda C: models[C].score(features["valid"], labels["valid"]))
    model = models[best]
    numbers = {label: number for number, label in enumerate(model.classes_)}
    gold = np.array([numbers[label] for label in labels["test"]])
    metrics = classification_metrics(gold, model.predict_proba(features["test"]))
    result = Result("n-grams, logistic regression", 0, "test", metrics, len(gold), None, None, time.monotonic() - began)
    return result, best


def _examples(stores: dict[str, ExampleStore]) -> tuple[list[str], list[str]]:
    examples: list[Any] = [example for store in stores.values() for example in store.raw]
    return [" ".join(filter(None, (each.text, each.pair))) for each in examples], [each.label for each in examples]


def main() -> int:
    config = command.config_from_flags()
    if config is None:
        raise UserError(
            "--config is missing; pass the config that names the data, e.g. --config=configs/classify_mr.py:DIR."
        )
    baseline, strength = ngram_classifier(config)
    shown, record = [baseline], {baseline.run: {"metrics": baseline.metrics, "strength": strength}}
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
