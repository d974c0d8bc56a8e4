"""Generated text against references: BLEU, chrF and TER by sacrebleu, ROUGE, exact match, word error rate.

All figures are in percent (0 to 100; TER and WER, of which less is better, may exceed 100). Predictions
and references are plain text, as a person would read it. No library here fetches anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.config.training import TEXT_METRICS

BY_SACREBLEU = ("bleu", "chrf", "ter")


@dataclass(frozen=True)
class TextScores:
    """`figures` by name, in percent; `signatures` tell how those were computed that have several definitions."""

    figures: dict[str, float]
    signatures: dict[str, str]


def score(
    metrics: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[tuple[str, ...]],
    *,
    bleu_tokenize: str,
) -> TextScores:
    """Figures of a whole corpus.

    `bleu` (Papineni 2002), `chrf` (chrF2, Popovic 2015) and `ter` (Snover 2006) are sacrebleu's corpus scores
    (Post 2018), with its defaults. For the others see `sentence_counts`.

    Args:
        metrics: names in TEXT_METRICS.
        references: of each prediction one or more; their numbers may differ.
        bleu_tokenize: sacrebleu's tokenisation for BLEU.
    """
    assert len(predictions) == len(references) > 0 and all(references), (len(predictions), len(references))
    figures: dict[str, float] = {}
    signatures: dict[str, str] = {}
    for metric in metrics:
        if metric in BY_SACREBLEU:
            scorer = sacrebleu_scorer(metric, bleu_tokenize)
            figures[metric] = scorer.corpus_score(predictions, reference_streams(references)).score
            signatures[metric] = str(scorer.get_signature())
        else:
            counts = sentence_counts(metric, predictions, references)
            figures |= {figure: percent(counts_E2) for figure, counts_E2 in counts.items()}
            if metric == "rouge":
                signatures[metric] = rouge_signature()
    return TextScores(figures, signatures)


def sacrebleu_scorer(metric: str, bleu_tokenize: str) -> Any:
    """sacrebleu's object for `bleu`, `chrf` or `ter`."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    if metric == "bleu":
        # force: who says that the text is tokenised need not be warned of it.
        return BLEU(tokenize=bleu_tokenize, force=bleu_tokenize == "none")
    return {"chrf": CHRF, "ter": TER}[metric]()


def reference_streams(references: Sequence[tuple[str, ...]]) -> list[list[str | None]]:
    """What sacrebleu takes: first references of all, then second ones..., None where there is no such."""
    return [list(stream) for stream in itertools.zip_longest(*references)]


def percent(counts_E2: np.ndarray) -> float:
    """100 * sum of the first column / sum of the second. 0 / 0 is 0, and anything else / 0 is 100."""
    part, whole = counts_E2.sum(axis=0)
    return 100 * float(part / whole if whole else part > 0)


def sentence_counts(
    metric: str, predictions: Sequence[str], references: Sequence[tuple[str, ...]]
) -> dict[str, np.ndarray]:
    """Of each figure of a metric that is not sacrebleu's, an array (examples, 2) whose `percent` is the figure.

    `rouge`: F1 of n-grams (`rouge1`, `rouge2`) and of the longest common subsequence (`rougeL`; `rougeLsum` by
    sentences, which are the lines of the text as it is), Lin 2004, by the rouge-score package with Porter's
    stemmer; of several references the one with the best F1, for each figure. The mean over examples. It drops
    all but a-z and 0-9, so it is of no use for text in other scripts.
    `exact_match`: the share of predictions that equal one of their references but for white space around them.
    `wer`: word error rate, edits (insertions, deletions, substitutions) over words of the reference, in all;
    words are what white space separates; of several references the one with the fewest edits, then the longest.
    """
    pairs = list(zip(predictions, references, strict=True))
    if metric == "rouge":
        from rouge_score.rouge_scorer import RougeScorer

        names = TEXT_METRICS["rouge"]
        scorer = RougeScorer(names, use_stemmer=True)
        scores = [scorer.score_multi(several, prediction) for prediction, several in pairs]
        return {name: np.array([(each[name].fmeasure, 1) for each in scores], np.float64) for name in names}
    if metric == "exact_match":
        equal = [prediction.strip() in {each.strip() for each in several} for prediction, several in pairs]
        return {"exact_match": np.array([(each, 1) for each in equal], np.float64)}
    assert metric == "wer", metric
    return {"wer": np.array([_word_errors(*pair) for pair in pairs], np.float64)}


def rouge_signature() -> str:
    from importlib.metadata import version

    return f"f1|refs:best|stem:porter|sentences:lines|rouge-score:{version('rouge-score')}"


def _word_errors(prediction: str, references: Sequence[str]) -> tuple[int, int]:
    """(edits, words) of the closest reference."""
    words = prediction.split()
    counts = [(edit_distance(words, reference.split()), len(reference.split())) for reference in references]
    return min(counts, key=lambda each: (each[0], -each[1]))


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence into the other (Levenshtein)."""
    numbers: dict[str, int] = {}
    second_ids = np.array([numbers.setdefault(word, len(numbers)) for word in second], np.int64)
    places = np.arange(len(second) + 1)
    row = places  # of the table of distances between beginnings of `first` and of `second`
    for count, word in enumerate(first, start=1):
        best = np.minimum(row[1:] + 1, row[:-1] + (second_ids != numbers.get(word, -1)))
        # An insertion costs 1 for each place to the right, so what is passed on is a running minimum.
        row = np.minimum.accumulate(np.concatenate([[count], best]) - places) + places
    return int(row[-1])
