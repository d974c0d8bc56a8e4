"""Where documents come from: files on disk, TFDS data sets, the embedded corpus.

A source gives its documents one after the other, in a fixed order, in bounded memory (a text file that
is one document is read whole, every other file piece by piece). Its fingerprint says whether the
content is still the same and does not depend on where the files are. For pairs see `lm/data/reading/pairs.py`.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lm.config import SourceConfig
from lm.data.reading import embedded
from lm.data.reading.fields import Field
from lm.data.reading.files import Files, hash_of, lines_of, open_text
from lm.data.reading.records import open_records

READ_CHARACTERS = 1 << 20


class Source(abc.ABC):
    """Documents in a fixed order."""

    def __init__(self, config: SourceConfig):
        self.config = config

    @abc.abstractmethod
    def iterate(self) -> Iterator[str]:
        """All documents, in order. Raises UserError at the first one that cannot be read."""

    @abc.abstractmethod
    def describe(self) -> str:
        """A few words for tables and messages."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that decides the documents."""


def open_source(config: SourceConfig) -> Source:
    """Raises UserError if there is nothing to read at `config.path`."""
    kinds: dict[str, type[Source]] = {"embedded": EmbeddedSource, "text": TextSource}
    return kinds.get(config.kind, RecordSource)(config)


class EmbeddedSource(Source):
    def iterate(self) -> Iterator[str]:
        yield from embedded.documents()

    def describe(self) -> str:
        return "the running Python's documentation"

    def fingerprint(self) -> str:
        return hash_of("embedded", embedded.fingerprint())


class RecordSource(Source):
    """A field of each record: see `lm/data/reading/records.py`."""

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self._field = Field(config.field)
        self._records = open_records(config, [self._field])

    def iterate(self) -> Iterator[str]:
        return (self._field.text(record, where) for record, where in self._records.iterate())

    def describe(self) -> str:
        return self._records.describe()

    def fingerprint(self) -> str:
        return hash_of(self.config.kind, *self._records.identity())


class TextSource(Source):
    """Text files, cut into documents as `document` says."""

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self.files = Files(config.path)

    def iterate(self) -> Iterator[str]:
        yield from self.files.read_each(self.read)

    def describe(self) -> str:
        return self.files.describe()

    def fingerprint(self) -> str:
        config = self.config
        return hash_of("text", config.document, config.separator, config.encoding, *self.files.hashes())

    def read(self, path: Path) -> Iterator[str]:
        """The documents of one file."""
        split = {
            "file": self._whole,
            "line": lines_of,
            "paragraph": self._paragraphs,
            "separator": self._separated,
        }[self.config.document]
        with open_text(path, self.config.encoding) as file:
            yield from split(file)

    @staticmethod
    def _whole(file: TextIO) -> Iterator[str]:
        text = file.read().replace("\r\n", "\n")
        if text:
            yield text

    @staticmethod
    def _paragraphs(file: TextIO) -> Iterator[str]:
        lines: list[str] = []
        for line in lines_of(file):
            if line.strip():
                lines.append(line)
            elif lines:
                yield "\n".join(lines)
                lines = []
        if lines:
            yield "\n".join(lines)

    def _separated(self, file: TextIO) -> Iterator[str]:
        """What lies between separators, without the line ends that set it apart from them."""
        separator, rest = self.config.separator, ""
        while block := file.read(READ_CHARACTERS):
            if block.endswith("\r"):
                block += file.read(1)  # so that no CR LF is cut in two
            *texts, rest = (rest + block.replace("\r\n", "\n")).split(separator)
            yield from (text.strip("\n") for text in texts)
        if rest.strip("\n"):
            yield rest.strip("\n")
