"""Selects the examples that a split takes from each data source, and cleans them.

A split takes all examples of a data source, a subset, a fold or one side of the holdout, except those that cleaning
drops. The hash of an example's key (the document itself, the source of a pair, ...) determines which split contains it.
Equal texts are therefore always on the same side, disjoint subsets share no example, and adding data never moves an
example to the other side.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from lm.config import CleaningConfig, DataConfig, PairsConfig, SourceConfig
from lm.config.data import WORD_STEPS
from lm.data.reading.format import Reader
from lm.data.reading.readers import Labelled, Pair
from lm.data.storing import markup, words
from lm.data.storing.scripts import script_test
from lm.errors import named_errors

HASHES = 1 << 64
hash_of_bytes = functools.partial(hashlib.blake2b, digest_size=8)  # of a text in UTF-8 (see `text_hash`)
FINEST = 10**6  # largest denominator of a subset bound, so that bounds with up to six decimals are exact

# A match can only start where whitespace starts, so the search takes linear time.
_TRAILING_SPACE = re.compile(r"(?<![^\S\n])[^\S\n]++$", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class Subset:
    """The examples whose hash h in [0, 1) satisfies low <= (h + fold / folds) mod 1 < high, in exact arithmetic.

    Across all folds, the range [0, 1 / folds) contains each example exactly once.
    """

    low: Fraction = Fraction(0)
    high: Fraction = Fraction(1)
    fold: int = 0
    folds: int = 1

    @classmethod
    def of(cls, source: SourceConfig, data: DataConfig) -> Subset:
        return cls(exact(source.part[0]), exact(source.part[1]), data.fold, data.folds)

    def narrow(self, begin: Fraction | float, end: Fraction | float) -> Subset:
        """Returns the part of this subset from `begin` to `end`, which are fractions of its range."""
        size = self.high - self.low
        return Subset(self.low + size * exact(begin), self.low + size * exact(end), self.fold, self.folds)

    def holds(self, key: str) -> bool:
        if self.holds_all:
            return True
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        low, high = self._bounds
        return low <= (number * self.folds + self.fold * HASHES) % (self.folds * HASHES) < high

    @functools.cached_property
    def holds_all(self) -> bool:
        return (self.low, self.high) == (0, 1)

    @functools.cached_property
    def _bounds(self) -> tuple[int, int]:
        """The bounds `low` and `high`, multiplied by HASHES * folds and rounded up."""
        return math.ceil(self.low * HASHES * self.folds), math.ceil(self.high * HASHES * self.folds)


def exact(number: float | Fraction) -> Fraction:
    """Returns the closest simple fraction, such as 1/10 for 0.1, but never 0 for a positive number."""
    return number if isinstance(number, Fraction) else Fraction(number).limit_denominator(FINEST) or Fraction(number)


@dataclass(frozen=True)
class SplitSource:
    """A data source of a split, and the subset of the source that the split takes."""

    split: str
    section: str  # "train", "valid" or "test": the section of config.data that names the source
    name: str
    side: str  # "all" if nothing is held out from the source, otherwise "train" or "valid"
    config: SourceConfig
    data: DataConfig
    subset: Subset

    @property
    def label(self) -> str:
        return f"config.data.{self.section}.{self.name}"

    @property
    def label_of_side(self) -> str:
        return self.label if self.side == "all" else f"{self.label} ({self.side} side)"

    def read(self, reader: Reader, rules: Cleaner) -> Iterator[tuple[Any, Any]]:
        """Yields each example of the split in two versions: as read by the model (cleaned, with the prefix) and raw."""
        with named_errors(self.label):
            if not self.cuts_texts:
                for raw, example in self._kept(reader, rules):
                    yield self._prefixed(example), raw
                return
            # The first pass counts the characters. It needs its own copy of the rules, which remember past texts.
            characters = sum(len(text) for _, text in self._kept(reader, copy.deepcopy(rules)))
            boundary, end = int((1 - self.data.holdout_fraction) * characters), 0
            for _, text in self._kept(reader, rules):  # a document at the boundary is split
                begin, end = end, end + len(text)
                cut = min(max(boundary - begin, 0), len(text))
                if part := text[cut:] if self.side == "valid" else text[:cut]:
                    yield part, part

    def texts(self, reader: Reader, rules: Cleaner, *sides: str) -> Iterator[str]:
        """Yields the documents of the split, or the given sides of its pairs."""
        for example, _ in self.read(reader, rules):
            yield from (getattr(example, side) for side in sides) if sides else (example,)

    def text_of(self, example: Any, side: str) -> str:
        """Returns a cleaned document, or the given side of a cleaned pair with the prefix."""
        return getattr(self._prefixed(example), side) if side else example

    def _prefixed(self, example: Any) -> Any:
        return example.with_prefix(self.config.prefix) if isinstance(example, Pair) else example

    def _kept(self, reader: Reader, rules: Cleaner) -> Iterator[tuple[Any, Any]]:
        """Yields the examples of the subset that cleaning keeps, both raw and cleaned."""
        for raw in reader.iterate():
            if (example := self.select(raw, rules)) is not None:
                yield raw, example

    def select(self, raw: Any, rules: Cleaner) -> Any | None:
        """Returns the cleaned example, or None if it does not belong to the subset or is dropped."""
        example = rules.clean(raw)
        key = example if isinstance(example, str) else example.key
        return example if self.subset.holds(key) and (self.keeps_all(rules) or rules.keeps(example)) else None

    def select_each(self, raw: Sequence[Any], rules: Cleaner) -> Sequence[Any]:
        """Returns, in cleaned form, the raw examples that `select` keeps."""
        if type(rules) is Cleaner and self.subset.holds_all and rules.only_drops_short:
            return rules.drop_short(raw)
        return [each for example in raw if (each := self.select(example, rules)) is not None]

    def keeps_all(self, rules: Cleaner) -> bool:
        return rules.train_only and self.split != "train"

    @property
    def cuts_texts(self) -> bool:
        """Whether a document at the boundary is split, so that the examples depend on all texts of the source."""
        return self.side != "all" and self.data.holdout != "hash"

    def identity(self) -> Any:
        """Returns the JSON values that determine which examples of the source belong to the split."""
        side = self.side if self.side == "all" else [self.side, self.data.holdout, self.data.holdout_fraction]
        return side if Subset.of(self.config, self.data) == Subset() else [side, self.spelled_subset]

    @property
    def spelled_subset(self) -> str:
        """A string that identifies the subset. Fingerprints of runs contain it, so its format must not change."""
        bounds = self.config.part if self.side == "all" else (self.subset.low, self.subset.high)
        return f"{[str(each) for each in bounds]} {self.data.fold} {self.data.folds}"


def split_sources(data: DataConfig, split: str) -> list[SplitSource]:
    """Returns the data sources of a split ("train", "valid" or "test"), sorted by name.

    If `valid` names no source, the validation examples are held out from `train`. Training omits sources with weight 0.
    """
    held_out = split != "test" and not data.valid
    section = "train" if held_out else split
    found = []
    for name, config in sorted(getattr(data, section).items()):
        if section == "train" and config.weight == 0:
            continue
        subset = Subset.of(config, data)
        if held_out and data.holdout == "hash":
            share = data.holdout_fraction
            subset = subset.narrow(0, share) if split == "valid" else subset.narrow(share, 1)
        found.append(SplitSource(split, section, name, split if held_out else "all", config, data, subset))
    return found


def cleaning_values(config: CleaningConfig) -> dict[str, Any]:
    """Returns the JSON values that determine how a text is cleaned."""
    values = {name: each for name, each in dataclasses.asdict(config).items() if name not in WORD_STEPS}
    values |= words.identity(config)
    # The version is added only if it applies, so that stores made before it was introduced are still found.
    return values | ({"markup": markup.VERSION} if config.strip_html or config.strip_control else {})


def clean_text(config: CleaningConfig, text: str, removed: Counter[str] | None = None) -> str:
    """Applies the steps of data.cleaning to a text. Counts the removed stop words in `removed`."""
    if config.unicode:
        text = unicodedata.normalize(config.unicode, text)  # type: ignore[arg-type]
    if config.strip_html:
        text = markup.strip_html(text)
    if config.strip_control:
        text = markup.strip_control(text)
    if any(getattr(config, step) for step in WORD_STEPS):
        text = words.clean_words(config, text, removed)
    if config.whitespace == "trim":
        text = text.strip()
    elif config.whitespace == "lines":
        text = _EMPTY_LINES.sub("\n\n", _TRAILING_SPACE.sub("", text)).strip("\n")
    elif config.whitespace == "collapse":
        text = " ".join(text.split())
    elif config.whitespace == "collapse_lines":
        text = "\n".join(" ".join(line.split()) for line in text.split("\n"))
    return text


def text_hash(*texts: str) -> int:
    """Returns a 64-bit hash of a text, or of several texts in order.

    The probability that a text has the same hash as one of 10^7 other texts is about 10^-12.
    """
    content = (texts[0] if len(texts) == 1 else repr(texts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hash_of_bytes(content).digest(), "little")


class Cleaner:
    """Cleans the documents of one data source, and drops those to which one of the `reasons` applies."""

    reasons: ClassVar[tuple[str, ...]] = ("too_short", "too_long", "duplicate")
    train_only: ClassVar[bool] = False  # whether evaluations keep the examples that training drops

    def __init__(self, config: CleaningConfig):
        self.config = config
        self.dropped = dict.fromkeys(self.reasons, 0)  # number of dropped examples by reason
        self._removed: Counter[str] = Counter()  # how often each stop word was removed
        steps = config.unicode, config.strip_html, config.strip_control, config.whitespace != "keep"
        self._changes_texts = any(steps) or any(getattr(config, step) for step in WORD_STEPS)
        self.only_drops_short = not (self._changes_texts or config.max_chars or config.deduplicate)
        self.remembers = True  # whether `keeps` drops repeated examples if `deduplicate` is set
        self._seen: set[bytes] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickling and copying keep the settings, but not the record of past texts."""
        return type(self), (self.config,)

    def clean(self, example: Any) -> Any:
        return self._cleaned(example)

    def _cleaned(self, text: str) -> str:
        return clean_text(self.config, text, self._removed) if self._changes_texts else text

    def drop_short(self, texts: Sequence[str]) -> Sequence[str]:
        kept = [text for text in texts if len(text) >= self.config.min_chars]
        self.dropped["too_short"] += len(texts) - len(kept)
        return kept

    def take_counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Returns the counts of dropped examples by reason and of removed words, and resets both."""
        found = self.dropped, dict(self._removed)
        self.dropped, self._removed = dict.fromkeys(self.reasons, 0), Counter()
        return found

    def add_counts(self, dropped: Mapping[str, int], removed: Mapping[str, int]) -> None:
        """Adds the counts that another cleaner returned from `take_counts`."""
        self.dropped = {reason: number + dropped.get(reason, 0) for reason, number in self.dropped.items()}
        self._removed.update(removed)

    def notes(self) -> list[str]:
        """Returns notes for the user about the texts cleaned so far."""
        if not self.config.stop_words or self._removed:
            return []
        unsegmented = "" if self.config.segment else " (Chinese must be segmented, e.g. by data.cleaning.segment)"
        return [f"no text contained a stop word{unsegmented}"]

    def keeps(self, example: Any) -> bool:
        """Returns whether a cleaned example is kept. Counts dropped examples in `dropped`."""
        texts = (example,) if isinstance(example, str) else (example.source, example.target)
        if reason := self._reason_to_drop(*texts):
            self.dropped[reason] += 1
            return False
        return not (self.config.deduplicate and self.remembers and self.repeats(self.digest(texts)))

    @staticmethod
    def digest(texts: tuple[str, ...]) -> bytes:
        """Returns 16 bytes that identify the texts of an example."""
        return hashlib.blake2b(repr(texts).encode("utf-8"), digest_size=16).digest()

    def repeats(self, digest: bytes) -> bool:
        """Returns whether an earlier example had the same digest. If so, counts a dropped duplicate."""
        size = len(self._seen)  # takes about 100 bytes of memory per text
        self._seen.add(digest)
        is_repeated = len(self._seen) == size
        self.dropped["duplicate"] += is_repeated
        return is_repeated

    def _reason_to_drop(self, *texts: str) -> str:
        if min(map(len, texts)) < self.config.min_chars:
            return "too_short"
        return "too_long" if 0 < self.config.max_chars < max(map(len, texts)) else ""


class PairCleaner(Cleaner):
    """Cleans both sides of a pair. Only the source and the first reference determine whether the pair is dropped."""

    reasons = ("too_short", "too_long", "ratio", "identical", "source_script", "target_script", "duplicate")
    train_only = True

    def __init__(self, config: CleaningConfig, pairs: PairsConfig):
        super().__init__(config)
        self.pairs = pairs
        self._is_written_in = {
            setting: script_test(name, setting) if (name := getattr(pairs, setting)) else None
            for setting in ("source_script", "target_script")
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.config, self.pairs)

    def clean(self, example: Pair) -> Pair:
        references = tuple(self._cleaned(each) for each in example.references)
        return Pair(self._cleaned(example.source), references)

    def _reason_to_drop(self, *texts: str) -> str:
        if reason := super()._reason_to_drop(*texts):
            return reason
        shorter, longer = sorted(map(len, texts))
        if self.pairs.max_ratio and longer > self.pairs.max_ratio * shorter:
            return "ratio"
        if self.pairs.drop_identical and texts[0] == texts[1]:
            return "identical"
        tests = zip(self._is_written_in.items(), texts, strict=True)
        return next((reason for (reason, test), text in tests if test and not test(text)), "")


class LabelledCleaner(Cleaner):
    """Cleans labelled texts. Tagged words and questions stay unchanged, because their labels refer to the raw text."""

    train_only = True

    def clean(self, example: Any) -> Any:
        if not isinstance(example, Labelled):
            return example
        pair = None if example.pair is None else self._cleaned(example.pair)
        return Labelled(self._cleaned(example.text), pair, example.label)

    def keeps(self, example: Any) -> bool:
        """Returns whether an example is kept; the two texts of a pair are checked as one text."""
        return not isinstance(example, Labelled) or super().keeps("\n".join(example.texts))
