"""What a split takes from each of its sources: all of it, or its side of a holdout; as texts and as a store."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from lm.config import PAIRED, Config, SourceConfig
from lm.data.reading import documents as sources
from lm.data.reading import pairs
from lm.data.reading.cleaning import Cleaner
from lm.data.reading.pairs import Pair, PairFilter
from lm.data.storing import token_store
from lm.data.storing.pair_store import PairStore
from lm.data.storing.token_store import TokenStore
from lm.data.tokenizing.tokenizers import Tokenizer
from lm.errors import UserError

SIDES = ("source", "target")


class Part(abc.ABC):
    """All of a source, or what lies on its side of the holdout. Errors name it."""

    def __init__(self, config: Config, section: str, name: str, side: str):
        self.name = name
        self.side = side  # "all", "train" or "valid"
        self.label = f"config.data.{section}.{name}"
        self._section = section
        self._data = config.data
        self._config: SourceConfig = getattr(config.data, section)[name]

    @abc.abstractmethod
    def texts(self, of: tuple[str, ...] = SIDES) -> Iterator[str]:
        """The text as it is tokenised; `of` names the sides of pairs."""

    @abc.abstractmethod
    def store(self, cache: Path, tokenizer: Tokenizer, source_tokenizer: Tokenizer) -> TokenStore | PairStore:
        """The tokens, from the cache or made now."""

    @property
    def _label_of_side(self) -> str:
        return self.label if self.side == "all" else f"{self.label} ({self.side} side)"

    @property
    def _held_out(self) -> bool:
        return self.side == "valid"

    def _identity(self, fingerprint: str, tokenizer: Tokenizer) -> dict[str, Any]:
        data = self._data
        return {
            "source": fingerprint,
            "described": self._config.kind,
            "cleaning": dataclasses.asdict(data.cleaning),
            "tokenizer": tokenizer.fingerprint,
            "side": self.side if self.side == "all" else [self.side, data.holdout, data.holdout_fraction],
        }


class TextPart(Part):
    """Single documents."""

    @cached_property
    def _source(self) -> sources.Source:
        return sources.open_source(self._config)

    def texts(self, of: tuple[str, ...] = SIDES) -> Iterator[str]:
        return self._read(Cleaner(self._data.cleaning))

    def _read(self, cleaner: Cleaner) -> Iterator[str]:
        """The documents, cleaned. `cleaner` counts those dropped from the whole source, both sides of it."""
        with named_errors(self.label):
            texts = cleaner.clean(self._source.iterate())
            if self.side == "all":
                yield from texts
            elif self._data.holdout == "hash":
                yield from (text for text in texts if is_held_out(text, self._data.holdout_fraction) == self._held_out)
            else:
                yield from _cut_tail(texts, self._boundary(), self._held_out)

    def _boundary(self) -> int:
        total = sum(len(text) for text in Cleaner(self._data.cleaning).clean(self._source.iterate()))
        return int((1 - self._data.holdout_fraction) * total)

    def store(self, cache: Path, tokenizer: Tokenizer, source_tokenizer: Tokenizer) -> TokenStore:
        with named_errors(self.label):
            identity = self._identity(self._source.fingerprint(), tokenizer)
        if self._data.cleaning.unicode:
            identity["unicode"] = unicodedata.unidata_version
        cleaner = Cleaner(self._data.cleaning)
        return token_store.open_or_build(cache, identity, self._label_of_side, tokenizer, self._read, cleaner)


class PairPart(Part):
    """Pairs. Those of training are filtered; those of evaluation, held out or named, are all there."""

    @cached_property
    def _source(self) -> pairs.PairSource:
        return pairs.open_pairs(self._config)

    @property
    def _filtered(self) -> bool:
        return self._section == "train" and not self._held_out

    def read(self, counting: PairFilter | None = None) -> Iterator[tuple[Pair, Pair]]:
        """Each pair of this part as the model sees it (clean, with the prefix) and as it was read."""
        data = self._data
        with named_errors(self.label):
            chosen = counting or PairFilter(data.cleaning, data.pairs)
            for raw in self._source.iterate():
                pair = pairs.clean_pair(data.cleaning, raw)
                if self.side != "all" and is_held_out(pair.source, data.holdout_fraction) != self._held_out:
                    continue
                if not self._filtered or chosen.keeps(pair):
                    yield pairs.with_prefix(self._config, pair), raw

    def texts(self, of: tuple[str, ...] = SIDES) -> Iterator[str]:
        return (getattr(pair, side) for pair, _ in self.read() for side in of)

    def store(self, cache: Path, tokenizer: Tokenizer, source_tokenizer: Tokenizer) -> PairStore:
        with named_errors(self.label):
            fingerprint = self._source.fingerprint()
        source, target = (
            self._store_side(cache, fingerprint, side, each)
            for side, each in zip(SIDES, (source_tokenizer, tokenizer), strict=True)
        )
        if source.num_documents != target.num_documents:
            raise UserError(
                f"{self.label}: {source.num_documents:,} sources and {target.num_documents:,} targets were read; "
                "the files were changed meanwhile. Start again."
            )
        return PairStore(source, target)

    def _store_side(self, cache: Path, fingerprint: str, side: str, tokenizer: Tokenizer) -> TokenStore:
        data = self._data
        identity = self._identity(fingerprint, tokenizer) | {"of": side}
        if self._filtered:
            identity["pairs"] = {
                key: value for key, value in dataclasses.asdict(data.pairs).items() if key != "overlong"
            }
        if data.cleaning.unicode or data.pairs.source_script or data.pairs.target_script:
            identity["unicode"] = unicodedata.unidata_version

        def read(counting: PairFilter) -> Iterator[str]:
            return (getattr(pair, side) for pair, _ in self.read(counting))

        with named_errors(self.label):
            counting = PairFilter(data.cleaning, data.pairs)
        label = f"{self._label_of_side}, {side}s"
        return token_store.open_or_build(cache, identity, label, tokenizer, read, counting)


def parts_of(config: Config, split: str) -> list[Part]:
    """In the order of the names. A training source of weight 0 is switched off."""
    data = config.data
    kind: type[Part] = PairPart if config.objective.name in PAIRED else TextPart
    if split == "test" or (split == "valid" and data.valid):
        return [kind(config, split, name, "all") for name in sorted(getattr(data, split))]
    side = "all" if data.valid else split
    return [kind(config, "train", name, side) for name in sorted(data.train) if data.train[name].weight > 0]


@contextlib.contextmanager
def named_errors(label: str) -> Iterator[None]:
    """Puts the name of the source before errors that do not begin with a setting."""
    try:
        yield
    except UserError as error:
        if str(error).startswith("config."):
            raise
        raise UserError(f"{label}: {error}") from error


def is_held_out(text: str, fraction: float) -> bool:
    """By the text alone, so that equal documents are on the same side and new ones move none."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") < fraction * 2.0**64


def _cut_tail(texts: Iterator[str], boundary: int, held_out: bool) -> Iterator[str]:
    """The characters before `boundary`, or from it on; the document that holds it is cut in two."""
    end = 0
    for text in texts:
        begin, end = end, end + len(text)
        cut = min(max(boundary - begin, 0), len(text))
        if part := text[cut:] if held_out else text[:cut]:
            yield part
