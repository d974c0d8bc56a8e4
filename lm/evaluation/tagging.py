"""Metrics for predicted tags: entity metrics, as in the strict mode of seqeval, and the accuracy of single tags.

E is the number of sentences.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lm.evaluation.metric import Metric, share

ENTITY_METRICS = (
    Metric("entity_f1", "entity F1", share, higher_is_better=True, drawn=True, recorded=True),
    Metric("entity_precision", "entity precision", share, higher_is_better=True, drawn=True),
    Metric("entity_recall", "entity recall", share, higher_is_better=True, drawn=True),
)

TAG = re.compile(r"(?P<prefix>[BIMESLUO])(?:-.*)?", re.DOTALL)
ALIASES = {"BIO": "IOB2", "BIOES": "IOBES"}
NO_SCHEME = "none"  # for tags such as parts of speech, which do not mark entities


@dataclass(frozen=True)
class Scheme:
    """A scheme for marking entities with tags. A tag is either O or a prefix, a hyphen and a type, such as B-PER."""

    prefixes: str  # all prefixes, including O
    after: Mapping[str, str]  # maps a prefix to the only prefixes that may come directly before it, with the same type
    before: Mapping[str, str]  # maps a prefix to the only prefixes that may come directly after it, with the same type
    like: str  # the name of the seqeval class that extracts the entities
    renamed: Mapping[str, str] = field(default_factory=dict)  # maps prefixes to the names that are used in that class
    mirrored: bool = False  # whether that class reads the tags of a sentence in reverse order

    def is_broken(self, first: str, second: str) -> bool:
        """Returns whether two adjacent tags violate the scheme. O also stands for the start or end of a sentence."""
        same_type = first[2:] == second[2:]
        may_follow = second[0] not in self.after or (same_type and first[0] in self.after[second[0]])
        may_precede = first[0] not in self.before or (same_type and second[0] in self.before[first[0]])
        return not (may_follow and may_precede)

    def entities(self, tags: Sequence[str]) -> set[tuple[int, int, str]]:
        """Returns (index of the first word, exclusive end, type) for each entity of a sentence.

        As in the strict mode of seqeval, tags that violate the scheme form no entity.
        """
        from seqeval import scheme as schemes

        named = [self.renamed.get(tag[0], tag[0]) + tag[1:] for tag in tags]
        found = schemes.Tokens(named[::-1] if self.mirrored else named, getattr(schemes, self.like)).entities
        spans = ((each.start, each.end, each.tag) for each in found)
        size = len(tags)
        return {(size - end, size - start, type_) for start, end, type_ in spans} if self.mirrored else set(spans)


# In IOB1, B- separates adjacent entities of the same type. IOE1 is read as reversed IOB1 with E- instead of B-,
# because seqeval's own IOE1 misses one-word entities. If several schemes fit equally well, the first one is inferred.
SCHEMES: dict[str, Scheme] = {
    "IOB2": Scheme("BIO", {"I": "BI"}, {}, "IOB2"),
    "IOB1": Scheme("BIO", {"B": "BI"}, {}, "IOB1"),
    "IOE2": Scheme("IEO", {}, {"I": "IE"}, "IOE2"),
    "IOE1": Scheme("IEO", {}, {"E": "IE"}, "IOB1", {"E": "B"}, mirrored=True),
    "IOBES": Scheme("BIESO", {"I": "BI", "E": "BI"}, {"B": "IE", "I": "IE"}, "IOBES"),
    "BMES": Scheme("BMESO", {"M": "BM", "E": "BM"}, {"B": "ME", "M": "ME"}, "IOBES", {"M": "I"}),
    "BILOU": Scheme("BILUO", {"I": "BI", "L": "BI"}, {"B": "IL", "I": "IL"}, "BILOU"),
}


def fitting_schemes(labels: Iterable[str]) -> list[str]:
    """Returns the names of the SCHEMES whose prefixes include those of all labels.

    A label without a prefix, such as ADJ, fits no scheme.
    """
    found = [TAG.fullmatch(label) for label in labels]
    prefixes = {match["prefix"] for match in found if match}
    return [name for name, scheme in SCHEMES.items() if all(found) and prefixes <= set(scheme.prefixes)]


def count_broken(sentences: Sequence[Sequence[str]], names: Iterable[str]) -> dict[str, int]:
    """Counts, for each of the given SCHEMES, the pairs of adjacent tags that violate it."""
    pairs = Counter(pair for tags in sentences for pair in itertools.pairwise(("O", *tags, "O")))
    return {name: sum(count for pair, count in pairs.items() if SCHEMES[name].is_broken(*pair)) for name in names}


def infer_schemes(sentences: Sequence[Sequence[str]], labels: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of those `fitting_schemes` that the sentences violate least often.

    The names are in the order of SCHEMES. Each scheme after the first is returned only if it finds entities that
    differ from those of the first. If no scheme fits the labels, only NO_SCHEME is returned.
    """
    broken = count_broken(sentences, fitting_schemes(labels))
    if not broken:
        return (NO_SCHEME,)
    first, *others = (name for name, count in broken.items() if count == min(broken.values()))

    def differs(name: str) -> bool:
        return any(SCHEMES[name].entities(tags) != SCHEMES[first].entities(tags) for tags in sentences)

    return first, *filter(differs, others)


def scheme_signature(sentences: Sequence[Sequence[str]], scheme: str) -> str:
    """Describes the scheme used to count entities, and any evidence against it in the sentences."""
    labels = set(itertools.chain.from_iterable(sentences))
    inferred = infer_schemes(sentences, labels)
    if scheme == NO_SCHEME:
        reason = ": some tags are not O and have no prefix such as B-" if inferred == (NO_SCHEME,) else ""
        return f"none, so no entities are counted{reason}"
    broken = count_broken(sentences, {scheme, *inferred})
    count, least = broken[scheme], broken[inferred[0]]
    notes = [scheme]
    if count:
        notes.append(f"{count:,} of {sum(map(len, sentences)):,} tags violate the scheme, so entities may be lost")
    if count > least:
        notes.append(
            f"{inferred[0]} fits better ({least:,} violate it); if it is the right scheme, set eval.tag_scheme to it"
        )
    elif scheme in inferred and len(inferred) > 1:
        notes.append(f"{' and '.join(inferred)} fit equally well; choose one with eval.tag_scheme")
    elif {label[0] for label in labels} == {"I", "O"}:
        notes.append("without B- or E- tags, adjacent entities of the same type count as one")
    return "; ".join(notes)


def tagging_metrics(words_E2: np.ndarray, entities_E3: np.ndarray | None) -> dict[str, float]:
    """Computes token_accuracy and micro-averaged ENTITY_METRICS (0 to 1) from `word_counts` and `entity_counts`.

    0 / 0 is taken to be 0. If the tags follow no scheme, `entities_E3` is None and the entity metrics are omitted.
    """
    correct, words = map(int, words_E2.sum(axis=0))
    accuracy = {"token_accuracy": correct / max(1, words)}
    if entities_E3 is None:
        return accuracy
    correct, found, right = map(int, entities_E3.sum(axis=0))
    precision, recall = correct / max(1, found), correct / max(1, right)
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return {"entity_f1": f1, "entity_precision": precision, "entity_recall": recall, **accuracy}


def entity_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: str) -> np.ndarray:
    """Counts the correct, predicted and gold entities of each sentence, int64 (E, 3).

    As in the strict mode of seqeval, an entity is correct if its first word, last word and type are all correct. Gold
    or predicted tags that violate the `scheme` (a key of SCHEMES) form no entity. In IOB2, for example, an I- tag
    counts as O unless it follows a B- or I- tag of the same type. In BMES and similar schemes, the tags of an entity
    without an end tag count as O.
    """
    counts = np.zeros((len(gold), 3), np.int64)
    for number, pair in enumerate(zip(gold, predicted, strict=True)):
        assert len(pair[0]) == len(pair[1]), (number, pair)
        right, found = map(SCHEMES[scheme].entities, pair)
        counts[number] = len(right & found), len(found), len(right)
    return counts


def word_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the numbers of correctly tagged words and of all words in each sentence, int64 (E, 2)."""
    pairs = [list(zip(*pair, strict=True)) for pair in zip(gold, predicted, strict=True)]
    return np.array([(sum(a == b for a, b in pair), len(pair)) for pair in pairs], np.int64).reshape(-1, 2)
