"""The share of each data source that a split takes: all of it, a subset, a fold, or its side of the holdout.

Each raw example has a key (a document itself, the source text of a pair, the text of a labelled example, ...), and the
hash of the key decides. So equal texts are always on the same side, subsets that do not overlap share no example, and
adding data moves no example from one side to the other.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lm.config import DataConfig, SourceConfig
from lm.data import order
from lm.data.reading.cleaning import Cleaner
from lm.data.reading.format import Reader
from lm.errors import UserError

HASHES = 1 << 64
FINEST = 10**6  # subsets are given with up to six decimals, or as fractions of small numbers


@dataclass(frozen=True)
class Subset:
    """The examples whose hash h, from 0 to 1, has low <= (h + fold / folds) mod 1 < high, compared exactly.

    Over all folds the range from 0 to 1 / folds holds each example once.
    """

    low: Fraction = Fraction(0)
    high: Fraction = Fraction(1)
    fold: int = 0
    folds: int = 1

    @classmethod
    def of(cls, source: SourceConfig, data: DataConfig) -> Subset:
        return cls(exact(source.part[0]), exact(source.part[1]), data.fold, data.folds)

    def narrow(self, begin: Fraction | float, end: Fraction | float) -> Subset:
        """Returns the subset of this range from `begin` to `end`, which are shares of it."""
        size = self.high - self.low
        return Subset(self.low + size * exact(begin), self.low + size * exact(end), self.fold, self.folds)

    def holds(self, key: str) -> bool:
        if (self.low, self.high) == (0, 1):
            return True
        low, high = (each * self.folds * HASHES for each in (self.low, self.high))
        rotated = order.number(key, below=HASHES) * self.folds + self.fold * HASHES
        return low <= rotated % (self.folds * HASHES) < high


def exact(number: float | Fraction) -> Fraction:
    """Returns 1/10 for 0.1, and never 0 for a number above 0."""
    return number if isinstance(number, Fraction) else Fraction(number).limit_denominator(FINEST) or Fraction(number)


@dataclass(frozen=True)
class SplitSource:
    """One data source of a split, and the share of it that the split takes."""

    split: str
    section: str  # "train", "valid" or "test": the part of config.data that names the source
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

    def read(self, reader: Reader, rules: Cleaner, *, drop: bool = True) -> Iterator[tuple[Any, Any]]:
        """Yields each example of the split, cleaned and as it was read; with `drop` the rules may leave some out."""
        with named_errors(self.label):
            if self.side != "all" and self.data.holdout == "tail":
                # A first pass counts the characters, with its own copy of the rules, which remember the texts.
                characters = sum(map(len, self._kept(reader, copy.deepcopy(rules))))
                boundary = int((1 - self.data.holdout_fraction) * characters)
                yield from ((text, text) for text in _cut_tail(self._kept(reader, rules), boundary, self.side))
                return
            for raw in reader.iterate():
                example = rules.clean(raw)
                key = example if isinstance(example, str) else example.key
                if self.subset.holds(key) and (not drop or rules.keeps(example)):
                    yield example, raw

    def _kept(self, reader: Reader, rules: Cleaner) -> Iterator[str]:
        """Yields the documents of the subset, on both sides of the holdout."""
        return (text for text in map(rules.clean, reader.iterate()) if self.subset.holds(text) and rules.keeps(text))

    def identity(self) -> Any:
        """Returns the JSON values that decide which examples of the source belong to the split."""
        side = self.side if self.side == "all" else [self.side, self.data.holdout, self.data.holdout_fraction]
        is_whole = exact(self.config.part[0]) == 0 and exact(self.config.part[1]) == 1 and self.data.folds == 1
        return side if is_whole else [side, self.spelled_subset]

    @property
    def spelled_subset(self) -> str:
        """The subset as text. It is part of the fingerprints of run directories, so its form stays as it is."""
        bounds = self.config.part if self.side == "all" else (self.subset.low, self.subset.high)
        return f"{[str(each) for each in bounds]} {self.data.fold} {self.data.folds}"


def split_sources(data: DataConfig, split: str) -> list[SplitSource]:
    """Returns the data sources of "train", "valid" or "test", in the order of their names.

    `valid` is held out from train if it names no source. Training sources with weight 0 are left out.
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
    """Returns the message for a split without any example; `what` names the examples, such as "documents"."""
    if split == "test" and not data.test:
        return "config.data.test: names no source, so there is no test split; add one, or use --split=valid."
    sources = split_sources(data, split)
    named = ", ".join(f"{each.name} ({each.config.path or each.config.kind})" for each in sources)
    if split == "valid" and not data.valid:
        return (
            f"config.data.holdout_fraction: with holdout={data.holdout!r} and {data.holdout_fraction} no {what} of "
            f"{named} are held out for validation; there are too few (a text file is one document unless `document` "
            "says otherwise). Raise it, use holdout='tail' for plain text, or name validation sources."
        )
    return (
        f"config.data.{split}: no {what} of {named or 'any source'} are left for {split}; check `part`, data.fold, "
        "data.holdout_fraction, data.cleaning and data.pairs."
    )


@contextlib.contextmanager
def named_errors(label: str) -> Iterator[None]:
    """Puts the name of the data source before the messages of UserErrors that do not begin with a setting."""
    try:
        yield
    except UserError as error:
        if str(error).startswith("config."):
            raise
        raise UserError(f"{label}: {error}") from error


def _cut_tail(texts: Iterator[str], boundary: int, side: str) -> Iterator[str]:
    """Yields the text before character `boundary` (train) or from it on (valid); a document across it is cut in two."""
    end = 0
    for text in texts:
        begin, end = end, end + len(text)
        cut = min(max(boundary - begin, 0), len(text))
        if kept := text[cut:] if side == "valid" else text[:cut]:
            yield kept
