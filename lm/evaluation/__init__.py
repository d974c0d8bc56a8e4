"""Evaluators and their metrics."""

from __future__ import annotations

from lm.evaluation.answers import ANSWER_METRICS
from lm.evaluation.classification import LABEL_METRICS, NUMBER_METRICS
from lm.evaluation.metric import Metric
from lm.evaluation.reconstruction import RECONSTRUCTION_METRICS
from lm.evaluation.tagging import ENTITY_METRICS
from lm.evaluation.text_metrics import TEXT_METRICS
from lm.evaluation.token_metrics import TOKEN_METRICS
from lm.evaluation.word_vectors import WORD_VECTOR_METRICS

# Maps the name of each metric to its declaration. Tables list their columns in this order.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(metric for each in TEXT_METRICS.values() for metric in each.gives),
        *ANSWER_METRICS,
        *LABEL_METRICS,
        *NUMBER_METRICS,
        *ENTITY_METRICS,
        *WORD_VECTOR_METRICS,
        *RECONSTRUCTION_METRICS,
        *TOKEN_METRICS,
    )
}


def metric_of(name: str) -> Metric:
    """Returns the declaration of a metric. The heading of an undeclared metric, such as a count, is its name."""
    return METRICS.get(name) or Metric(name, name, "{:.4g}".format)
