"""From a config to tokenised data: the tokenizers, the stores of each split, and checks with numbers in them.

Tokenizers are trained on training examples alone, once for a run directory. A run that is initialised from another
run takes over its tokenizers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.config import Config
from lm.data.storing import Store
from lm.data.storing.splits import nothing_in, split_sources
from lm.data.tokenizing import tokenizers
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.tasks import task_of
from lm.tasks.task import Tokenizers

ORDER = 1  # raise it when the same stores would give other batches
SIDES = ("source", "target")


@dataclass(frozen=True)
class Prepared:
    """Everything about the data that training and evaluation need."""

    config: Config  # with model.vocab_size and data.labels resolved
    tokenizers: Tokenizers
    stores: dict[str, dict[str, Any]]  # split ("train", "valid") -> source name -> Store
    fingerprint: dict[str, str]  # what decides the batches, by name; a run continues only with the same values

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the targets, or of all text."""
        return self.tokenizers.target


def _no_barrier(name: str) -> None:
    """For a single process."""


def prepare(
    config: Config, workdir: Path, *, is_first: bool = True, barrier: Callable[[str], None] = _no_barrier
) -> Prepared:
    """Trains or loads the tokenizers, builds or opens the stores of train and valid, and checks their sizes.

    Of several processes one has `is_first` and does the work; the others wait in `barrier`, then find the result in
    the (shared) run directory and cache. If the cache is not shared they build stores of their own. Raises UserError
    for anything wrong with the data or the settings about it.
    """
    if is_first:
        _train_tokenizers(config, Path(workdir))
    barrier("tokenizer")
    found = load_tokenizers(config, workdir)
    config = resolve_vocab_size(config, found)
    if is_first:
        config, stores = _open_all(config, found)
    barrier("stores")
    if not is_first:
        config, stores = _open_all(config, found)
    _check_train(config, stores["train"])
    return Prepared(config, found, stores, _fingerprint(config, found, stores))


def load_tokenizers(config: Config, workdir: Path | str) -> Tokenizers:
    """Returns the tokenizers of a run. Raises UserError if one is missing."""
    target = tokenizers.load_tokenizer(Path(workdir) / "tokenizer")
    if not config.data.separate_vocabularies:
        return Tokenizers(target, target)
    return Tokenizers(target, tokenizers.load_tokenizer(Path(workdir) / "tokenizer_source"))


def prepare_split(
    config: Config,
    found: Tokenizers,
    split: str,
    *,
    is_first: bool = True,
    barrier: Callable[[str], None] = _no_barrier,
) -> dict[str, Any]:
    """Returns the stores of one split ("train", "valid" or "test") by source name, none of them empty.

    `valid` is held out from train if no validation source is named. Raises UserError if the split names no source or
    has no example.
    """
    task, cache = task_of(config), cache_directory(config)
    if not is_first:
        barrier(f"stores of {split}")
    stores: dict[str, Store] = {}
    for source in split_sources(config.data, split):
        store = task.open_store(source, config, found, cache)
        if store is not None and store.counts["documents"]:
            stores[source.name] = store
        else:
            print(f"{source.label}: {split} gets none of its {task.noun}", file=sys.stderr)
    if is_first:
        barrier(f"stores of {split}")
    if not stores:
        raise UserError(nothing_in(config.data, split, task.noun))
    return task.complete(config, split, stores)


def resolve_vocab_size(config: Config, found: Tokenizers) -> Config:
    """Sets vocabulary sizes that are 0 to the tokenizer's, rounded up. Raises UserError if one is too small.

    model.source_vocab_size is set only with data.separate_vocabularies.
    """
    wanted = {"vocab_size": found.target}
    if config.data.separate_vocabularies:
        wanted["source_vocab_size"] = found.source
    multiple = config.model.vocab_multiple
    sizes: dict[str, Any] = {}
    for name, each in wanted.items():
        asked, needed = getattr(config.model, name), each.vocab_size
        if asked and asked < needed:
            raise UserError(
                f"config.model.{name}: {asked} is smaller than the tokenizer's vocabulary of {needed}; set 0."
            )
        sizes[name] = asked or -(-needed // multiple) * multiple
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))


def cache_directory(config: Config) -> Path:
    """Returns `data.cache_dir`, or $LM_CACHE_DIR, or `lm` in the user's cache directory."""
    if chosen := config.data.cache_dir or os.environ.get("LM_CACHE_DIR"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lm"


def _train_tokenizers(config: Config, workdir: Path) -> None:
    """Makes those that the run directory does not have yet."""
    wanted: dict[str, tuple[str, ...]] = {"tokenizer": SIDES}
    if config.data.separate_vocabularies:
        if not tokenizers.needs_text(config.data.tokenizer):
            raise UserError(
                "config.data.separate_vocabularies: each side's tokenizer is trained on its text, and this one is not "
                f"trained at all (kind={config.data.tokenizer.kind}); set it to False."
            )
        wanted = {"tokenizer": ("target",), "tokenizer_source": ("source",)}
    for folder, sides in wanted.items():
        if not (workdir / folder).exists():
            source = Path(config.init_from) / folder
            tokenizer = tokenizers.load_tokenizer(source) if config.init_from else _train_tokenizer(config, sides)
            tokenizer.save(workdir / folder)


def _train_tokenizer(config: Config, sides: tuple[str, ...]) -> Tokenizer:
    task = task_of(config)
    sources = split_sources(config.data, "train") if tokenizers.needs_text(config.data.tokenizer) else []
    texts = (text for source in sources for text in task.texts(source, sides))
    try:
        return tokenizers.build_tokenizer(config.data.tokenizer, texts)
    except UserError as error:
        if not sources or str(error).startswith("config.data.train"):
            raise
        named = ", ".join(f"{each.label}: {each.config.path or 'embedded'}" for each in sources)
        only = f", its {sides[0]}s only" if config.data.separate_vocabularies else ""
        raise UserError(f"{error} (The text is {named}{only}.)") from error


def _open_all(config: Config, found: Tokenizers) -> tuple[Config, dict[str, dict[str, Any]]]:
    """The stores of train and valid, and the config with what follows from the training data."""
    train = prepare_split(config, found, "train")
    config = task_of(config).resolve_data(config, train)
    return config, {"train": train, "valid": prepare_split(config, found, "valid")}


def _check_train(config: Config, stores: Mapping[str, Any]) -> None:
    """Each source must give a row at least."""
    for name, source in sorted(config.data.train.items()):
        if source.weight > 0:
            where = f"config.data.train.{name}: {source.path or source.kind}"
            task_of(config).check_train(config, where, stores.get(name))


def _fingerprint(config: Config, tokenizers: Tokenizers, stores: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    weights = {name: source.weight for name, source in sorted(config.data.train.items()) if source.weight > 0}
    order = [ORDER, config.seed, config.data.sequence_length, config.train.batch_size, weights]
    order += task_of(config).batch_settings(config)
    found = {
        "tokenizer": tokenizers.target.fingerprint,
        "order": hashlib.sha256(json.dumps(order).encode()).hexdigest(),
    }
    if config.data.separate_vocabularies:
        found["tokenizer_source"] = tokenizers.source.fingerprint
    for split, by_name in stores.items():
        found |= {f"{split}/{name}": store.fingerprint for name, store in by_name.items()}
    return found
