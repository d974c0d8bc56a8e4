"""The base of tasks of pairs: a source and a target text, each tokenised once into a token store."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm.config import Config
from lm.data.reading import open_reader
from lm.data.reading.cleaning import PairCleaner
from lm.data.reading.raw import Pair
from lm.data.reading.readers import PairReader
from lm.data.storing import token_store
from lm.data.storing.splits import SplitSource, named_errors, split_sources
from lm.data.storing.token_store import PairStore
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.errors import UserError
from lm.tasks.documents import store_identity
from lm.tasks.packed import PackedTask
from lm.tasks.task import Refuse

SIDES = ("source", "target")


class PairTask(PackedTask):
    """Learns from pairs. Training pairs are filtered; evaluation pairs, held out or named, are all used."""

    settings = frozenset(
        f"data.pairs.{name}" for name in ("max_ratio", "drop_identical", "source_script", "target_script")
    )
    noun = "pairs"
    reader = PairReader
    plain_text_refusal = "needs pairs; name them in data.test of a config"

    def check(self, config: Config, refuse: Refuse) -> None:
        if config.data.holdout != "hash" and not config.data.valid:
            refuse("data.holdout", "pairs are held out by hash; set it to 'hash' or name validation sources.")

    def _read(self, source: SplitSource, rules: PairCleaner) -> Iterator[tuple[Pair, Pair]]:
        """Yields each pair of a split as the model sees it (clean, with the prefix) and as it was read."""
        with named_errors(source.label):
            reader = open_reader(source.config, self.reader)
        for pair, raw in source.read(reader, rules, drop=source.split == "train"):
            yield pair.with_prefix(source.config.prefix), raw

    def _rules(self, source: SplitSource) -> PairCleaner:
        with named_errors(source.label):
            return PairCleaner(source.data.cleaning, source.data.pairs)

    def texts(self, source: SplitSource, sides: Sequence[str]) -> Iterator[str]:
        return (getattr(pair, side) for pair, _ in self._read(source, self._rules(source)) for side in sides)

    def open_store(self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Path) -> PairStore:
        with named_errors(source.label):
            fingerprint = open_reader(source.config, self.reader).fingerprint()
        one, other = (
            self._open_side(source, side, fingerprint, tokenizer, cache)
            for side, tokenizer in (("source", tokenizers.source), ("target", tokenizers.target))
        )
        if one.num_documents != other.num_documents:
            raise UserError(
                f"{source.label}: {one.num_documents:,} sources and {other.num_documents:,} targets were read, so the "
                "files were changed meanwhile. Start again."
            )
        return PairStore(one, other)

    def _open_side(
        self, source: SplitSource, side: str, fingerprint: str, tokenizer: Tokenizer, cache: Path
    ) -> token_store.TokenStore:
        data = source.data
        identity = store_identity(source, fingerprint, tokenizer) | {"of": side}
        if source.split == "train":
            identity["pairs"] = {
                key: value for key, value in dataclasses.asdict(data.pairs).items() if key != "overlong"
            }
        if data.cleaning.unicode or data.pairs.source_script or data.pairs.target_script:
            identity["unicode"] = unicodedata.unidata_version
        label, rules = f"{source.label_of_side}, {side}s", self._rules(source)
        texts = (getattr(pair, side) for pair, _ in self._read(source, rules))
        return token_store.open_or_build(cache, identity, label, tokenizer, texts, rules)

    def raw_references(self, config: Config, split: str) -> dict[str, list[Any]]:
        """Returns the pairs of a split by source name, in the order of its stores.

        Sources are clean and have their prefix, as in training; references are as they were read, for metrics that
        are defined on raw text.
        """
        found: dict[str, list[Any]] = {}
        for source in split_sources(config.data, split):
            pairs = [Pair(pair.source, raw.references) for pair, raw in self._read(source, self._rules(source))]
            if pairs:
                found[source.name] = pairs
        return found
