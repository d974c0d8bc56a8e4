"""Base classes for tasks on documents or pairs of texts, which are tokenised once and kept in token stores."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lm.config import Config, DataConfig
from lm.data.reading.readers import PairReader
from lm.data.storing import token_store
from lm.data.storing.building import Engine
from lm.data.storing.documents import Documents
from lm.data.storing.splits import PairCleaner, SplitSource, cleaning_values
from lm.data.storing.token_store import PairStore, TokenStore
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.errors import UserError, named_errors
from lm.tasks.task import PackedTask, Task

STORING = frozenset({"data.store_workers", "data.beam"})  # the settings of tasks that use token stores
PAIR_FILTERS = "max_ratio", "drop_identical", "source_script", "target_script"  # the names of settings in data.pairs


class DocumentTask(Task):
    """Base class for tasks that learn from documents."""

    settings = STORING

    def open_store(self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Path) -> TokenStore:
        (store,) = open_stores(self, source, {"": tokenizers.target}, cache)
        return store


class PairTask(PackedTask):
    """Base class for tasks that learn from pairs of texts. Training pairs are filtered; evaluations use all pairs."""

    settings = STORING | {f"data.pairs.{name}" for name in PAIR_FILTERS}
    noun = "pairs"
    reader = PairReader
    plain_text_refusal = "needs pairs of texts; specify them in data.test of a config"

    def cleaner(self, data: DataConfig) -> PairCleaner:
        return PairCleaner(data.cleaning, data.pairs)

    def texts(self, source: SplitSource, sides: Sequence[str]) -> Iterator[str]:
        return source.texts(*self.open(source), *sides)

    def open_store(self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Path) -> PairStore:
        sides = {"source": tokenizers.source, "target": tokenizers.target}
        one, other = open_stores(self, source, sides, cache)
        if one.num_documents != other.num_documents:
            raise UserError(
                f"{source.label}: {one.num_documents:,} sources but {other.num_documents:,} targets were read, so the "
                "files must have changed while they were being read. Start again."
            )
        return PairStore(one, other)


def open_stores(task: Task, source: SplitSource, sides: Mapping[str, Tokenizer], cache: Path) -> Iterator[TokenStore]:
    """Opens or builds one store per side of a data source, each with its own tokenizer.

    A document has only one side, which is named "".
    """
    reader, _ = task.open(source)
    with named_errors(source.label):
        fingerprint = reader.fingerprint()
    cleaning, pairs = source.data.cleaning, source.data.pairs
    for side, tokenizer in sides.items():
        # Everything that determines the content of the store, as JSON values.
        identity = {
            "source": fingerprint,
            "described": source.config.kind,
            "cleaning": cleaning_values(cleaning),
            "tokenizer": tokenizer.fingerprint,
            "side": source.identity(),
        }
        if side:
            identity["of"] = side
        if side and source.split == "train":
            identity["pairs"] = {name: each for name, each in vars(pairs).items() if name != "overlong"}
        if cleaning.unicode or pairs.source_script or pairs.target_script:
            identity["unicode"] = unicodedata.unidata_version
        rules = task.cleaner(source.data)  # also counts the dropped texts, separately for each side
        label = source.label_of_side + (f", {side}s" if side else "")
        documents = Documents(source, reader, rules, tokenizer, side)
        engine = Engine(source.data.store_workers, source.data.beam)
        yield token_store.open_or_build(cache, identity, label, documents, engine)
