"""Evaluators and their metrics."""

from __future__ import annotations

from lm.evaluation.answers import ANSWER_METRICS
from lm.evaluation.classification import LABEL_METRICS, NUMBER_METRICS
from lm.evaluation.metric import Metric
from lm.evaluation.tagging import ENTITY_METRICS
from lm.evaluation.text_metrics import TEXT_METRICS
from lm.evaluation.token_metrics import TOKEN_METRICS

# All metrics by name, in the order of the table columns. Each metric is declared next to the code that computes it.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(metric for each in TEXT_METRICS.values() for metric in each.gives),
        *ANSWER_METRICS,
        *LABEL_METRICS,
        *NUMBER_METRICS,
        *ENTITY_METRICS,
        *TOKEN_METRICS,
    )
}


def metric_of(name: str) -> Metric:
    """Returns the declaration of a metric. An undeclared metric, such as a count, uses its name as its heading."""
    return METRICS.get(name) or Metric(name, name, "{:.4g}".format)
