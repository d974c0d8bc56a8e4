"""Base classes of tasks on documents or pairs of texts, which are tokenised once and kept in token stores."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm.config import Config
from lm.data.reading import open_reader
from lm.data.reading.format import Reader
from lm.data.reading.readers import Pair, PairReader
from lm.data.storing import token_store
from lm.data.storing.splits import (
    Cleaner,
    PairCleaner,
    SplitSource,
    cleaning_values,
    named_errors,
    split_sources,
)
from lm.data.storing.token_store import PairStore, TokenStore
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.errors import UserError
from lm.tasks.task import PackedTask, Refuse, Task

PAIR_FILTERS = "max_ratio", "drop_identical", "source_script", "target_script"  # the names of settings in data.pairs


class DocumentTask(Task):
    """Base class for tasks that learn from documents."""

    def texts(self, source: SplitSource, sides: Sequence[str]) -> Iterator[str]:
        with named_errors(source.label):
            reader = open_reader(source.config, self.reader)
        return source.texts(reader, Cleaner(source.data.cleaning))

    def open_store(self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Path) -> TokenStore:
        with named_errors(source.label):
            reader = open_reader(source.config, self.reader)
            identity = store_identity(source, reader.fingerprint(), tokenizers.target)
        if config.data.cleaning.unicode:
            identity["unicode"] = unicodedata.unidata_version
        rules = Cleaner(config.data.cleaning)
        texts = source.texts(reader, rules)
        return token_store.open_or_build(cache, identity, source.label_of_side, tokenizers.target, texts, rules)


def store_identity(source: SplitSource, fingerprint: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the JSON values that together determine the content of a token store."""
    return {
        "source": fingerprint,
        "described": source.config.kind,
        "cleaning": cleaning_values(source.data.cleaning),
        "tokenizer": tokenizer.fingerprint,
        "side": source.identity(),
    }


class PairTask(PackedTask):
    """Base class for tasks that learn from pairs of texts. Training pairs are filtered; evaluations use all pairs."""

    settings = frozenset(f"data.pairs.{name}" for name in PAIR_FILTERS)
    noun = "pairs"
    reader = PairReader
    plain_text_refusal = "needs pairs of texts; specify them in data.test of a config"

    def check(self, config: Config, refuse: Refuse) -> None:
        if config.data.holdout != "hash" and not config.data.valid:
            refuse("data.holdout", "pairs of texts can only be held out by hash; use 'hash', or specify data.valid.")

    def _rules(self, source: SplitSource) -> PairCleaner:
        with named_errors(source.label):
            return PairCleaner(source.data.cleaning, source.data.pairs)

    def _open(self, source: SplitSource) -> tuple[Reader, PairCleaner]:
        with named_errors(source.label):
            return open_reader(source.config, self.reader), self._rules(source)

    def texts(self, source: SplitSource, sides: Sequence[str]) -> Iterator[str]:
        return source.texts(*self._open(source), *sides)

    def open_store(self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Path) -> PairStore:
        with named_errors(source.label):
            reader = open_reader(source.config, self.reader)
            fingerprint = reader.fingerprint()
        one, other = (
            self._open_side(source, reader, fingerprint, side, tokenizer, cache)
            for side, tokenizer in (("source", tokenizers.source), ("target", tokenizers.target))
        )
        if one.num_documents != other.num_documents:
            raise UserError(
                f"{source.label}: {one.num_documents:,} sources but {other.num_documents:,} targets were read, so the "
                "files changed while they were read. Start again."
            )
        return PairStore(one, other)

    def _open_side(
        self, source: SplitSource, reader: Reader, fingerprint: str, side: str, tokenizer: Tokenizer, cache: Path
    ) -> TokenStore:
        data, rules = source.data, self._rules(source)
        identity = store_identity(source, fingerprint, tokenizer) | {"of": side}
        if source.split == "train":
            identity["pairs"] = {name: each for name, each in vars(data.pairs).items() if name != "overlong"}
        if data.cleaning.unicode or data.pairs.source_script or data.pairs.target_script:
            identity["unicode"] = unicodedata.unidata_version
        label, texts = f"{source.label_of_side}, {side}s", source.texts(reader, rules, side)
        return token_store.open_or_build(cache, identity, label, tokenizer, texts, rules)

    def raw_references(self, config: Config, split: str) -> dict[str, list[Any]]:
        """Maps each data source of a split to its pairs, in the order in which the stores hold them.

        Sources are cleaned and prefixed as in training. References are unchanged, because metrics need the raw text.
        """
        found: dict[str, list[Any]] = {}
        for source in split_sources(config.data, split):
            pairs = [Pair(pair.source, raw.references) for pair, raw in source.read(*self._open(source))]
            if pairs:
                found[source.name] = pairs
        return found
