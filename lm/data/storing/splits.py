"""Selects the examples that a split takes from each data source, and cleans them.

A split takes all examples of a data source, a subset, a fold or one side of the holdout, except the examples that
cleaning drops. The key of an example is, for instance, the document itself, the source text of a pair, or the text of a
labelled example. The hash of the key determines which split contains the example. Equal texts are therefore always on
the same side, disjoint subsets share no example, and adding data never moves an example from one side to the other.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from lm.config import CleaningConfig, DataConfig, PairsConfig, SourceConfig
from lm.data.reading.format import Reader
from lm.data.reading.readers import Labelled, Pair
from lm.data.storing import markup
from lm.errors import UserError

HASHES = 1 << 64
FINEST = 10**6  # largest denominator of a subset bound, so that bounds with up to six decimals are exact

# A match can only start where white space starts, so the search takes linear time.
_TRAILING_SPACE = re.compile(r"(?<![^\S\n])[^\S\n]++$", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class Subset:
    """The examples whose hash h in [0, 1) satisfies low <= (h + fold / folds) mod 1 < high.

    The arithmetic is exact. Across all folds, the range [0, 1 / folds) contains each example exactly once.
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
        if (self.low, self.high) == (0, 1):
            return True
        low, high = (each * self.folds * HASHES for each in (self.low, self.high))
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        rotated = number * self.folds + self.fold * HASHES
        return low <= rotated % (self.folds * HASHES) < high


def exact(number: float | Fraction) -> Fraction:
    """Returns the closest simple fraction, such as 1/10 for 0.1, but never 0 for a positive number."""
    return number if isinstance(number, Fraction) else Fraction(number).limit_denominator(FINEST) or Fraction(number)


@dataclass(frozen=True)
class SplitSource:
    """One data source of a split, and the subset of this source that the split takes."""

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
            if self.side != "all" and self.data.holdout == "tail":
                # The first pass counts the characters. It needs its own copy of the rules, which remember past texts.
                characters = sum(map(len, self._kept(reader, copy.deepcopy(rules))))
                boundary = int((1 - self.data.holdout_fraction) * characters)
                yield from ((text, text) for text in _cut_tail(self._kept(reader, rules), boundary, self.side))
                return
            keeps_all = rules.train_only and self.split != "train"
            for raw in reader.iterate():
                example = rules.clean(raw)
                key = example if isinstance(example, str) else example.key
                if self.subset.holds(key) and (keeps_all or rules.keeps(example)):
                    yield example.with_prefix(self.config.prefix) if isinstance(example, Pair) else example, raw

    def texts(self, reader: Reader, rules: Cleaner, *sides: str) -> Iterator[str]:
        """Yields the documents of the split, or the given sides of its pairs."""
        for example, _ in self.read(reader, rules):
            yield from (getattr(example, side) for side in sides) if sides else (example,)

    def _kept(self, reader: Reader, rules: Cleaner) -> Iterator[str]:
        """Yields the documents of the subset that cleaning keeps, from both sides of the holdout."""
        return (text for text in map(rules.clean, reader.iterate()) if self.subset.holds(text) and rules.keeps(text))

    def identity(self) -> Any:
        """Returns the JSON values that determine which examples of the source belong to the split."""
        side = self.side if self.side == "all" else [self.side, self.data.holdout, self.data.holdout_fraction]
        return side if self._has_all_parts else [side, self.spelled_subset]

    @property
    def is_whole(self) -> bool:
        """Whether the split takes all examples of the data source, except those that are dropped."""
        return self.side == "all" and self._has_all_parts

    @property
    def _has_all_parts(self) -> bool:
        return exact(self.config.part[0]) == 0 and exact(self.config.part[1]) == 1 and self.data.folds == 1

    @property
    def spelled_subset(self) -> str:
        """A text that identifies the subset. Fingerprints of runs contain this text, so its format must not change."""
        bounds = self.config.part if self.side == "all" else (self.subset.low, self.subset.high)
        return f"{[str(each) for each in bounds]} {self.data.fold} {self.data.folds}"


def split_sources(data: DataConfig, split: str) -> list[SplitSource]:
    """Returns the data sources of a split ("train", "valid" or "test"), sorted by name.

    If `valid` names no source, the validation examples are held out from `train`. Training sources with weight 0 are
    omitted.
    """
    section = split if split == "test" or data.valid else "train"
    held_out = section == "train" and not data.valid
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


def nothing_in(data: DataConfig, split: str, what: str) -> str:
    """Returns the error message for a split without examples. `what` names the kind of example, e.g. "documents"."""
    if split == "test" and not data.test:
        return "config.data.test: no source is named, so there is no test split; add a source or use --split=valid."
    if not data.train and not getattr(data, split):
        return (
            f"config.data.{split}: this run was imported and has no data of its own; name a data source in a --config."
        )
    sources = split_sources(data, split)
    named = ", ".join(f"{each.name} ({each.config.path or each.config.kind})" for each in sources)
    if split == "valid" and not data.valid:
        return (
            f"config.data.holdout_fraction: with holdout={data.holdout!r} and fraction {data.holdout_fraction}, no "
            f"{what} of {named} are held out for validation; there are too few (a text file is one document unless "
            "`document` says otherwise). Raise the fraction, use holdout='tail' for plain text, or name sources in "
            "data.valid."
        )
    return (
        f"config.data.{split}: no {what} of {named or 'any source'} are left for {split}; check `part`, data.fold, "
        "data.holdout_fraction, data.cleaning and data.pairs."
    )


@contextlib.contextmanager
def named_errors(label: str) -> Iterator[None]:
    """Prefixes the message of a UserError with the name of the data source unless it begins with a setting name."""
    try:
        yield
    except UserError as error:
        if str(error).startswith("config."):
            raise
        raise UserError(f"{label}: {error}") from error


def _cut_tail(texts: Iterator[str], boundary: int, side: str) -> Iterator[str]:
    """Yields the text before offset `boundary` (train) or after it (valid), splitting a document if necessary."""
    end = 0
    for text in texts:
        begin, end = end, end + len(text)
        cut = min(max(boundary - begin, 0), len(text))
        if kept := text[cut:] if side == "valid" else text[:cut]:
            yield kept


def cleaning_values(config: CleaningConfig) -> dict[str, Any]:
    """Returns the JSON values that determine how a text is cleaned."""
    values = dataclasses.asdict(config)
    # The version is added only if it applies, so that stores made before it was introduced are still found.
    return values | ({"markup": markup.VERSION} if config.strip_html or config.strip_control else {})


def clean_text(config: CleaningConfig, text: str) -> str:
    """Cleans a text with the steps that the config enables."""
    if config.unicode:
        text = unicodedata.normalize(config.unicode, text)  # type: ignore[arg-type]
    if config.strip_html:
        text = markup.strip_html(text)
    if config.strip_control:
        text = markup.strip_control(text)
    if config.whitespace == "trim":
        text = text.strip()
    elif config.whitespace == "lines":
        text = _EMPTY_LINES.sub("\n\n", _TRAILING_SPACE.sub("", text)).strip("\n")
    elif config.whitespace == "collapse":
        text = " ".join(text.split())
    return text


def text_hash(*texts: str) -> int:
    """Returns a 64-bit hash of a text, or of several texts in order.

    The probability that a text has the same hash as one of 10^7 other texts is about 10^-12.
    """
    content = texts[0] if len(texts) == 1 else repr(texts)
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Cleaner:
    """Cleans the documents of one data source, and drops documents to which one of the `reasons` applies."""

    reasons: ClassVar[tuple[str, ...]] = ("too_short", "too_long", "duplicate")
    train_only: ClassVar[bool] = False  # whether evaluations keep the examples that training drops

    def __init__(self, config: CleaningConfig):
        self.config = config
        self.dropped = dict.fromkeys(self.reasons, 0)  # number of dropped examples by reason
        self._seen: set[bytes] = set()

    def clean(self, example: Any) -> Any:
        return clean_text(self.config, example)

    def keeps(self, example: Any) -> bool:
        """Returns whether a cleaned example is kept. Counts dropped examples in `dropped`."""
        reason = self._reason_to_drop((example,) if isinstance(example, str) else (example.source, example.target))
        if reason:
            self.dropped[reason] += 1
        return not reason

    def _reason_to_drop(self, texts: tuple[str, ...]) -> str | None:
        if min(map(len, texts)) < self.config.min_chars:
            return "too_short"
        if self.config.max_chars and max(map(len, texts)) > self.config.max_chars:
            return "too_long"
        if reason := self._mismatch(*texts):
            return reason
        if self.config.deduplicate:  # takes about 100 bytes of memory per text
            size = len(self._seen)
            self._seen.add(hashlib.blake2b(repr(texts).encode("utf-8"), digest_size=16).digest())
            return "duplicate" if len(self._seen) == size else None
        return None

    def _mismatch(self, *texts: str) -> str | None:
        return None


class PairCleaner(Cleaner):
    """Cleans both sides of a pair. Only the source and first reference determine whether the pair is dropped."""

    reasons = ("too_short", "too_long", "ratio", "identical", "source_script", "target_script", "duplicate")
    train_only = True

    def __init__(self, config: CleaningConfig, pairs: PairsConfig):
        super().__init__(config)
        self.pairs = pairs
        self._scripts = {
            setting: Script(name, setting) if name else None
            for setting, name in (("source_script", pairs.source_script), ("target_script", pairs.target_script))
        }

    def clean(self, example: Pair) -> Pair:
        references = tuple(clean_text(self.config, each) for each in example.references)
        return Pair(clean_text(self.config, example.source), references)

    def _mismatch(self, *texts: str) -> str | None:
        shorter, longer = sorted(map(len, texts))
        if self.pairs.max_ratio and longer > self.pairs.max_ratio * shorter:
            return "ratio"
        if self.pairs.drop_identical and texts[0] == texts[1]:
            return "identical"
        for (reason, script), text in zip(self._scripts.items(), texts, strict=True):
            if script and not script.has_most_of(text):
                return reason
        return None


class LabelledCleaner(Cleaner):
    """Cleans labelled texts.

    Tagged words and questions are left unchanged, since their labels refer to the original characters.
    """

    train_only = True

    def clean(self, example: Any) -> Any:
        if not isinstance(example, Labelled):
            return example
        pair = None if example.pair is None else clean_text(self.config, example.pair)
        return Labelled(clean_text(self.config, example.text), pair, example.label)

    def keeps(self, example: Any) -> bool:
        """Returns whether an example is kept; the two texts of a pair are checked as one text."""
        return not isinstance(example, Labelled) or super().keeps("\n".join(example.texts))


class Script:
    """The letters whose Unicode names begin with `name`, such as LATIN or CJK.

    Raises UserError if no letter has a Unicode name that begins with `name`.
    """

    # Unicode's Script property, which `regex` supports, would not suffice: CJK, for example, is not a script.
    def __init__(self, name: str, setting: str):
        prefix = name.strip().upper() + " "
        # Looking up Unicode names is slow, so the result is cached for each letter.
        self._has = functools.cache(lambda letter: unicodedata.name(letter, "").startswith(prefix))
        if not any(self._has(chr(code)) for code in range(0x110000) if chr(code).isalpha()):
            raise UserError(
                f"config.data.pairs.{setting}: {name!r} is not the beginning of any letter's Unicode name; "
                "use a name such as LATIN, CYRILLIC, GREEK, ARABIC, DEVANAGARI, HIRAGANA, HANGUL or CJK."
            )
        self._has.cache_clear()

    def has_most_of(self, text: str) -> bool:
        """Returns whether most letters of a text belong to the script, or True if the text has no letters."""
        letters = [character for character in text if character.isalpha()]
        return not letters or 2 * sum(map(self._has, letters)) > len(letters)
