"""Keeps the labelled examples of one data source in memory: cleaned, restricted to the split and tokenised once."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.storing.overlap import combined
from lm.data.storing.splits import Cleaner, SplitSource, cleaning_values, text_hash
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.files import hash_of

FORMAT = 1  # increment this when a change to the code produces a different store from the same inputs
FEW = 10  # up to this number of examples, all labels may be distinct
MOST_LABELS = 6  # maximum number of labels shown with their counts


@dataclass(frozen=True)
class ExampleStore:
    """The examples of one data source in a split, in a fixed order, and their tokens."""

    name: str
    raw: list[Any]  # each of type Labelled (cleaned, as the model reads it), Tagged or Question
    tokens: Any  # tokenised as the task requires; `tokens.flat` contains all tokens except special ones
    fingerprint: str  # hash of everything that determines the examples and tokens
    counts: dict[str, int]  # examples, documents, tokens (except special ones), bytes (UTF-8), words, unknown tokens
    label_counts: dict[str, int]  # label counts over all sources of the split; empty if there are no classes
    notes: list[str]

    @property
    def num_tokens_of_text(self) -> int:
        return self.counts["tokens"]

    def sides(self) -> Mapping[str, ExampleStore]:
        return {"": self}

    def describe(self, short: Callable[[float], str]) -> str:
        labels = ", ".join(f"{label} {count:,}" for label, count in sorted(self.label_counts.items())[:MOST_LABELS])
        more = ", ..." if len(self.label_counts) > MOST_LABELS else ""
        size = f"{self.counts['examples']:,} examples, {short(self.counts['tokens'])} tokens"
        return "; ".join([f"{size} ({labels}{more})" if labels else size, *self.notes])

    def record(self) -> dict[str, Any]:
        return {"hash": self.fingerprint, **{name: n for name, n in self.counts.items() if name != "documents"}}

    def hashes_of_examples(self) -> tuple[np.ndarray, np.ndarray]:
        inputs_E = np.array([text_hash(*texts_of([example])) for example in self.raw], np.uint64)
        labels_E = np.array([text_hash(*example.labels, "") for example in self.raw], np.uint64)
        return inputs_E, combined(inputs_E, labels_E)


def build(
    source: SplitSource,
    reader: Any,
    rules: Cleaner,
    tokenizer: Tokenizer,
    encode: Callable[[Sequence[Any], Tokenizer], Any],
    identity: Sequence[str],
) -> ExampleStore | None:
    """Builds the store for one data source in a split, or returns None if the split has no examples from it.

    `identity` lists everything that determines the examples and tokens except the source, tokenizer and subset.
    """
    raw = [example for example, _ in source.read(reader, rules)]
    if not raw:
        return None
    tokens = encode(raw, tokenizer)
    kind = f"labelled {FORMAT} {identity[0]} {source.split == 'train'}"
    of_data = reader.fingerprint(), tokenizer.fingerprint, source.spelled_subset
    where = "" if source.identity() == "all" else " (in the whole data source)"
    notes = [*reader.notes_on(raw), *(f"{note}{where}" for note in reader.notes())]
    notes += [f"texts dropped ({reason}): {count:,}" for reason, count in rules.dropped.items() if count]
    notes += rules.notes()
    fingerprint = hash_of(kind, *of_data, *identity[1:])
    return ExampleStore(source.name, raw, tokens, fingerprint, _counts(raw, tokens, tokenizer), {}, notes)


def of_inputs(raw: Sequence[Any], tokens: Any, tokenizer: Tokenizer) -> ExampleStore:
    """Returns a store of new inputs, which have no labels and belong to no split."""
    return ExampleStore("inputs", list(raw), tokens, "", _counts(raw, tokens, tokenizer), {}, [])


def cleaning_identity(config: Config) -> list[str]:
    """Returns the settings and the Unicode version that determine how texts are cleaned."""
    cleaning = config.data.cleaning
    return [str(sorted(cleaning_values(cleaning).items())), unicodedata.unidata_version if cleaning.unicode else ""]


def with_label_counts(stores: Mapping[str, ExampleStore]) -> dict[str, ExampleStore]:
    """Returns the stores of a split, each with the label counts of the whole split."""
    counts = Counter(label for store in stores.values() for example in store.raw for label in example.labels)
    return {name: dataclasses.replace(store, label_counts=dict(counts)) for name, store in stores.items()}


def labels_of(stores: Mapping[str, ExampleStore]) -> tuple[str, ...]:
    """Returns the sorted labels of a split. Integer labels are sorted by value.

    Raises UserError if all labels are the same, or if there are more than FEW labels and all are different.
    """
    counts = next(iter(stores.values())).label_counts
    total = sum(counts.values())
    if len(counts) == 1:
        raise UserError(
            f"config.data.train: all {total:,} labels are {next(iter(counts))!r}, so there is nothing to distinguish; "
            "check label_field or label_pattern, or list the labels in data.labels."
        )
    if total > FEW and len(counts) == total:
        raise UserError(
            f"config.data.train: all {total:,} examples have different labels (such as "
            f"{next(iter(counts))!r:.40}); does label_field name the right field?"
        )
    numbers = all(label.removeprefix("-").isdecimal() for label in counts)
    return tuple(sorted(counts, key=lambda label: (int(label), label) if numbers else (0, label)))


def check_labels(config: Config, split: str, stores: Mapping[str, ExampleStore]) -> None:
    """Raises UserError if a label of the split is not one of data.labels."""
    known = config.data.labels
    for name, store in stores.items():
        if unknown := sorted({label for example in store.raw for label in example.labels} - set(known)):
            at = next(example for example in store.raw if unknown[0] in example.labels)
            shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
            raise UserError(
                f"config.data.{split if getattr(config.data, split) else 'train'}.{name}: label {unknown[0]!r} is not "
                f"one of {shown} (from data.labels, or from train if data.labels is empty); the first example with "
                f"this label is {at.key!r:.60}."
            )


def texts_of(examples: Iterable[Any]) -> Iterator[str]:
    """Yields every text of the examples; a context that several questions share is yielded only once."""
    seen: set[str] = set()
    for example in examples:
        yield from example.texts
        if (context := getattr(example, "context", None)) is not None and context not in seen:
            seen.add(context)
            yield context


def _counts(examples: Sequence[Any], tokens: Any, tokenizer: Tokenizer) -> dict[str, int]:
    texts = list(texts_of(examples))
    return {
        "examples": len(examples),
        "documents": len(examples),
        "tokens": sum(map(len, tokens.flat)),
        "bytes": sum(len(text.encode("utf-8")) for text in texts),
        "words": sum(len(text.split()) for text in texts),
        "unknown": sum(int(np.sum(flat == tokenizer.unk_id)) for flat in tokens.flat),  # unk_id may be None
    }
