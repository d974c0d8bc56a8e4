"""Metrics of generated text against references: BLEU, chrF and TER (sacrebleu), ROUGE, exact match, word error rate.

All values are in percent (0 to 100; TER and WER may exceed 100). Predictions and references are detokenised text. None
of the libraries used here downloads anything.
"""

from __future__ import annotations

import abc
import functools
import importlib.metadata
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.evaluation.metric import Metric, points

References = Sequence[tuple[str, ...]]  # one or more for each prediction


@dataclass(frozen=True)
class TextScores:
    metrics: dict[str, float]
    signatures: dict[str, str]  # by metric name: its exact definition, if it has several


@dataclass(frozen=True)
class TextMetric(abc.ABC):
    """An entry of eval.generation.metrics."""

    name: str
    heading: str  # the heading of its signature in tables
    gives: tuple[Metric, ...]  # the metrics that it computes

    @abc.abstractmethod
    def score(self, predictions: Sequence[str], references: References, bleu_tokenize: str) -> TextScores:
        """Scores a whole corpus; `bleu_tokenize` is sacrebleu's tokenisation for BLEU."""


@dataclass(frozen=True)
class SacrebleuMetric(TextMetric):
    """A corpus-level metric of sacrebleu (Post 2018) with its default settings."""

    scorer: Callable[[str], Any]  # builds sacrebleu's metric from its tokenisation for BLEU

    def score(self, predictions: Sequence[str], references: References, bleu_tokenize: str) -> TextScores:
        scorer = self.scorer(bleu_tokenize)
        value = scorer.corpus_score(predictions, reference_streams(references)).score
        return TextScores({self.name: value}, {self.name: str(scorer.get_signature())})


@dataclass(frozen=True)
class CountedMetric(TextMetric):
    """Metrics that are ratios of sums over examples."""

    # Takes a prediction and its references; returns the numerator and the denominator of each metric.
    count: Callable[[str, tuple[str, ...]], Sequence[tuple[float, float]]]
    signature: Callable[[], str] = str

    def counts(self, predictions: Sequence[str], references: References) -> dict[str, np.ndarray]:
        """Returns the counts of each metric, (examples, 2); `percent` computes its value from them."""
        pairs = zip(predictions, references, strict=True)
        counts_EM2 = np.array([self.count(*pair) for pair in pairs], np.float64)
        return {metric.name: counts_EM2[:, number] for number, metric in enumerate(self.gives)}

    def score(self, predictions: Sequence[str], references: References, bleu_tokenize: str) -> TextScores:
        values = {name: percent(counts_E2) for name, counts_E2 in self.counts(predictions, references).items()}
        signature = self.signature()
        return TextScores(values, {self.name: signature} if signature else {})


def reference_streams(references: References) -> list[list[str | None]]:
    """Transposes references to sacrebleu's form: all first ones, then all second ones, ...; missing ones are None."""
    return [list(stream) for stream in itertools.zip_longest(*references)]


def percent(counts_E2: np.ndarray) -> float:
    """Returns 100 * sum of the first column / sum of the second. 0 / 0 counts as 0 and x / 0 as 100."""
    part, whole = counts_E2.sum(axis=0)
    return 100 * float(part / whole if whole else part > 0)


def score(
    metrics: Sequence[str], predictions: Sequence[str], references: References, *, bleu_tokenize: str
) -> TextScores:
    """Scores a whole corpus with the given TEXT_METRICS."""
    assert len(predictions) == len(references) > 0 and all(references), (len(predictions), len(references))
    if any(isinstance(each, str) for each in references):  # it would be read as a tuple of its letters
        raise TypeError("references: give a tuple of texts for each prediction, not a single text")
    found = [TEXT_METRICS[name].score(predictions, references, bleu_tokenize) for name in metrics]
    return TextScores(
        {name: value for each in found for name, value in each.metrics.items()},
        {name: text for each in found for name, text in each.signatures.items()},
    )


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([metric.name for metric in ROUGE], use_stemmer=True)


def _rouge(prediction: str, references: tuple[str, ...]) -> list[tuple[float, float]]:
    """Returns the F1 of n-grams and of the longest common subsequence (rougeLsum: by line) for the best reference.

    The rouge-score package drops everything except a-z and 0-9, so it does not suit text in other scripts.
    """
    scores = _rouge_scorer().score_multi(references, prediction)
    return [(scores[metric.name].fmeasure, 1) for metric in ROUGE]


def _rouge_signature() -> str:
    return f"f1|refs:best|stem:porter|sentences:lines|rouge-score:{importlib.metadata.version('rouge-score')}"


def _exact_match(prediction: str, references: tuple[str, ...]) -> list[tuple[float, float]]:
    """Returns whether a prediction equals one of its references, ignoring surrounding white space."""
    return [(prediction.strip() in {each.strip() for each in references}, 1)]


def _word_errors(prediction: str, references: tuple[str, ...]) -> list[tuple[float, float]]:
    """Counts the edits of words (insertions, deletions, substitutions) and the words of the reference.

    Texts are split at white space. The reference with the fewest edits is used; ties go to the longest one.
    """
    from rapidfuzz.distance import Levenshtein

    words = prediction.split()
    counts = [(Levenshtein.distance(words, right), len(right)) for right in map(str.split, references)]
    return [min(counts, key=lambda each: (each[0], -each[1]))]


_score = functools.partial(Metric, show=points, higher_is_better=True, drawn=True)
_error = functools.partial(Metric, show=points, drawn=True)

ROUGE = (
    _score("rouge1", "ROUGE-1", recorded=True),
    _score("rouge2", "ROUGE-2", recorded=True),
    _score("rougeL", "ROUGE-L", recorded=True),
    _score("rougeLsum", "ROUGE-Lsum"),
)
EXACT_MATCH = _score("exact_match", "exact match", recorded=True)


def _sacrebleu(metric: Metric, kind: str, **options: Any) -> SacrebleuMetric:
    def scorer(tokenize: str) -> Any:
        from sacrebleu import metrics

        # With tokenize=none the user has declared the text tokenised; `force` suppresses the warning about it.
        bleu = {"tokenize": tokenize, "force": tokenize == "none"} if kind == "BLEU" else {}
        return getattr(metrics, kind)(**options, **bleu)

    return SacrebleuMetric(metric.name, metric.heading, (metric,), scorer)


TEXT_METRICS: dict[str, TextMetric] = {
    metric.name: metric
    for metric in (
        _sacrebleu(_score("bleu", "BLEU", recorded=True), "BLEU"),  # Papineni 2002
        _sacrebleu(_score("chrf", "chrF", recorded=True), "CHRF"),  # chrF2, Popovic 2015
        _sacrebleu(_score("chrf++", "chrF++"), "CHRF", word_order=2),  # with word unigrams and bigrams, Popovic 2017
        _sacrebleu(_error("ter", "TER"), "TER"),  # Snover 2006
        CountedMetric("rouge", "ROUGE", ROUGE, _rouge, _rouge_signature),  # Lin 2004
        CountedMetric("exact_match", "exact match", (EXACT_MATCH,), _exact_match),
        CountedMetric("wer", "WER", (_error("wer", "WER"),), _word_errors),
    )
}
