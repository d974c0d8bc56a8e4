"""From a config to token stores: the tokenizer, the held-out part, and checks with numbers in them.

Training documents are those of `data.train`, less the held-out part if `data.valid` names no sources.
The tokenizer is trained on training documents alone, once for a run directory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lm.config import Config, SourceConfig
from lm.data import sources, token_store, tokenizers
from lm.data.cleaning import Cleaner
from lm.data.token_store import TokenStore
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError

ORDER = 1  # raise it when the same stores would give other batches


@dataclass(frozen=True)
class Prepared:
    """Everything about the data that training and evaluation need."""

    config: Config  # with model.vocab_size resolved
    tokenizer: Tokenizer
    stores: dict[str, dict[str, TokenStore]]  # split ("train", "valid") -> source name -> store
    fingerprint: dict[str, str]  # what decides the batches, by name; a run may go on only with the same


def _no_barrier(name: str) -> None:
    """For one process."""


def prepare(
    config: Config, workdir: Path, *, is_first: bool = True, barrier: Callable[[str], None] = _no_barrier
) -> Prepared:
    """Trains or loads the tokenizer, builds or opens the stores of train and valid, checks their sizes.

    With several processes one has `is_first` and does the work; the others wait in `barrier`, then find
    the result in the (shared) run directory and cache; where the cache is not shared they build their
    own stores. Raises UserError for anything wrong with the data or the settings about it.
    """
    directory = Path(workdir) / "tokenizer"
    if is_first and not directory.exists():
        _train_tokenizer(config).save(directory)
    barrier("tokenizer")
    tokenizer = tokenizers.load_tokenizer(directory)
    config = resolve_vocab_size(config, tokenizer)
    if is_first:
        stores = _open_all(config, tokenizer)
    barrier("stores")
    if not is_first:
        stores = _open_all(config, tokenizer)
    _check_train(config, stores["train"])
    return Prepared(config, tokenizer, stores, _fingerprint(config, tokenizer, stores))


def prepare_split(
    config: Config,
    tokenizer: Tokenizer,
    split: str,
    *,
    is_first: bool = True,
    barrier: Callable[[str], None] = _no_barrier,
) -> dict[str, TokenStore]:
    """Stores of one split ("train", "valid" or "test") by source name, none of them empty.

    `valid` is the held-out part of train where no validation source is named. Raises UserError if the
    split names no source or has no text.
    """
    if not is_first:
        barrier(f"stores of {split}")
    stores = {}
    for part in _parts(config, split):
        store = part.store(config, tokenizer)
        if store.num_documents:
            stores[part.name] = store
        else:
            print(f"{part.label}: {split} gets none of its documents", file=sys.stderr)
    if is_first:
        barrier(f"stores of {split}")
    if not stores:
        raise UserError(_nothing_in(config, split))
    return stores


def resolve_vocab_size(config: Config, tokenizer: Tokenizer) -> Config:
    """`model.vocab_size`, if it is 0, becomes the tokenizer's, rounded up. Raises UserError if it is too small."""
    asked, needed = config.model.vocab_size, tokenizer.vocab_size
    if asked and asked < needed:
        raise UserError(
            f"config.model.vocab_size: {asked} is smaller than the tokenizer's vocabulary of {needed}; set 0."
        )
    multiple = config.model.vocab_multiple
    size = asked or -(-needed // multiple) * multiple
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def cache_directory(config: Config) -> Path:
    """`data.cache_dir`, or $LM_CACHE_DIR, or `lm` in the user's cache directory."""
    if chosen := config.data.cache_dir or os.environ.get("LM_CACHE_DIR"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lm"


class _Part:
    """What one split takes from one source: all of it, or what lies on its side of the holdout."""

    def __init__(self, config: Config, section: str, name: str, side: str):
        self.name = name
        self.side = side  # "all", "train" or "valid"
        self.label = f"config.data.{section}.{name}"
        self._data = config.data
        self._config: SourceConfig = getattr(config.data, section)[name]

    @cached_property
    def _source(self) -> sources.Source:
        return sources.open_source(self._config)

    def texts(self, cleaner: Cleaner) -> Iterator[str]:
        """The documents, cleaned. `cleaner` counts those dropped from the whole source, both sides of it."""
        try:
            texts = cleaner.clean(self._source.iterate())
            if self.side == "all":
                yield from texts
            elif self._data.holdout == "hash":
                yield from (text for text in texts if _is_held_out(text, self._data.holdout_fraction) == self._held_out)
            else:
                yield from _cut_tail(texts, self._boundary(), self._held_out)
        except UserError as error:
            raise UserError(f"{self.label}: {error}") from error

    @property
    def _held_out(self) -> bool:
        return self.side == "valid"

    def _boundary(self) -> int:
        total = sum(len(text) for text in Cleaner(self._data.cleaning).clean(self._source.iterate()))
        return int((1 - self._data.holdout_fraction) * total)

    def store(self, config: Config, tokenizer: Tokenizer) -> TokenStore:
        try:
            identity = self._identity(tokenizer)
        except UserError as error:
            raise UserError(f"{self.label}: {error}") from error
        label = self.label if self.side == "all" else f"{self.label} ({self.side} side)"
        cleaner = Cleaner(config.data.cleaning)
        return token_store.open_or_build(cache_directory(config), identity, label, tokenizer, self.texts, cleaner)

    def _identity(self, tokenizer: Tokenizer) -> dict[str, Any]:
        data = self._data
        identity: dict[str, Any] = {
            "source": self._source.fingerprint(),
            "described": self._config.kind,
            "cleaning": dataclasses.asdict(data.cleaning),
            "tokenizer": tokenizer.fingerprint,
            "side": self.side if self.side == "all" else [self.side, data.holdout, data.holdout_fraction],
        }
        if data.cleaning.unicode:
            identity["unicode"] = unicodedata.unidata_version
        return identity


def _is_held_out(text: str, fraction: float) -> bool:
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


def _parts(config: Config, split: str) -> list[_Part]:
    """In the order of the names. A training source of weight 0 is switched off."""
    data = config.data
    if split == "test" or (split == "valid" and data.valid):
        return [_Part(config, split, name, "all") for name in sorted(getattr(data, split))]
    side = "all" if data.valid else split
    return [_Part(config, "train", name, side) for name in sorted(data.train) if data.train[name].weight > 0]


def _train_tokenizer(config: Config) -> Tokenizer:
    parts = _parts(config, "train") if tokenizers.needs_text(config.data.tokenizer) else []
    texts = (text for part in parts for text in part.texts(Cleaner(config.data.cleaning)))
    try:
        return tokenizers.build_tokenizer(config.data.tokenizer, texts)
    except UserError as error:
        if not parts or str(error).startswith("config.data.train"):
            raise
        named = ", ".join(f"{part.label}: {config.data.train[part.name].path or 'embedded'}" for part in parts)
        raise UserError(f"{error} (The text is {named}.)") from error


def _open_all(config: Config, tokenizer: Tokenizer) -> dict[str, dict[str, TokenStore]]:
    return {split: prepare_split(config, tokenizer, split) for split in ("train", "valid")}


def _nothing_in(config: Config, split: str) -> str:
    data = config.data
    named = getattr(data, split)
    if split == "test" and not named:
        return "config.data.test: names no source, so there is no test split; add one, or take --split=valid."
    if named and (data.valid or split == "test"):
        return f"config.data.{split}: nothing is left of {', '.join(sorted(named))} after cleaning."
    counts = ", ".join(f"{name} ({source.path or source.kind})" for name, source in sorted(data.train.items()))
    return (
        f"config.data.holdout_fraction: with holdout={data.holdout!r} and {data.holdout_fraction} nothing of {counts} "
        f"goes to {split}; there are too few documents (one file is one document unless `document` says otherwise). "
        "Use holdout='tail', another fraction, or name validation sources."
    )


def _check_train(config: Config, stores: dict[str, TokenStore]) -> None:
    needed = config.data.sequence_length + 1
    for name in sorted(config.data.train):
        source = config.data.train[name]
        if source.weight == 0:
            continue
        found = stores[name].num_tokens if name in stores else 0
        if found < needed:
            raise UserError(
                f"config.data.train.{name}: {source.path or source.kind} gives {found} tokens for training and one "
                f"row takes {needed} (data.sequence_length + 1); add text or shorten the rows."
            )


def _fingerprint(config: Config, tokenizer: Tokenizer, stores: dict[str, dict[str, TokenStore]]) -> dict[str, str]:
    weights = {name: source.weight for name, source in sorted(config.data.train.items()) if source.weight > 0}
    order = [ORDER, config.seed, config.data.sequence_length, config.train.batch_size, weights]
    found = {
        "tokenizer": tokenizer.fingerprint,
        "order": hashlib.sha256(json.dumps(order).encode()).hexdigest(),
    }
    for split, by_name in stores.items():
        found |= {f"{split}/{name}": store.fingerprint for name, store in by_name.items()}
    return found
