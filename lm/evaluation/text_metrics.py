"""Metrics for generated text: BLEU, chrF and TER (from sacrebleu), ROUGE, exact match and word error rate.

All values are in percent (0 to 100; TER and WER may exceed 100). Predictions and references are detokenised text. The
main script of the references determines the tokens that a metric counts (`Tokenisation`). None of the metric libraries
downloads anything.
"""

from __future__ import annotations

import abc
import functools
import importlib.metadata
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from lm.evaluation.metric import Metric, points
from lm.evaluation.tokenisation import References, Tokenisation

Scored = tuple[dict[str, float], str]  # metrics and their signature

MANY_UNSPACED = 0.1  # minimum value of `Writing.unspaced` for which a note is added


class TextScores(NamedTuple):
    metrics: dict[str, float]
    signatures: dict[str, str]  # exact definitions of metrics, and notes on their limitations


@dataclass(frozen=True)
class TextMetric(abc.ABC):
    """A metric, or a family of metrics such as ROUGE, that can be selected in eval.generation.metrics.

    Attributes:
        prepare: a function that puts spaces between the tokens of a text before it is scored.
        signature: a function that describes the tokens, or returns "" if no description is needed.
        caution: a function that explains why the metric does not suit the references, or returns "" if it does.
        scores_summaries: whether the metric is meant for summaries, whose baseline is the beginning of the source.
    """

    name: str  # the name of the metric in eval.generation.metrics
    heading: str  # the heading of the signature in tables
    gives: tuple[Metric, ...]  # the metrics in the family
    prepare: Callable[[Tokenisation, str], str] = field(default=lambda _, text: text, kw_only=True)
    signature: Callable[[Tokenisation], str] = field(default=lambda _: "", kw_only=True)
    caution: Callable[[References, Tokenisation], str] = field(default=lambda *_: "", kw_only=True)
    scores_summaries: bool = field(default=False, kw_only=True)

    @abc.abstractmethod
    def score(self, predictions: Sequence[str], references: References, tokens: Tokenisation) -> Scored:
        """Scores a whole corpus, whose texts have been prepared with `prepare`."""

    def prepared(self, texts: Sequence[str], tokens: Tokenisation) -> tuple[str, ...]:
        return tuple(self.prepare(tokens, text) for text in texts)


@dataclass(frozen=True)
class SacrebleuMetric(TextMetric):
    """A corpus-level metric from sacrebleu (Post 2018) with its default settings."""

    scorer: Callable[[str], Any]  # builds the sacrebleu metric for the given BLEU tokenisation

    def score(self, predictions: Sequence[str], references: References, tokens: Tokenisation) -> Scored:
        scorer = self.scorer(tokens.bleu)
        value = scorer.corpus_score(predictions, reference_streams(references)).score
        return {self.name: value}, joined(str(scorer.get_signature()), self.signature(tokens))


@dataclass(frozen=True)
class CountedMetric(TextMetric):
    """Metrics whose value for a corpus is the ratio of two sums over its examples."""

    # Returns the numerator and the denominator of each metric for a prediction and its references.
    count: Callable[[str, tuple[str, ...]], Sequence[tuple[float, float]]]

    def counts(self, predictions: Sequence[str], references: References) -> dict[str, np.ndarray]:
        """Returns the numerators and denominators of each metric, float64 (examples, 2). See `percentages`."""
        pairs = zip(predictions, references, strict=True)
        counts_EM2 = np.array([self.count(*pair) for pair in pairs], np.float64)
        return {metric.name: counts_EM2[:, number] for number, metric in enumerate(self.gives)}

    def score(self, predictions: Sequence[str], references: References, tokens: Tokenisation) -> Scored:
        return percentages(self.counts(predictions, references)), self.signature(tokens)


def joined(*signatures: str) -> str:
    """Joins the non-empty parts of a signature."""
    return "|".join(filter(None, signatures))


def reference_streams(references: References) -> list[list[str | None]]:
    """Converts references to sacrebleu's format: list i holds the i-th reference (or None) of each example."""
    return [list(stream) for stream in itertools.zip_longest(*references)]


def percentages(counts: Mapping[str, np.ndarray], indices_E: np.ndarray | slice = slice(None)) -> dict[str, float]:
    """Returns each sum of numerators as a percentage of the sum of denominators (0 / 0 is 0; x / 0 is 100).

    `counts` is the result of `CountedMetric.counts`. Only examples with the given indices, which may repeat, are
    included.
    """
    sums = {name: counts_E2[indices_E].sum(axis=0).tolist() for name, counts_E2 in counts.items()}
    return {name: 100 * float(part / whole if whole else part > 0) for name, (part, whole) in sums.items()}


def score(
    metrics: Sequence[str],
    predictions: Sequence[str],
    references: References,
    *,
    bleu_tokenize: str,
    whole: References = (),
) -> TextScores:
    """Scores a corpus with the given TEXT_METRICS.

    All references of the corpus (`whole`, by default `references`) determine the tokenisation.
    """
    assert len(predictions) == len(references) > 0 and all(references), (len(predictions), len(references))
    if any(isinstance(each, str) for each in references):  # each letter of a string would count as a reference
        raise TypeError("the references of each prediction must be a tuple of texts, not a single text")
    tokens = Tokenisation.of(whole or references, bleu_tokenize)
    values, signatures = dict[str, float](), dict[str, str]()
    for metric in map(TEXT_METRICS.__getitem__, metrics):
        prepared = [metric.prepared(each, tokens) for each in references]
        found, signature = metric.score(metric.prepared(predictions, tokens), prepared, tokens)
        values |= found
        signatures |= {metric.name: signature} if signature else {}
        if caution := metric.caution(prepared, tokens):
            signatures[f"note on {metric.heading}"] = caution
    return TextScores(values, signatures)


def _words_caution(references: References, tokens: Tokenisation) -> str:
    if not tokens.writing.has_spaces or tokens.writing.unspaced < MANY_UNSPACED:
        return ""
    share = f"{tokens.writing.unspaced:.0%} of the reference tokens"
    return f"{share} are characters of scripts without spaces; each run of these characters counts as one word"


def _chrf_caution(references: References, tokens: Tokenisation) -> str:
    if tokens.writing.has_spaces:
        return _words_caution(references, tokens)
    return "chrF++ also counts words, but the references have no spaces between words; use chrf instead"


def _bleu_caution(references: References, tokens: Tokenisation) -> str:
    if not tokens.suits_bleu:
        return f"bleu_tokenize={tokens.bleu} cannot split text without spaces into words; use 'auto' instead"
    tokenize = _sacrebleu("BLEU", tokenize=tokens.bleu, force=True).tokenizer
    if all(len(tokenize(each.rstrip()).split()) < 4 for several in references for each in several):
        return "all references have fewer than four tokens, so BLEU is close to 0 for any output"
    return _words_caution(references, tokens) if tokens.bleu in ("13a", "intl") else ""


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    spaces = SimpleNamespace(tokenize=str.split)  # prepared text has spaces between its tokens
    return RougeScorer([metric.name for metric in ROUGE], tokenizer=spaces)


def _rouge(prediction: str, references: tuple[str, ...]) -> list[tuple[float, float]]:
    """Returns the maximum F1 score over the references for each ROUGE metric. ROUGE-Lsum compares lines."""
    scores = _rouge_scorer().score_multi(references, prediction)
    return [(scores[metric.name].fmeasure, 1) for metric in ROUGE]


def _rouge_signature(tokens: Tokenisation) -> str:
    version = importlib.metadata.version("rouge-score")
    split = "tok:a-z0-9|stem:porter" if tokens.is_ascii else "tok:unicode|unspaced:char|stem:porter-ascii"
    return f"f1|refs:best|{split}|sentences:lines|rouge-score:{version}"


def _rouge_caution(references: References, tokens: Tokenisation) -> str:
    longest = [max(len(each.split()) for each in several) for several in references]
    parts = [f"{count:,} without words (ROUGE is 0)"] if (count := longest.count(0)) else []
    parts += [f"{count:,} of one word (ROUGE-2 is 0)"] if (count := longest.count(1)) else []
    return f"the {len(longest):,} references include {' and '.join(parts)}" if parts else ""


def _exact_match(prediction: str, references: tuple[str, ...]) -> list[tuple[float, float]]:
    """Returns 1 if the prediction equals one of its references (ignoring surrounding whitespace), otherwise 0."""
    return [(prediction.strip() in {each.strip() for each in references}, 1)]


def _word_errors(prediction: str, references: tuple[str, ...]) -> list[tuple[float, float]]:
    """Counts the word edits (insertions, deletions and substitutions) and the words in the reference.

    Words are separated by whitespace. The reference with the fewest edits is used; ties go to the longest reference.
    """
    from rapidfuzz.distance import Levenshtein

    words = prediction.split()
    counts = [(Levenshtein.distance(words, right), len(right)) for right in map(str.split, references)]
    return [min(counts, key=lambda each: (each[0], -each[1]))]


def _wer_signature(tokens: Tokenisation) -> str:
    return joined("tok:space", tokens.unspaced)


_score = functools.partial(Metric, show=points, higher_is_better=True, drawn=True)
_error = functools.partial(Metric, show=points, drawn=True)

ROUGE = (
    _score("rouge1", "ROUGE-1", recorded=True),
    _score("rouge2", "ROUGE-2", recorded=True),
    _score("rougeL", "ROUGE-L", recorded=True),
    _score("rougeLsum", "ROUGE-Lsum"),
)
EXACT_MATCH = _score("exact_match", "exact match", recorded=True)


def _sacrebleu(kind: str, **settings: Any) -> Any:
    from sacrebleu import metrics

    return getattr(metrics, kind)(**settings)


def _corpus(metric: Metric, scorer: Callable[[str], Any], **fields: Any) -> SacrebleuMetric:
    return SacrebleuMetric(metric.name, metric.heading, (metric,), scorer, **fields)


_WORDS: dict[str, Any] = {"prepare": Tokenisation.words, "caution": _words_caution}
_ROUGE: dict[str, Any] = {"prepare": Tokenisation.rouge, "caution": _rouge_caution, "signature": _rouge_signature}

TEXT_METRICS: dict[str, TextMetric] = {
    metric.name: metric
    for metric in (
        _corpus(  # Papineni 2002
            _score("bleu", "BLEU", recorded=True),
            # With tokenize="none", the text is already tokenised; `force` suppresses the warning about tokenised text.
            lambda tokenize: _sacrebleu("BLEU", tokenize=tokenize, force=tokenize == "none"),
            caution=_bleu_caution,
        ),
        _corpus(_score("chrf", "chrF", recorded=True), lambda _: _sacrebleu("CHRF")),  # chrF2, Popovic 2015
        # chrF with word unigrams and bigrams, Popovic 2017.
        _corpus(_score("chrf++", "chrF++"), lambda _: _sacrebleu("CHRF", word_order=2), caution=_chrf_caution),
        _corpus(  # Snover 2006
            _error("ter", "TER"), lambda _: _sacrebleu("TER"), **_WORDS, signature=lambda tokens: tokens.unspaced
        ),
        CountedMetric("rouge", "ROUGE", ROUGE, _rouge, **_ROUGE, scores_summaries=True),  # Lin 2004
        CountedMetric("exact_match", "exact match", (EXACT_MATCH,), _exact_match),
        CountedMetric("wer", "WER", (_error("wer", "WER"),), _word_errors, **_WORDS, signature=_wer_signature),
    )
}
