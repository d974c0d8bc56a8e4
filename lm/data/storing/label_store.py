"""From a config to labelled examples in memory: read, cleaned, the part that was asked for, tokenised once.

The held-out part, where no validation source is named, is chosen by the same hash as parts and folds: the
first `data.holdout_fraction` of each training source's own part.
"""

from __future__ import annotations

import dataclasses
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lm.config import Config, SourceConfig
from lm.data.examples.label_encoding import AnswerTokens, TextTokens, WordTokens
from lm.data.reading.cleaning import Cleaner, clean_text
from lm.data.reading.files import hash_of
from lm.data.reading.labelled import Labelled, LabelledSource, Question, Raw, Tagged, narrow, open_labelled, take_part
from lm.data.storing.parts import named_errors
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError

FORMAT = 1  # raise it when the same inputs would give another store
WITH_CLASSES = ("classification", "tagging")
FEW = 10  # examples of which each may have a label of its own


@dataclass(frozen=True)
class LabelledStore:
    """The examples of one source in a split, in a fixed order, and their tokens."""

    name: str
    raw: list[Raw]  # classification and regression: cleaned, as the model reads them
    tokens: TextTokens | WordTokens | AnswerTokens
    fingerprint: str  # of everything that decides examples and tokens
    counts: dict[str, int]  # examples, tokens (none special), bytes (UTF-8), words, unknown
    label_counts: dict[str, int]  # of the whole split, all its sources; empty for regression and span_qa
    notes: list[str]


def build(config: Config, split: str, tokenizer: Tokenizer) -> dict[str, LabelledStore]:
    """Stores of "train", "valid" or "test" by source name, none of them empty.

    `valid` is a part of train where no validation source is named. A training source of weight 0 is switched
    off. Of training alone, texts that data.cleaning drops are left out (of a pair, both texts together count).
    Raises UserError for what cannot be read, for a split without example, and for a label that is not in
    data.labels, if that names any.
    """
    sources = list(_sources(config, split))
    found: dict[str, LabelledStore] = {}
    for source in sources:
        with named_errors(source.label):
            if store := source.store(tokenizer):
                found[source.name] = store
            else:
                print(f"{source.label}: {split} gets none of its examples", file=sys.stderr)
    if not found:
        raise UserError(_nothing_in(config, split, [source.label for source in sources]))
    counts = Counter(label for store in found.values() for label in _labels(config, store))
    found = {name: dataclasses.replace(store, label_counts=dict(counts)) for name, store in found.items()}
    if config.data.labels:
        check_labels(config, split, found)
    return found


def training_texts(config: Config) -> Iterator[str]:
    """All that is read in training, for a tokenizer to be trained on. Raises UserError as `build`."""
    for source in _sources(config, "train"):
        with named_errors(source.label):
            yield from _texts(source.examples())


def labels_of(stores: Mapping[str, LabelledStore]) -> tuple[str, ...]:
    """The labels of a split, sorted; by value if all are whole numbers. Empty where there are none to name.

    Raises UserError if there is one label only, or one for each example.
    """
    counts = next(iter(stores.values())).label_counts
    total = sum(counts.values())
    if len(counts) == 1:
        raise UserError(
            f"config.data.train: all {total:,} labels are {next(iter(counts))!r}, so there is nothing to tell apart; "
            "look at label_field or label_pattern, or name data.labels."
        )
    if counts and total > FEW and len(counts) == total:
        raise UserError(
            f"config.data.train: each of the {total:,} examples has a label of its own (such as "
            f"{next(iter(counts))!r:.40}); does label_field name the right field?"
        )
    numbers = all(label.removeprefix("-").isdecimal() for label in counts)
    return tuple(sorted(counts, key=lambda label: (int(label), label) if numbers else (0, label)))


def check_labels(config: Config, split: str, stores: Mapping[str, LabelledStore]) -> None:
    """Raises UserError if a label of the split is not one of data.labels."""
    known = config.data.labels
    for name, store in stores.items():
        unknown = sorted(set(_labels(config, store)) - set(known))
        if unknown:
            at = next(example for example in store.raw if unknown[0] in _labels_of_one(example))
            shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
            raise UserError(
                f"config.data.{split if getattr(config.data, split) else 'train'}.{name}: label {unknown[0]!r} is not "
                f"one of {shown} (those of data.labels, or else of train); its first example is {at.key!r:.60}."
            )


def _labels(config: Config, store: LabelledStore) -> Iterator[str]:
    if config.objective.name in WITH_CLASSES:
        for example in store.raw:
            yield from _labels_of_one(example)


def _labels_of_one(example: Raw) -> tuple[str, ...]:
    if isinstance(example, Question):
        return ()
    return example.tags if isinstance(example, Tagged) else (example.label,)


def _sources(config: Config, split: str) -> Iterator[_Source]:
    """In the order of the names."""
    data = config.data
    section = split if split == "test" or data.valid else "train"
    named: dict[str, SourceConfig] = getattr(data, section)
    for name in sorted(named):
        if section == "train" and named[name].weight == 0:
            continue
        part: Sequence[float | Fraction] = named[name].part
        if not data.valid and split != "test":
            held_out = split == "valid"
            part = narrow(part, 0 if held_out else data.holdout_fraction, data.holdout_fraction if held_out else 1)
        yield _Source(config, f"config.data.{section}.{name}", name, named[name], part, split == "train")


class _Source:
    def __init__(
        self,
        config: Config,
        label: str,
        name: str,
        source: SourceConfig,
        part: Sequence[float | Fraction],
        train: bool,
    ):
        self.label, self.name = label, name
        self._config, self._source, self._part, self._train = config, source, part, train

    def store(self, tokenizer: Tokenizer) -> LabelledStore | None:
        config = self._config
        source = open_labelled(self._source, config.objective.name)
        cleaner = Cleaner(config.data.cleaning)
        kept = list(self._examples(source, cleaner))
        if not kept:
            return None
        tokens = _encode(kept, tokenizer)
        dropped = [f"{count:,} texts are left out: {reason}" for reason, count in cleaner.dropped.items() if count]
        return LabelledStore(
            name=self.name,
            raw=kept,
            tokens=tokens,
            fingerprint=hash_of(*self._identity(source, tokenizer)),
            counts=_counts(kept, tokens, tokenizer),
            label_counts={},
            notes=[*source.notes(), *dropped],
        )

    def examples(self) -> Iterator[Raw]:
        """Those of this part, one by one."""
        opened = open_labelled(self._source, self._config.objective.name)
        return self._examples(opened, Cleaner(self._config.data.cleaning))

    def _examples(self, source: LabelledSource, cleaner: Cleaner) -> Iterator[Raw]:
        data = self._config.data
        cleaned = (_clean(example, cleaner) for example in source.iterate())
        for example in take_part(cleaned, self._part, data.fold, data.folds):
            if not self._train or not isinstance(example, Labelled) or _is_kept(example, cleaner):
                yield example

    def _identity(self, source: LabelledSource, tokenizer: Tokenizer) -> Iterator[str]:
        data = self._config.data
        yield f"labelled {FORMAT} {self._config.objective.name} {self._train}"
        yield source.fingerprint()
        yield tokenizer.fingerprint
        yield f"{[str(each) for each in self._part]} {data.fold} {data.folds}"
        if self._config.objective.name in ("classification", "regression"):
            yield str(sorted(dataclasses.asdict(data.cleaning).items()))
            yield unicodedata.unidata_version if data.cleaning.unicode else ""


def _clean(example: Raw, cleaner: Cleaner) -> Raw:
    """Words and the texts of questions stay as they are: what is told about them depends on every character."""
    if not isinstance(example, Labelled):
        return example
    pair = None if example.pair is None else clean_text(cleaner.config, example.pair)
    return Labelled(clean_text(cleaner.config, example.text), pair, example.label)


def _is_kept(example: Labelled, cleaner: Cleaner) -> bool:
    whole = example.text if example.pair is None else f"{example.text}\n{example.pair}"
    return cleaner.keeps(whole)


def _encode(examples: Sequence[Any], tokenizer: Tokenizer) -> TextTokens | WordTokens | AnswerTokens:
    kinds: dict[type, Any] = {Labelled: TextTokens, Tagged: WordTokens, Question: AnswerTokens}
    return kinds[type(examples[0])].encode(examples, tokenizer)


def _texts(examples: Iterable[Raw]) -> Iterator[str]:
    """All that is read, the context of several questions once."""
    seen: set[str] = set()
    for example in examples:
        if isinstance(example, Labelled):
            yield example.text
            if example.pair is not None:
                yield example.pair
        elif isinstance(example, Tagged):
            yield " ".join(example.words)
        else:
            yield example.question
            if example.context not in seen:
                seen.add(example.context)
                yield example.context


def _counts(examples: Sequence[Raw], tokens: Any, tokenizer: Tokenizer) -> dict[str, int]:
    counts = {"examples": len(examples), "tokens": sum(len(flat) for flat in tokens.flat), "bytes": 0, "words": 0}
    for text in _texts(examples):
        counts["bytes"] += len(text.encode("utf-8"))
        counts["words"] += len(text.split())
    unknown = tokenizer.unk_id
    counts["unknown"] = 0 if unknown is None else sum(int(np.sum(flat == unknown)) for flat in tokens.flat)
    return counts


def _nothing_in(config: Config, split: str, sources: Sequence[str]) -> str:
    data = config.data
    if split == "test" and not data.test:
        return "config.data.test: names no source, so there is no test split; add one, or take --split=valid."
    named = ", ".join(sources) or f"config.data.{split}"
    if split == "valid" and not data.valid:
        return (
            f"config.data.holdout_fraction: with {data.holdout_fraction} no example of {named} goes to valid; there "
            "are too few. Raise it, or name validation sources."
        )
    return (
        f"config.data.{split}: no example of {named} is left; look at `part`, data.fold, data.holdout_fraction and "
        "data.cleaning."
    )
