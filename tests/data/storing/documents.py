"""Documents of a few texts, and token stores of them, shared by several tests."""

import os
import signal
import sys
import time
from pathlib import Path

from lm.config import CleaningConfig, DataConfig, SourceConfig
from lm.data.storing import token_store
from lm.data.storing.building import Engine
from lm.data.storing.documents import Documents
from lm.data.storing.splits import Cleaner, SplitSource, Subset
from lm.errors import UserError


class Texts:
    """A reader of texts in memory. `reads` grows by one whenever they are read."""

    def __init__(self, texts, reads=None):
        self.texts, self.reads = texts, [] if reads is None else reads
        self.source = self

    def num_units(self):
        return 1

    def iterate(self):
        yield from self.texts

    def iterate_unit(self, unit):
        self.reads.append(1)
        return self.iterate()


def documents_of(texts, tokenizer, cleaning=None, reads=None):
    cleaning = cleaning or CleaningConfig()
    source = SplitSource("train", "train", "a", "all", SourceConfig(), DataConfig(cleaning=cleaning), Subset())
    return Documents(source, Texts(texts, reads), Cleaner(cleaning), tokenizer)


def build(cache, texts, tokenizer, identity="x", cleaning=None, reads=None, engine=None):
    documents = documents_of(texts, tokenizer, cleaning, reads)
    return token_store.open_or_build(Path(cache), {"of": identity}, "test store", documents, engine or Engine(1))


def squared(number):
    """Stands for the work of a worker process, which may fail in several ways."""
    if number == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if number == "imported":
        return sorted(sys.modules)
    if number == "slow":
        time.sleep(0.1)
        return number
    if number < 0:
        raise UserError(f"{number} is negative")
    return number**2
