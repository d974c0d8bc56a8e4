"""From a config to token stores: the tokenizers, the held-out part, and checks with numbers in them.

Training documents are those of `data.train`, less the held-out part if `data.valid` names no sources.
Tokenizers are trained on training documents alone, once for a run directory. With objective.name=seq2seq
documents are pairs, a store has two sides, and each side may have a tokenizer of its own. Of tasks with labels
a store holds the examples. A run that begins with another's parameters takes over its tokenizers.
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
from typing import Any, Generic, TypeVar

from lm.config import LABELLED, PAIRED, Config
from lm.data.reading.pairs import Pair
from lm.data.storing import label_store
from lm.data.storing.label_store import LabelledStore
from lm.data.storing.pair_store import PairStore
from lm.data.storing.parts import SIDES, PairPart, parts_of
from lm.data.storing.token_store import TokenStore
from lm.data.tokenizing import tokenizers
from lm.data.tokenizing.tokenizers import Tokenizer
from lm.errors import UserError

ORDER = 1  # raise it when the same stores would give other batches
S = TypeVar("S", TokenStore, PairStore, LabelledStore)
Store = TokenStore | PairStore | LabelledStore


@dataclass(frozen=True)
class Prepared(Generic[S]):
    """Everything about the data that training and evaluation need."""

    config: Config  # with model.vocab_size and the labels resolved
    tokenizer: Tokenizer
    source_tokenizer: Tokenizer  # that of the sources of pairs; `tokenizer` unless data.separate_vocabularies
    stores: dict[str, dict[str, S]]  # split ("train", "valid") -> source name -> store, of the kind of the objective
    fingerprint: dict[str, str]  # what decides the batches, by name; a run may go on only with the same


def _no_barrier(name: str) -> None:
    """For one process."""


def prepare(
    config: Config, workdir: Path, *, is_first: bool = True, barrier: Callable[[str], None] = _no_barrier
) -> Prepared:
    """Trains or loads the tokenizers, builds or opens the stores of train and valid, checks their sizes.

    With several processes one has `is_first` and does the work; the others wait in `barrier`, then find
    the result in the (shared) run directory and cache; where the cache is not shared they build their
    own stores. Raises UserError for anything wrong with the data or the settings about it.
    """
    if is_first:
        _train_tokenizers(config, Path(workdir))
    barrier("tokenizer")
    tokenizer, source_tokenizer = load_tokenizers(config, workdir)
    config = resolve_vocab_size(config, tokenizer, source_tokenizer)
    if is_first:
        config, stores = _open_all(config, tokenizer, source_tokenizer)
    barrier("stores")
    if not is_first:
        config, stores = _open_all(config, tokenizer, source_tokenizer)
    _check_train(config, stores["train"])
    fingerprint = _fingerprint(config, tokenizer, source_tokenizer, stores)
    return Prepared(config, tokenizer, source_tokenizer, stores, fingerprint)


def load_tokenizers(config: Config, workdir: Path | str) -> tuple[Tokenizer, Tokenizer]:
    """(that of the targets, or of all text; that of the sources) of a run. Raises UserError if one is missing."""
    tokenizer = tokenizers.load_tokenizer(Path(workdir) / "tokenizer")
    if not config.data.separate_vocabularies:
        return tokenizer, tokenizer
    return tokenizer, tokenizers.load_tokenizer(Path(workdir) / "tokenizer_source")


def prepare_split(
    config: Config,
    tokenizer: Tokenizer,
    split: str,
    *,
    source_tokenizer: Tokenizer | None = None,
    is_first: bool = True,
    barrier: Callable[[str], None] = _no_barrier,
) -> dict[str, Any]:
    """Stores of one split ("train", "valid" or "test") by source name, none of them empty.

    They are TokenStores, or PairStores, whose sources are tokenised by `source_tokenizer` if it is given, or
    LabelledStores. `valid` is the held-out part of train where no validation source is
    named. Raises UserError if the split names no source or has no text.
    """
    if config.objective.name in LABELLED:
        return dict(label_store.build(config, split, tokenizer))  # in memory: nothing is shared
    if not is_first:
        barrier(f"stores of {split}")
    stores = {}
    for part in parts_of(config, split):
        store = part.store(cache_directory(config), tokenizer, source_tokenizer or tokenizer)
        if _size(store):
            stores[part.name] = store
        else:
            print(f"{part.label}: {split} gets none of its documents", file=sys.stderr)
    if is_first:
        barrier(f"stores of {split}")
    if not stores:
        raise UserError(_nothing_in(config, split))
    return stores


def references(config: Config, split: str) -> dict[str, list[Pair]]:
    """The pairs of a split by source name: what `prepare_split` gives PairStores of, in the same order.

    Sources are clean and have their prefix, as in training; references are as they were read, for
    metrics that are defined on raw text. Raises UserError as `prepare_split` does.
    """
    assert config.objective.name in PAIRED, config.objective.name
    found = {}
    for part in parts_of(config, split):
        assert isinstance(part, PairPart)
        if pairs := [Pair(pair.source, raw.references) for pair, raw in part.read()]:
            found[part.name] = pairs
    if not found:
        raise UserError(_nothing_in(config, split))
    return found


def resolve_vocab_size(config: Config, tokenizer: Tokenizer, source_tokenizer: Tokenizer | None = None) -> Config:
    """Vocabulary sizes that are 0 become the tokenizer's, rounded up. Raises UserError if one is too small.

    model.source_vocab_size is that of `source_tokenizer` with data.separate_vocabularies, else it stays as it is.
    """
    wanted = {"vocab_size": tokenizer}
    if config.data.separate_vocabularies and source_tokenizer:
        wanted["source_vocab_size"] = source_tokenizer
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
    """`data.cache_dir`, or $LM_CACHE_DIR, or `lm` in the user's cache directory."""
    if chosen := config.data.cache_dir or os.environ.get("LM_CACHE_DIR"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lm"


def _size(store: TokenStore | PairStore) -> int:
    return store.num_pairs if isinstance(store, PairStore) else store.num_documents


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
    if config.objective.name in LABELLED:
        texts = label_store.training_texts(config) if tokenizers.needs_text(config.data.tokenizer) else iter(())
        return tokenizers.build_tokenizer(config.data.tokenizer, texts)
    parts = parts_of(config, "train") if tokenizers.needs_text(config.data.tokenizer) else []
    texts = (text for part in parts for text in part.texts(sides))
    try:
        return tokenizers.build_tokenizer(config.data.tokenizer, texts)
    except UserError as error:
        if not parts or str(error).startswith("config.data.train"):
            raise
        named = ", ".join(f"{part.label}: {config.data.train[part.name].path or 'embedded'}" for part in parts)
        only = f", the {sides[0]}s of it" if config.data.separate_vocabularies else ""
        raise UserError(f"{error} (The text is {named}{only}.)") from error


def _open_all(
    config: Config, tokenizer: Tokenizer, source_tokenizer: Tokenizer
) -> tuple[Config, dict[str, dict[str, Any]]]:
    """The stores of train and valid, and the config with the labels that are found in the first."""
    train = prepare_split(config, tokenizer, "train", source_tokenizer=source_tokenizer)
    if config.model.head == "classes" and config.objective.name != "regression":
        config = _resolve_labels(config, config.data.labels or label_store.labels_of(train))
    valid = prepare_split(config, tokenizer, "valid", source_tokenizer=source_tokenizer)
    return config, {"train": train, "valid": valid}


def _resolve_labels(config: Config, labels: tuple[str, ...]) -> Config:
    asked = config.model.num_classes
    if asked and asked != len(labels):
        raise UserError(f"config.model.num_classes: {asked} is not the number of labels, {len(labels)}; set 0.")
    data = dataclasses.replace(config.data, labels=labels)
    model = dataclasses.replace(config.model, num_classes=len(labels))
    return dataclasses.replace(config, data=data, model=model)


def _nothing_in(config: Config, split: str) -> str:
    data = config.data
    named = getattr(data, split)
    if split == "test" and not named:
        return "config.data.test: names no source, so there is no test split; add one, or take --split=valid."
    if named and (data.valid or split == "test"):
        return f"config.data.{split}: nothing is left of {', '.join(sorted(named))} after cleaning."
    counts = ", ".join(f"{name} ({source.path or source.kind})" for name, source in sorted(data.train.items()))
    if config.objective.name in PAIRED and split == "train":
        return (
            "config.data.train: data.cleaning, data.pairs and the part held out leave nothing to train on of "
            f"{counts}; loosen them."
        )
    if config.objective.name in PAIRED:
        return (
            f"config.data.holdout_fraction: with {data.holdout_fraction} nothing of {counts} goes to {split}; "
            "there are too few pairs. Raise it, or name validation sources."
        )
    return (
        f"config.data.holdout_fraction: with holdout={data.holdout!r} and {data.holdout_fraction} nothing of {counts} "
        f"goes to {split}; there are too few documents (one file is one document unless `document` says otherwise). "
        "Use holdout='tail', another fraction, or name validation sources."
    )


def _check_train(config: Config, stores: Mapping[str, Store]) -> None:
    """Each source has a row at least, or a document, where rows are not windows of the whole text."""
    windows = config.objective.name == "causal"
    needed = config.data.sequence_length + 1
    for name in sorted(config.data.train):
        source = config.data.train[name]
        if source.weight == 0:
            continue
        store = stores.get(name)
        where = f"config.data.train.{name}: {source.path or source.kind}"
        if store is None and not windows:
            raise UserError(f"{where} gives nothing for training: all of it was dropped or held out; change it.")
        found = store.num_tokens if isinstance(store, TokenStore) else 0
        if windows and found < needed:
            raise UserError(
                f"{where} gives {found} tokens for training and one "
                f"row takes {needed} (data.sequence_length + 1); add text or shorten the rows."
            )


def _fingerprint(
    config: Config,
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer,
    stores: Mapping[str, Mapping[str, Store]],
) -> dict[str, str]:
    weights = {name: source.weight for name, source in sorted(config.data.train.items()) if source.weight > 0}
    order: list[Any] = [ORDER, config.seed, config.data.sequence_length, config.train.batch_size, weights]
    if config.objective.name != "causal":
        objective = config.objective
        order += [
            config.data.source_length,
            config.data.pairs.overlong,
            objective.name,
            objective.noise_density,
            objective.mean_span_length,
            objective.permute_sentences,
        ]
        if objective.name == "masked":
            order += [objective.whole_words, objective.next_sentence]
        if objective.name in LABELLED:
            weights_of_labels = [objective.class_weights, objective.balance_classes]
            order += [config.data.labels, config.data.context_overlap, weights_of_labels, config.model.pooling]
    found = {
        "tokenizer": tokenizer.fingerprint,
        "order": hashlib.sha256(json.dumps(order).encode()).hexdigest(),
    }
    if config.data.separate_vocabularies:
        found["tokenizer_source"] = source_tokenizer.fingerprint
    for split, by_name in stores.items():
        found |= {f"{split}/{name}": store.fingerprint for name, store in by_name.items()}
    return found
