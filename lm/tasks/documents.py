"""The base of tasks of plain text: documents, cleaned and tokenised once into a token store."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.config import Config
from lm.data.reading import open_reader
from lm.data.reading.cleaning import Cleaner
from lm.data.storing import token_store
from lm.data.storing.splits import SplitSource, named_errors
from lm.data.storing.token_store import TokenStore
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.tasks.task import Task


class DocumentTask(Task):
    """Learns from documents."""

    def texts(self, source: SplitSource, sides: Sequence[str]) -> Iterator[str]:
        with named_errors(source.label):
            reader = open_reader(source.config, self.reader)
        return (text for text, _ in source.read(reader, Cleaner(source.data.cleaning)))

    def open_store(self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Path) -> TokenStore:
        with named_errors(source.label):
            reader = open_reader(source.config, self.reader)
            identity = store_identity(source, reader.fingerprint(), tokenizers.target)
        if config.data.cleaning.unicode:
            identity["unicode"] = unicodedata.unidata_version
        rules = Cleaner(config.data.cleaning)
        texts = (text for text, _ in source.read(reader, rules))
        return token_store.open_or_build(cache, identity, source.label_of_side, tokenizers.target, texts, rules)


def store_identity(source: SplitSource, fingerprint: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns everything that decides the content of a token store."""
    return {
        "source": fingerprint,
        "described": source.config.kind,
        "cleaning": dataclasses.asdict(source.data.cleaning),
        "tokenizer": tokenizer.fingerprint,
        "side": source.identity(),
    }


def token_stores(stores: Mapping[str, Any]) -> dict[str, TokenStore]:
    return {name: store for name, store in stores.items() if isinstance(store, TokenStore)}
