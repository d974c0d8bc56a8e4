"""Prepares the data of a run: builds its tokenizers and the stores of each split, and checks them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.config import Config, DataConfig
from lm.config.experiment import replace_settings
from lm.data.reading import FORMATS
from lm.data.storing import Store
from lm.data.storing.overlap import Hashes, files_read_differently
from lm.data.storing.splits import split_sources
from lm.data.tokenizing import build_tokenizer, load_tokenizer, needs_text
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError, named_errors
from lm.files import expanded, storing
from lm.parallel.distributed import barrier, is_first
from lm.tasks import task_of
from lm.tasks.task import Tokenizers

ORDER = 1  # increase this when a code change alters the batches built from the same stores
SIDES = ("source", "target")


@dataclass(frozen=True)
class Prepared:
    """The data of a run, ready for training and evaluation."""

    config: Config  # with model.vocab_size and data.labels resolved
    tokenizers: Tokenizers
    stores: dict[str, dict[str, Any]]  # split ("train", "valid") -> data source name -> Store
    fingerprint: dict[str, str]  # hashes of everything that determines the batches

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer for targets, or for all text if there is only one."""
        return self.tokenizers.target

    @functools.cached_property
    def trained(self) -> Hashes:
        """The hashes of the training examples, used to count the evaluation examples that duplicate them."""
        return Hashes.of(self.stores["train"])

    def overlap_lines(self) -> list[str]:
        """Returns lines that report which validation examples and files are also used for training, if any."""
        overlap, noun = self.trained.overlap(self.stores["valid"]), task_of(self.config).noun
        counted = [f"valid {noun} that are also used for training: {overlap}"] if overlap else []
        return counted + files_read_differently(self.config.data, "valid")


def prepare(config: Config, workdir: Path) -> Prepared:
    """Trains or loads the tokenizers, and builds or opens the stores of the training and validation splits.

    The first process does the work; the others wait, then read the results from the shared run directory and cache, or
    build their own stores if the cache is not shared. Raises UserError for invalid data or settings.
    """
    if not config.data.train:
        raise UserError(
            "config.data.train: no data source is given; add one, e.g. config.data.train.mine = source(path=...)."
        )
    if is_first():
        _train_tokenizers(config, workdir)
    barrier("tokenizer")
    found = load_tokenizers(config, workdir)
    config = resolve_vocab_size(config, found)
    train = prepare_split(config, found, "train")
    config = task_of(config).resolve_data(config, train)
    stores = {"train": train, "valid": prepare_split(config, found, "valid")}
    config = task_of(config).resolve_splits(config, stores)
    for name, source in sorted(config.data.train.items()):
        if source.weight > 0:
            where = f"config.data.train.{name}: {source.path or source.kind}"
            task_of(config).check_train(config, where, stores["train"].get(name))
    return Prepared(config, found, stores, _fingerprint(config, found, stores))


def check_moved(moved: Sequence[str], prepared: Prepared) -> None:
    """Raises UserError if `moved` lists data.tokenizer.path and the new file contains a different tokenizer."""
    setting, chosen = "data.tokenizer.path", prepared.config.data.tokenizer
    has_moved = chosen.path and any(line.startswith(f"{setting}:") for line in moved)
    if has_moved and not build_tokenizer(chosen, ()).has_file_of(prepared.tokenizer):
        raise UserError(f"config.{setting}: {chosen.path} is not the tokenizer of this run; restore the old value.")


def load_tokenizers(config: Config, workdir: Path | str) -> Tokenizers:
    """Returns the tokenizers of a run. Raises UserError if a tokenizer is missing."""
    target = load_tokenizer(Path(workdir) / "tokenizer")
    separate = config.data.separate_vocabularies
    return Tokenizers(target, load_tokenizer(Path(workdir) / "tokenizer_source") if separate else target.for_sources)


def prepare_split(config: Config, found: Tokenizers, split: str) -> dict[str, Any]:
    """Returns the non-empty stores of a split ("train", "valid" or "test"), keyed by data source.

    Raises UserError if there are none.
    """
    task, cache = task_of(config), cache_directory(config)
    if not is_first():
        barrier(f"stores of {split}")
    stores: dict[str, Store] = {}
    for source in split_sources(config.data, split):
        store = task.open_store(source, config, found, cache)
        if store is not None and store.counts["documents"]:
            stores[source.name] = store
        else:
            print(f"{source.label} provides no {task.noun} for {split}", file=sys.stderr)
    if is_first():
        barrier(f"stores of {split}")
    if not stores:
        raise UserError(_nothing_in(config.data, split, task.noun))
    return task.complete(config, split, stores)


def _nothing_in(data: DataConfig, split: str, what: str) -> str:
    """Returns the error message for a split without examples. `what` names the kind of example, e.g. "documents"."""
    if split == "test" and not data.test:
        return "config.data.test: no data source is given, so there is no test split; add one, or use --split=valid."
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


def check_only_reads(config: Config, split: str) -> None:
    """Raises UserError if reading a split would require preparing a data set in a directory named in the config."""
    for source in split_sources(config.data, split):
        with named_errors(source.label):
            FORMATS[source.config.kind].check_only_reads(source.config)


def resolve_vocab_size(config: Config, found: Tokenizers) -> Config:
    """Replaces vocabulary sizes of 0 with those that the tokenizers need. Raises UserError if a size is too small."""
    needs = {"vocab_size": found.target.vocab_size}
    if config.data.separate_vocabularies:
        needs["source_vocab_size"] = found.source.vocab_size
    multiple = config.model.vocab_multiple
    for name, need in needs.items():
        size = getattr(config.model, name) or -(-need // multiple) * multiple
        if size < need:
            problem = f"{size} is smaller than the tokenizer's vocabulary of {need}"
            raise UserError(f"config.model.{name}: {problem}; set it to 0.")
        config = replace_settings(config, {f"model.{name}": size})
    return config


def cache_directory(config: Config | None = None) -> Path:
    """Returns data.cache_dir if set, otherwise $LM_CACHE_DIR if set, otherwise `lm` in the user's cache directory.

    `config` must come from the user, not from a run directory, because compiled programs are loaded from the cache
    directory.
    """
    if chosen := (config and config.data.cache_dir) or os.environ.get("LM_CACHE_DIR"):
        return expanded(chosen)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lm"


def _train_tokenizers(config: Config, workdir: Path) -> None:
    """Copies missing tokenizers from config.init_from. If init_from is empty, trains them on training examples only."""
    wanted: dict[str, tuple[str, ...]] = {"tokenizer": SIDES}
    if config.data.separate_vocabularies:
        if not needs_text(config.data.tokenizer):
            problem = "the tokenizer of each side is trained on the text of that side, but"
            advice = f"kind={config.data.tokenizer.kind} needs no training; set separate_vocabularies to False."
            raise UserError(f"config.data.separate_vocabularies: {problem} {advice}")
        wanted = {"tokenizer": ("target",), "tokenizer_source": ("source",)}
    for folder, sides in wanted.items():
        if not (workdir / folder).exists():
            source = Path(config.init_from) / folder
            tokenizer = load_tokenizer(source) if config.init_from else _train_tokenizer(config, sides)
            with storing(workdir / folder):
                tokenizer.save(workdir / folder)


def _train_tokenizer(config: Config, sides: tuple[str, ...]) -> Tokenizer:
    task = task_of(config)
    sources = split_sources(config.data, "train") if needs_text(config.data.tokenizer) else []
    texts = (text for source in sources for text in task.texts(source, sides))
    try:
        return build_tokenizer(config.data.tokenizer, texts)
    except UserError as error:
        if not sources or str(error).startswith("config.data.train"):
            raise
        named = ", ".join(f"{each.label}: {each.config.path or 'embedded'}" for each in sources)
        only = f", of which only the {sides[0]}s are used" if config.data.separate_vocabularies else ""
        raise UserError(f"{error} (The training text is {named}{only}.)") from error


def _fingerprint(config: Config, tokenizers: Tokenizers, stores: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    weights = {name: source.weight for name, source in sorted(config.data.train.items()) if source.weight > 0}
    order = [ORDER, config.seed, config.data.sequence_length, config.train.batch_size, weights]
    order += task_of(config).batch_settings(config)
    digest = hashlib.sha256(json.dumps(order).encode()).hexdigest()
    found = {"tokenizer": tokenizers.target.fingerprint, "order": digest}
    if config.data.separate_vocabularies:
        found["tokenizer_source"] = tokenizers.source.fingerprint
    for split, by_name in stores.items():
        found |= {f"{split}/{name}": store.fingerprint for name, store in by_name.items()}
    return found
