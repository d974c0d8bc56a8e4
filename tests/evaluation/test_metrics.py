"""The registry of metrics: every metric that a task gives is declared, and every declared metric is computed."""

import math

import numpy as np
import pytest

from lm.config import CheckpointConfig, Config
from lm.evaluation import METRICS, metric_of
from lm.evaluation.answers import ANSWER_METRICS, answer_metrics
from lm.evaluation.classification import (
    LABEL_METRICS,
    NUMBER_METRICS,
    classification_metrics,
    regression_metrics,
)
from lm.evaluation.metric import Metric, share
from lm.evaluation.reconstruction import RECONSTRUCTION_METRICS, Restored, active_units, reconstruction_metrics
from lm.evaluation.tagging import ENTITY_METRICS, tagging_metrics
from lm.evaluation.text_metrics import TEXT_METRICS, score
from lm.evaluation.token_metrics import (
    TOKEN_METRICS,
    Sums,
    autoencoding_metrics,
    contrastive_metrics,
    language_metrics,
    masked_metrics,
    pair_metrics,
)
from lm.evaluation.word_vectors import WORD_VECTOR_METRICS
from lm.tasks import TASKS
from tests.tasks.test_tasks import PAIRS, values_of

OF_DATA = {"unigram_entropy", "xz_bits_per_byte", "similarity"}  # `Task.yardsticks` and `SimilarityEvaluator`


@pytest.mark.parametrize(("task", "family"), PAIRS)
def test_every_metric_of_a_task_is_declared(task, family):
    options = {"eval.generation.metrics": tuple(TEXT_METRICS)} if task == "seq2seq" else {}
    if task == "masked":
        options = {"objective.next_sentence": True, "model.token_types": 2}
    config = Config.from_dict(values_of(task, family, **options))
    assert set(TASKS[task].metrics(config)) <= METRICS.keys()
    assert set(TASKS[task].console_metrics(config)) <= set(TASKS[task].metrics(config))
    assert TASKS[task].loss_name in METRICS


def computed():
    sums = Sums(nll=3.0, correct=1, weight=2, pair_nll=1, pair_correct=1, pairs=1, kl=1, texts=1, bytes=9, words=2)
    two = np.array([[0, 1], [1, 1]])
    yield score(tuple(TEXT_METRICS), ["a b"], [("a c",)], bleu_tokenize="13a").metrics
    yield answer_metrics(two)
    yield classification_metrics(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]))
    yield regression_metrics(np.array([0.0, 1.0]), np.array([0.0, 2.0]))
    yield tagging_metrics(two, np.array([[1, 2, 2]]))
    yield {"active_units": active_units(np.array([[0.0], [1.0]]))}
    yield reconstruction_metrics([Restored([5, 2], [5, 2])])
    yield autoencoding_metrics(sums)
    yield from (language_metrics(sums), masked_metrics(sums), contrastive_metrics(sums), pair_metrics(sums))
    yield from ({task.loss_name: 1.0} for task in TASKS.values())


def test_every_declared_metric_is_computed_and_every_computed_one_declared():
    found = {name for metrics in computed() for name in metrics}
    assert found | OF_DATA == METRICS.keys() and not found & OF_DATA


def test_every_declaration_is_complete():
    assert all(name == metric.name for name, metric in METRICS.items())
    headings = [metric.heading for metric in METRICS.values()]
    assert all(headings) and len(set(headings)) == len(headings)
    assert all(metric.show(0.5) and "inf" in metric.show(math.inf) for metric in METRICS.values())
    assert all(each.gives and each.heading and name == each.name for name, each in TEXT_METRICS.items())


def test_no_declaration_replaces_another_of_its_name():
    tuples = ANSWER_METRICS, LABEL_METRICS, NUMBER_METRICS, ENTITY_METRICS, TOKEN_METRICS
    tuples += WORD_VECTOR_METRICS, RECONSTRUCTION_METRICS
    declared = [metric for each in TEXT_METRICS.values() for metric in each.gives]
    declared += [metric for each in tuples for metric in each]
    assert all(METRICS[metric.name] is metric for metric in declared)


@pytest.mark.parametrize(
    ("metric", "highest"),
    [("loss", False), ("bleu", True), ("ter", False), ("accuracy", True), ("calibration_error", False), ("mcc", True)],
)
def test_the_declaration_decides_which_checkpoint_is_the_best(metric, highest):
    for prefix in ("valid/", "valid/news/"):
        assert CheckpointConfig(best_metric=prefix + metric).highest_is_best == highest


def test_shares_are_drawn_in_percent():
    metric = Metric("x", "x", share)
    assert metric.percent(0.25) == 25 and metric.percent(np.array([0.5, 1.0])).tolist() == [50, 100]
    assert METRICS["bleu"].percent(25) == 25


def test_perplexities_of_any_size_are_short():
    texts = [METRICS["perplexity"].show(value) for value in (3.43689, 12345.678, 123456.7, math.inf, math.nan)]
    assert texts == ["3.44", "12,345.68", "1.235e+05", "inf", "nan"]


def test_a_number_without_a_declaration_is_shown_by_its_name():
    assert metric_of("rows").heading == "rows" and metric_of("rows").show(1234.0) == "1234"
