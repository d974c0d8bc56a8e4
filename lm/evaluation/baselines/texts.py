"""Baselines for generated text: the source itself, and its first sentences."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from lm.data.reading.readers import Pair
from lm.evaluation import scripts
from lm.evaluation.baselines.baseline import Baseline, BaselineSetup, Scores, by_source
from lm.evaluation.text_metrics import score


class TextBaseline(Baseline):
    """Base class for baselines that compute the output for a pair from its source."""

    needs_train = False

    @abc.abstractmethod
    def output(self, source: str) -> str:
        """Returns the output for a source text from which the prefix has been removed."""

    def score(self, setup: BaselineSetup) -> Scores:
        settings, signatures = setup.config.eval.generation, dict[str, str]()
        parts = {
            name: [(setup.prefixes.get(name, ""), pair) for pair in each] for name, each in setup.references.items()
        }

        def metrics(part: Sequence[tuple[str, Pair]]) -> dict[str, float]:
            outputs = [self.output(pair.source.removeprefix(prefix)) for prefix, pair in part]
            references = [pair.references for _, pair in part]
            found = score(settings.metrics, outputs, references, bleu_tokenize=settings.bleu_tokenize)
            signatures.update(found.signatures)  # the last call is for the whole split
            return found.metrics

        ordered = by_source(parts, [pair for part in parts.values() for pair in part], metrics)
        return Scores(ordered, signatures)


class Copy(TextBaseline):
    name = "copy of the source"

    def output(self, source: str) -> str:
        return source


class Lead(TextBaseline):
    """The first sentences of the source, a strong baseline for news summarisation (Nallapati 2017)."""

    def __init__(self, count: int):
        self.count = count
        self.name = f"lead-{count}"

    def output(self, source: str) -> str:
        return " ".join(scripts.sentences(source)[: self.count])
