"""Pairs of a source and its target, as for translation: read from files or TFDS, cleaned, filtered.

Two text files whose lines belong together, one text file with a pattern that cuts its lines in two, or
two fields of records (`lm/data/reading/records.py`). A source's pairs come in a fixed order, and its fingerprint
says whether they are still the same, wherever the files are.
"""

from __future__ import annotations

import abc
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from lm.config import CleaningConfig, PairsConfig, SourceConfig
from lm.data.reading.cleaning import clean_text
from lm.data.reading.fields import Field
from lm.data.reading.files import Files, hash_of, read_lines
from lm.data.reading.records import open_records
from lm.errors import UserError

PAIR_REASONS = (
    "too_short",
    "too_long",
    "ratio",
    "identical",
    "source_script",
    "target_script",
    "duplicate",
)


@dataclass(frozen=True)
class Pair:
    """A source and what is to be made of it. Where there are several references the first one is learnt."""

    source: str
    references: tuple[str, ...]

    @property
    def target(self) -> str:
        return self.references[0]

    @property
    def key(self) -> str:
        """What decides the subset that a pair belongs to."""
        return self.source


class PairSource(abc.ABC):
    """Pairs in a fixed order, without the prefix."""

    def __init__(self, config: SourceConfig):
        self.config = config

    @abc.abstractmethod
    def iterate(self) -> Iterator[Pair]:
        """All pairs, in order. Raises UserError at the first one that cannot be read."""

    @abc.abstractmethod
    def identity(self) -> list[str]:
        """Everything that decides the pairs."""

    def fingerprint(self) -> str:
        """Hash of everything that decides the pairs, and of the prefix."""
        return hash_of("pairs", self.config.kind, self.config.prefix, *self.identity())


def open_pairs(config: SourceConfig) -> PairSource:
    """Raises UserError if there is nothing to read, or the settings cannot be understood."""
    if config.kind != "text":
        return RecordPairs(config)
    return PatternPairs(config) if config.pattern else AlignedPairs(config)


def read_pairs(config: SourceConfig) -> Iterator[Pair]:
    """All pairs of a source, raw, with the prefix before each source text. Raises UserError."""
    return (with_prefix(config, pair) for pair in open_pairs(config).iterate())


def with_prefix(config: SourceConfig, pair: Pair) -> Pair:
    """What the model reads begins with the prefix as it is written: it is neither cleaned nor measured."""
    return Pair(config.prefix + pair.source, pair.references)


class RecordPairs(PairSource):
    """Two fields of each record; a target that is a list of texts gives several references."""

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self._source = Field(config.field)
        self._target = Field(config.target_field, "target_field")
        self._records = open_records(config, [self._source, self._target])

    def iterate(self) -> Iterator[Pair]:
        for record, where in self._records.iterate():
            yield Pair(self._source.text(record, where), self._target.texts(record, where))

    def identity(self) -> list[str]:
        return [self.config.target_field, *self._records.identity()]


class AlignedPairs(PairSource):
    """Line i of a file of sources and line i of a file of targets; of two globs the sorted files, one by one."""

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self._sources, self._targets = Files(config.path), Files(config.target_path)
        counts = len(self._sources.found), len(self._targets.found)
        if counts[0] != counts[1]:
            raise UserError(
                f"{config.path} has {counts[0]} files and {config.target_path} {counts[1]}: "
                "they are aligned one by one, in the order of their names."
            )

    def iterate(self) -> Iterator[Pair]:
        for source, target in zip(self._sources.found, self._targets.found, strict=True):
            yield from self._read(source, target)

    def _read(self, source: Path, target: Path) -> Iterator[Pair]:
        lines = read_lines(source, self.config.encoding), read_lines(target, self.config.encoding)
        number = 0
        for number, (one, other) in enumerate(zip_longest(*lines), start=1):
            if one is None or other is None:
                shorter, longer = number - 1, number + sum(1 for side in lines for _ in side)
                counts = (shorter, longer) if one is None else (longer, shorter)
                raise UserError(
                    f"{source} has {counts[0]:,} lines and {target} {counts[1]:,}: line i of one belongs to line i of "
                    "the other, so one of them is not the right file, or not whole."
                )
            yield Pair(one, (other,))
        if number == 0:
            raise UserError(f"{source} and {target}: there is no line in them.")

    def identity(self) -> list[str]:
        return ["aligned", self.config.encoding, *self._sources.hashes(), *self._targets.hashes()]


class PatternPairs(PairSource):
    """Each line of a text file by groups of a regular expression, which has to match the whole of it."""

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        try:
            self._pattern = re.compile(config.pattern)
        except re.error as error:
            raise UserError(f"pattern {config.pattern!r}: not a regular expression ({error}).") from error
        if missing := {"source", "target"} - set(self._pattern.groupindex):
            raise UserError(
                f"pattern {config.pattern!r}: it has no group named {' and none named '.join(sorted(missing))}; "
                "write e.g. '(?P<source>.*) => (?P<target>.*)'."
            )
        self._files = Files(config.path)

    def iterate(self) -> Iterator[Pair]:
        yield from self._files.read_each(self._read)

    def _read(self, path: Path) -> Iterator[Pair]:
        for number, line in enumerate(read_lines(path, self.config.encoding), start=1):
            if not line.strip():
                continue
            match = self._pattern.fullmatch(line)
            if match is None or match["source"] is None or match["target"] is None:
                raise UserError(
                    f"{path}, line {number}: pattern {self._pattern.pattern!r} does not match {line!r:.60}."
                )
            yield Pair(match["source"], (match["target"],))

    def identity(self) -> list[str]:
        return ["pattern", self.config.pattern, self.config.encoding, *self._files.hashes()]


def clean_pair(config: CleaningConfig, pair: Pair) -> Pair:
    """Both sides cleaned, as documents are."""
    return Pair(clean_text(config, pair.source), tuple(clean_text(config, each) for each in pair.references))


class PairFilter:
    """Cleans pairs, and counts by reason those that it drops. Only the reference that is learnt is looked at.

    Duplicates are found by a 16-byte digest, which costs some 100 bytes of memory a pair. Raises UserError
    for a script that Unicode does not know.
    """

    def __init__(self, cleaning: CleaningConfig, pairs: PairsConfig):
        self.cleaning = cleaning
        self.pairs = pairs
        self.dropped = dict.fromkeys(PAIR_REASONS, 0)
        self._seen: set[bytes] = set()
        self._scripts = {
            "source_script": Script(pairs.source_script, "source_script") if pairs.source_script else None,
            "target_script": Script(pairs.target_script, "target_script") if pairs.target_script else None,
        }

    def clean(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """The pairs that are kept, cleaned, in their order."""
        return (pair for pair in (clean_pair(self.cleaning, raw) for raw in pairs) if self.keeps(pair))

    def keeps(self, pair: Pair) -> bool:
        """Whether a pair that is cleaned already is kept; if not, it is counted."""
        reason = self._reason_to_drop(pair)
        if reason:
            self.dropped[reason] += 1
        return not reason

    def _reason_to_drop(self, pair: Pair) -> str | None:
        sides = pair.source, pair.target
        shorter, longer = sorted(map(len, sides))
        if shorter < self.cleaning.min_chars:
            return "too_short"
        if self.cleaning.max_chars and longer > self.cleaning.max_chars:
            return "too_long"
        if self.pairs.max_ratio and longer > self.pairs.max_ratio * shorter:
            return "ratio"
        if self.pairs.drop_identical and pair.source == pair.target:
            return "identical"
        for (reason, script), text in zip(self._scripts.items(), sides, strict=True):
            if script and not script.has_most_of(text):
                return reason
        if self.cleaning.deduplicate:
            digest = hashlib.blake2b(repr(sides).encode("utf-8"), digest_size=16).digest()
            if digest in self._seen:
                return "duplicate"
            self._seen.add(digest)
        return None


class Script:
    """Letters whose Unicode name begins with this word: LATIN, CYRILLIC, CJK, ..."""

    def __init__(self, name: str, setting: str):
        self._prefix = name.strip().upper() + " "
        self._known: dict[str, bool] = {}  # by letter: looking up names is slow
        if not any(self._has(chr(code)) for code in range(0x110000) if chr(code).isalpha()):
            raise UserError(
                f"config.data.pairs.{setting}: {name!r} begins the name of no letter in Unicode; "
                "write e.g. LATIN, CYRILLIC, GREEK, ARABIC, DEVANAGARI, HIRAGANA, HANGUL or CJK."
            )
        self._known.clear()

    def _has(self, letter: str) -> bool:
        found = self._known.get(letter)
        if found is None:
            found = self._known[letter] = unicodedata.name(letter, "").startswith(self._prefix)
        return found

    def has_most_of(self, text: str) -> bool:
        """Whether more than half of the letters are of this script, or there is no letter."""
        letters = [character for character in text if character.isalpha()]
        return not letters or 2 * sum(map(self._has, letters)) > len(letters)
