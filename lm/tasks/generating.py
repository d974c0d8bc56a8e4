"""The base class of tasks whose evaluations generate text and compare it with references."""

from __future__ import annotations

from typing import Any

from lm.config import Config
from lm.evaluation.generation import Generation
from lm.evaluation.metric import names
from lm.evaluation.text_metrics import TEXT_METRICS
from lm.tasks.task import EvaluationSetup, Task

# The settings of evaluations that generate text.
SCORING = frozenset(
    f"eval.generation.{name}" for name in ("metrics", "training_beams", "max_examples", "bleu_tokenize")
)


class GeneratingTask(Task):
    """Adds the metrics in eval.generation.metrics to the token metrics.

    A subclass's `references` method returns the pairs whose targets are generated.
    """

    metric_names = ("loss", "perplexity", "token_accuracy")
    generation: type[Generation] = Generation  # the evaluator of generated text
    writes_text = True

    def metrics(self, config: Config) -> tuple[str, ...]:
        return *self.metric_names, *self._text_metrics(config)

    def console_metrics(self, config: Config) -> tuple[str, ...]:
        return "loss", *self._text_metrics(config)

    @staticmethod
    def _text_metrics(config: Config) -> tuple[str, ...]:
        return tuple(each for name in config.eval.generation.metrics for each in names(TEXT_METRICS[name].gives))

    def advice_on_metric(self, metric: str) -> str:
        scores = any(metric.endswith(f"/{name}") for each in TEXT_METRICS.values() for name in names(each.gives))
        return "; select metrics for generated text with eval.generation.metrics" if scores else ""

    def evaluators(self, setup: EvaluationSetup) -> list[Any]:
        return super().evaluators(setup) + ([self.generation(setup)] if setup.references else [])
