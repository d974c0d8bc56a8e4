"""Metrics of predicted tags: of entities, as in the strict mode of seqeval, and of single tags.

Shape letters: E sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lm.evaluation.metric import Metric, share

ENTITY_METRICS = (
    Metric("entity_f1", "entity F1", share, higher_is_better=True, drawn=True, recorded=True),
    Metric("entity_precision", "entity precision", share, higher_is_better=True, drawn=True),
    Metric("entity_recall", "entity recall", share, higher_is_better=True, drawn=True),
)

TAG = re.compile(r"(?P<prefix>[BIMESLUO])(?:-.*)?", re.DOTALL)
# Scheme of seqeval -> its prefixes, and those that seqeval names differently. The first matching scheme is used.
SCHEMES: dict[str, tuple[str, dict[str, str]]] = {
    "IOB1": ("IO", {}),
    "IOB2": ("BIO", {}),
    "IOBES": ("BIESO", {}),
    "BMES": ("BMESO", {"M": "I"}),
    "BILOU": ("BILUO", {}),
}


def scheme_of(labels: Sequence[str]) -> str:
    """Returns the scheme of a task's labels (a key of SCHEMES), or "" if they follow none, as with parts of speech.

    IOB2 is commonly called BIO. Tags without any B- are IOB1, where adjacent words of the same type form one entity.
    """
    found = [TAG.fullmatch(label) for label in labels]
    prefixes = {match["prefix"] for match in found if match}
    fitting = (name for name, (allowed, _) in SCHEMES.items() if prefixes <= set(allowed))
    return next(fitting, "") if all(found) else ""


def tagging_metrics(words_E2: np.ndarray, entities_E3: np.ndarray | None) -> dict[str, float]:
    """Computes token_accuracy and ENTITY_METRICS (0 to 1) from `word_counts` and `entity_counts`.

    `entities_E3` is None if the tags follow no scheme.
    """
    correct, words = map(int, words_E2.sum(axis=0))
    entities = {} if entities_E3 is None else entity_metrics(entities_E3.sum(axis=0))
    return entities | {"token_accuracy": correct / max(1, words)}


def entity_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: str) -> np.ndarray:
    """Counts the correct, predicted and gold entities of each sentence, int64 (E, 3).

    In the strict mode of seqeval, an entity is correct if its first word, last word and type are all correct. Tags that
    violate the scheme, whether gold or predicted, form no entity: in IOB2, an I- that does not follow a B- or I- of the
    same type counts as O; in BMES and similar schemes, so does an entity without an end. `scheme` is a key of SCHEMES.
    """
    from seqeval import scheme as schemes

    assert len(gold) == len(predicted), (len(gold), len(predicted))
    renamed = SCHEMES[scheme][1]
    kind = getattr(schemes, "IOBES" if scheme == "BMES" else scheme)
    counts = np.zeros((len(gold), 3), np.int64)
    for number, pair in enumerate(zip(gold, predicted, strict=True)):
        assert len(pair[0]) == len(pair[1]), (number, pair)
        named = [[renamed.get(tag[0], tag[0]) + tag[1:] for tag in tags] for tags in pair]
        right, found = (set(schemes.Tokens(tags, kind).entities) for tags in named)
        counts[number] = len(right & found), len(found), len(right)
    return counts


def entity_metrics(counts_3: np.ndarray) -> dict[str, float]:
    """Computes micro-averaged ENTITY_METRICS from the summed `entity_counts`; 0 / 0 is taken as 0."""
    correct, found, right = map(int, counts_3)
    precision, recall = correct / max(1, found), correct / max(1, right)
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return {"entity_f1": f1, "entity_precision": precision, "entity_recall": recall}


def word_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> np.ndarray:
    """Counts the correctly tagged words and all words of each sentence, int64 (E, 2)."""
    pairs = [list(zip(*pair, strict=True)) for pair in zip(gold, predicted, strict=True)]
    return np.array([(sum(a == b for a, b in pair), len(pair)) for pair in pairs], np.int64).reshape(-1, 2)
