"""The documents of a split from one data source, and how they are divided into chunks and encoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lm.data.reading import finding, open_reader, tfds
from lm.data.reading.format import FileFormat, Reader
from lm.data.storing import encoding
from lm.data.storing.encoding import Chunk, Encoder, part_name
from lm.data.storing.splits import Cleaner, SplitSource
from lm.data.tokenizing import pieces, restored, saved
from lm.data.tokenizing.base import Tokenizer
from lm.errors import named_errors
from lm.files import hash_of


class Documents:
    """The documents of a split from one data source, or one side of its pairs, and how they are encoded.

    Instances can be pickled; an unpickled copy opens the data source again.
    """

    def __init__(self, source: SplitSource, reader: Reader, rules: Cleaner, tokenizer: Tokenizer, side: str = ""):
        self.source, self.reader, self.rules, self._side = source, reader, rules, side
        # A document at the boundary between two splits can only be cut once all texts have been cleaned.
        rules.remembers = source.cuts_texts
        self.encoder = Encoder(tokenizer, rules, *(() if source.cuts_texts else (source, side)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.source, type(self.reader), self.rules, saved(self.encoder.tokenizer), self._side)

    @staticmethod
    def layout() -> str:
        """Returns a hash of the sizes that determine how documents are divided into parts, and of a part's fields."""
        sizes = finding.UNIT_BYTES, tfds.UNIT, encoding.CHUNK_CHARACTERS, encoding.PIECE, pieces.PIECE, pieces.SEARCHED
        return hash_of(str(encoding.DOCUMENT.descr), *map(str, sizes))[:8]

    def num_units(self) -> int:
        """Returns the number of units of files. Each unit is divided into chunks separately."""
        with named_errors(self.source.label):
            return 1 if self.source.cuts_texts else self.reader.source.num_units()

    def chunks(self, unit: int) -> Iterator[tuple[str, Chunk]]:
        """Yields the chunks of a unit and the names of their parts. Raises UserError if a record cannot be read."""
        with named_errors(self.source.label):
            examples = (
                self.source.texts(self.reader, self.rules) if self.source.cuts_texts else self.reader.iterate_unit(unit)
            )
            for number, chunk in enumerate(self.encoder.chunks(examples)):
                yield part_name(unit, number), chunk

    def all_chunks(self) -> Iterator[tuple[str, Chunk]]:
        is_empty = True
        for unit in range(self.num_units()):
            for each in self.chunks(unit):
                is_empty = False
                yield each
        if is_empty:
            self.refuse_if_empty()

    def refuse_if_empty(self) -> None:
        """Raises UserError if the data source has no records."""
        with named_errors(self.source.label):
            next(self.reader.iterate(), None)

    def estimated_bytes(self) -> int:
        """Estimates the size of the text from the sizes of the files, or returns 0 if no good estimate is possible."""
        source, subset = self.reader.source, self.source.subset
        if self._side or self.source.cuts_texts or not isinstance(source, FileFormat) or "encoding" not in source.reads:
            return 0
        if any(path.suffix == ".gz" for path in source.files.found):
            return 0
        return round(sum(path.stat().st_size for path in source.files.found) * (subset.high - subset.low))


def _reopened(source: SplitSource, reader: type[Reader], rules: Cleaner, tokenizer: Any, side: str) -> Documents:
    return Documents(source, open_reader(source.config, reader), rules, restored(*tokenizer), side)
