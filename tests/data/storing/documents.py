"""Documents of a few texts, token stores of them, and the work of worker processes, shared by several tests."""

import errno
import os
import signal
import sys
import time
from pathlib import Path

from lm.config import CleaningConfig, DataConfig, SourceConfig
from lm.data.storing import building, encoding, joining, token_store
from lm.data.storing.building import Engine
from lm.data.storing.documents import Documents
from lm.data.storing.splits import Cleaner, SplitSource, Subset
from lm.data.tokenizing import pieces
from lm.errors import UserError

SENTENCES = ["one <b>two</b> three\n", "a\u2003b\xa0c d", "", "the   same", "é" * 40, "x " * 30]
TEXTS = [f"{SENTENCES[i % 6]}{'' if i % 6 == 3 else i // 6}" for i in range(120)]
TEXTS[50:50] = [" ".join(f"word{i}\nof a long text," for i in range(90)), "the   same " * 60, "the   same " * 60]
SMALL = (
    (encoding, "CHUNK_CHARACTERS", 100),
    (encoding, "PIECE", 300),
    (pieces, "PIECE", 300),
    (pieces, "SEARCHED", 200),
    (joining, "BATCH_DOCUMENTS", 7),
    (joining, "BATCH_CHARACTERS", 400),
    (building, "PATIENCE", 0.0),
)


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


def contents(store):
    """Returns the parts of the manifest that depend only on the data, and the content of the files."""
    manifest = {name: store.manifest[name] for name in ("counts", "dropped", "content", "dtype")}
    return manifest, [(store.directory / name).read_bytes() for name in joining.FILES]


def squared(number):
    """Stands for the work of a worker process, which may fail in several ways."""
    if number == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if number == "imported":
        return sorted(sys.modules)
    if number == "slow":
        time.sleep(0.1)
        return number
    if number == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "part")
    if number == "large":
        raise MemoryError("a part")
    if number < 0:
        raise UserError(f"{number} is negative")
    return number**2


class Unusable:
    """Stands for the work of a worker process that cannot be set up there."""

    def __reduce__(self):
        return _refuse, ()

    def __call__(self, task):
        return task


def _refuse():
    raise UserError("the tokenizer is not usable")


def encoded(task):
    """Stands for the work of a worker process that encodes chunks, each with an encoder of its own."""
    encoder, chunk = task
    part = encoder.part(chunk)
    return part.tokens.tolist(), part.documents.tolist(), part.counts, part.continues
