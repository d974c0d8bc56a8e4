"""Base classes of formats, which read records from files, and of readers, which convert records to raw examples.

Only this module decodes text files (`TextFile`). It drops byte-order marks at the beginning of lines, and rejects files
whose lines end in CR alone. Text is read in blocks, so memory use is bounded by the longest line.
"""

from __future__ import annotations

import abc
import codecs
import contextlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lm.config import SourceConfig
from lm.data.reading import encodings, finding
from lm.data.reading.fields import Field, Record
from lm.data.reading.wording import PLAIN_TEXT, wording_of
from lm.errors import UserError
from lm.files import hash_of, well_formed

T = TypeVar("T")
Refuse = Callable[[str, str], None]  # called with (setting, message); raises UserError
MARK = "\ufeff"  # the byte-order mark as a character
_MARKS_AFTER_LF = re.compile(rf"\n{MARK}+")
_LINE_END = re.compile(r"(?<!\r)\r+\n")


class ReadyField(Field):
    """A field whose name is set by the format. Its value is returned unchanged."""

    def value(self, record: Record, where: str) -> Any:
        return record[self.spec]

    text = value

    def texts(self, record: Record, where: str) -> tuple[str, ...]:
        return (record[self.spec],)


class Format(abc.ABC):
    """Base class for formats. The defaults of the class attributes suit records with named fields."""

    doc: ClassVar[str]  # the description for `--help`
    endings: ClassVar[Collection[str]] = ()  # file name endings; empty if the format reads no files
    holds: ClassVar[Collection[str] | None] = None  # the supported kinds of raw examples; None means all
    # The format's settings: `settings` lists those that are empty by default, `reads` lists those with other defaults.
    settings: ClassVar[Collection[str]] = ("target_field", "pair_field", "label_field")
    reads: ClassVar[Collection[str]] = ()
    # Whether record fields are named after the roles that readers define ("text", "label", ...) and hold values that
    # need no checks. Otherwise, settings such as `field` specify the field names.
    names_fields: ClassVar[bool] = False

    def __init__(self, config: SourceConfig):
        """Locates the data. Raises UserError if no data is found or a setting is invalid."""
        self.config, self.wording = config, wording_of(config)

    @classmethod
    def check(cls, config: SourceConfig, wants: str, refuse: Refuse) -> None:
        """Calls `refuse` if raw examples of the kind `wants` cannot be read with these settings."""
        if not config.path:
            refuse("path", "a path is required; give a file, a glob or a TFDS data set, e.g. --config=FILE.py:PATH.")

    @classmethod  # noqa: B027
    def check_only_reads(cls, config: SourceConfig) -> None:
        """Raises UserError if the data has not yet been prepared in `config.data_dir`."""

    def field(self, role: str, setting: str = "", *, optional: bool = False) -> Field:
        """Returns the field that `setting` specifies. If `setting` is empty, returns the field called `role`."""
        if self.names_fields:
            return ReadyField(role)
        if not setting:
            return Field(role, optional=optional)
        return Field(getattr(self.config, setting), self.wording.name(setting))

    @abc.abstractmethod
    def records(self, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        """Yields each record and, for error messages, its position. Columns that no field needs may be omitted.

        Raises UserError at the first record that cannot be read, or if there are no records.
        """

    def num_units(self) -> int:
        """Returns the number of consecutive units into which the records are divided (see `records_of`)."""
        return 1

    def records_of(self, unit: int, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        """Yields the records of a unit. Units are numbered from 0 and may be empty."""
        return self.records(fields)

    @abc.abstractmethod
    def identity(self) -> list[str]:
        """Returns the settings and hashes that determine the records and fields, excluding file locations."""

    def notes(self) -> list[str]:
        """Returns notes for the user about the files. Must be called after the last record has been read."""
        return []


class FileFormat(Format):
    """Base class for formats that read one or more files."""

    reads: ClassVar[Collection[str]] = ("encoding", "longest_line")

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self.files = Files(config.path)
        self._units = finding.grouped(self.files.found)
        self.counts: Counter[str] = Counter()  # for notes that begin with a number
        self.remarks: set[str] = set()  # other notes

    def records(self, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        self.counts, self.remarks = Counter(), set()
        return self.files.read_each(lambda path: self.read(path, fields))

    def num_units(self) -> int:
        return len(self._units)

    def records_of(self, unit: int, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        return self.files.read_all(self._units[unit], lambda path: self.read(path, fields))

    @abc.abstractmethod
    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        """Yields the records of one file."""

    def options(self) -> list[str]:
        """Returns the settings that determine the records."""
        return [self.config.encoding] if self.names_fields else [self.config.field, self.config.encoding]

    def identity(self) -> list[str]:
        return [*self.options(), *finding.hashes_of(self.files.found, is_text="encoding" in self.reads)]

    def notes(self) -> list[str]:
        counted = [f"{count:,} {what}" for what, count in sorted(self.counts.items()) if count]
        has_text = "encoding" in self.reads
        of_encoding = encodings.encoding_notes(self.files.found, self.config.encoding) if has_text else []
        return [*sorted(self.remarks), *counted, *of_encoding]


class Reader(abc.ABC):
    """Reads the raw examples of one data source, in a fixed order."""

    kind: ClassVar[str]  # the kind of raw examples that the reader yields
    # The setting that is required unless the format names the fields, and the error message if it is missing.
    needs: ClassVar[tuple[str, str]] = ("kind", "")
    settings: ClassVar[Collection[str]] = ()  # the settings that the reader uses and that are empty by default
    optional: ClassVar[Collection[str]] = ()  # the roles whose fields may be absent
    # Maps a role to the setting that names its field, or to "" (see `Format.field`). Only `pair_field` may be
    # empty; if it is, the role has no field.
    roles: ClassVar[Mapping[str, str]]

    def __init__(self, config: SourceConfig, source: Format):
        self.config, self.source = config, source
        self.fields = {
            role: source.field(role, setting, optional=role in self.optional)
            for role, setting in self.roles.items()
            if setting != "pair_field" or config.pair_field
        }

    def iterate(self) -> Iterator[Any]:
        """Yields all raw examples. Raises UserError at the first example that cannot be read."""
        return self._examples(self.source.records(list(self.fields.values())))

    def iterate_unit(self, unit: int) -> Iterator[Any]:
        """Yields the raw examples of one unit (see `Format.records_of`)."""
        return self._examples(self.source.records_of(unit, list(self.fields.values())))

    def _examples(self, records: Iterator[tuple[Record, str]]) -> Iterator[Any]:
        found = (self.example(record, where) for record, where in records)
        return (example for example in found if example is not None)

    @abc.abstractmethod
    def example(self, record: Record, where: str) -> Any:
        """Returns the raw example of a record, or None to skip the record."""

    def fingerprint(self) -> str:
        """Returns a hash of everything that determines the examples, excluding file locations."""
        config = self.config
        options = [config.kind, config.pair_field, config.label_field, config.label_pattern, *config.label_names]
        return hash_of("labelled", *options, *self.source.identity())

    def notes(self) -> list[str]:
        """Returns notes for the user about the whole data source. Must be called after `iterate`."""
        return self.source.notes()

    def notes_on(self, examples: Sequence[Any]) -> list[str]:
        """Returns notes for the user about the raw examples of a split."""
        return []


class DocumentReader(Reader):
    kind = "documents"
    roles: ClassVar = {"text": "field"}

    def example(self, record: Record, where: str) -> str:
        return self.fields["text"].text(record, where)

    def fingerprint(self) -> str:
        return hash_of(self.config.kind, *self.source.identity())


class Files:
    """The files that match a path or a glob, ordered by name. Raises UserError if no file is found."""

    def __init__(self, path: str):
        self.path, self.found = path, finding.find(path)

    def read_each(self, read: Callable[[Path], Iterator[T]]) -> Iterator[T]:
        """Yields the items of `read(path)` for each file. Raises UserError if no file yields an item."""
        empty = True
        for item in self.read_all(self.found, read):
            empty = False
            yield item
        if empty:
            raise UserError(f"{self.path} contains no documents (is the file empty?).")

    @staticmethod
    def read_all(paths: Iterable[Path], read: Callable[[Path], Iterator[T]]) -> Iterator[T]:
        """Yields the items of `read(path)` for each path."""
        for path in paths:
            with encodings.read_errors(path):
                yield from read(path)


class TextFile:
    """The text of an open file, readable only once: as `blocks`, as `lines`, as `groups` of lines or as a whole.

    Only the settings `encoding` and `longest_line` of `config` are used. Reading raises a UserError that states the
    position if bytes are invalid in the encoding or a line is too long. Lone surrogates, which UTF-8 cannot represent,
    become U+FFFD.
    """

    def __init__(self, path: Path, binary: Any, config: SourceConfig):
        self.path, self._binary, self._config, self._wording = path, binary, config, wording_of(config)
        self._head = binary.read(encodings.BLOCK_BYTES)
        self._codec = encodings.choose_codec(path, self._head, config.encoding, self._wording)
        self.lone_returns = 0  # number of CRs read so far, except those at the ends of lines

    def blocks(self) -> Iterator[str]:
        """Yields the text in blocks of bounded length. No block ends between CR and LF."""
        decoder = codecs.getincrementaldecoder(self._codec)()
        data, fed, line, held, begins_line = self._head, 0, 1, "", True
        problem = f"{self.path}: the text is not valid {self._config.encoding}"
        while True:
            fed += len(data)
            try:
                text = held + decoder.decode(data, not data)
            except UnicodeDecodeError as error:
                where = encodings.byte_position(error, fed, line, self._codec)
                right = "the file's encoding (e.g. cp1252, latin-1, gb18030)"
                raise UserError(f"{problem} at {where}; {self._wording.encoding.format(right)}.") from error
            except UnicodeError as error:
                raise UserError(f"{problem} ({error}).") from error
            held = (text[len(text.rstrip("\r")) :] or text[-1:] * ("\ud800" <= text[-1:] < "\udc00")) if data else ""
            text = text.removesuffix(held)
            text = text if self._codec == "utf-8" else well_formed(text)
            if MARK in text:
                text = _MARKS_AFTER_LF.sub("\n", text.lstrip(MARK) if begins_line else text)
            if text:
                returns = with_line_feeds(text).count("\r")
                self.lone_returns += returns
                if line == 1 and returns > text.count("\n"):
                    raise UserError(
                        f"{self.path}: the lines end in CR (carriage return) alone, which is not supported; convert "
                        "the file, e.g. with: tr '\\r' '\\n' < OLD > NEW"
                    )
                begins_line = text.endswith("\n")
                line += text.count("\n")
                yield text
            if not data:
                return
            data = self._binary.read(encodings.BLOCK_BYTES)

    def read(self) -> str:
        """Returns the whole text. Raises UserError if the text is too long."""
        return self.document(self.blocks())

    def document(self, parts: Iterable[str], between: str = "") -> str:
        """Joins the parts of a document. Raises UserError as soon as the document is too long."""
        kept, size = [], -len(between)
        for part in parts:
            kept.append(part)
            size = self.check_length(size + len(between) + len(part))
        return between.join(kept)

    def lines(self, *, rows: bool = False) -> Iterator[str]:
        """Yields the lines without the LF and any CRs before it. Unlike in str.splitlines, only LF ends a line.

        If `rows` is true, a CR within a line raises UserError.
        """
        number = 1  # line number of the first line in the group
        for lines in self.groups():
            if any("\r" in line for line in lines):
                lines = [line.rstrip("\r") for line in lines]
                wrong = next((index for index, line in enumerate(lines) if rows and "\r" in line), None)
                if wrong is not None:
                    yield from lines[:wrong]
                    what = "this line contains a carriage return (CR); replace it with a line feed if it ends a row"
                    raise UserError(f"{self.path}, line {number + wrong:,}: {what}, otherwise with a space.")
            yield from lines
            number += len(lines)

    def check_length(self, size: int, line: int = 0) -> int:
        """Returns `size`. Raises UserError if a line (or document, if `line` is 0) of this size is too long."""
        if size <= (longest := self._config.longest_line):
            return size
        unit = f", line {line:,}: this line" if line else ": a document (by default the whole file)"
        raise UserError(f"{self.path}{unit} has more than {longest:,} characters; {self._wording.length}.")

    def groups(self) -> Iterator[list[str]]:
        """Yields lists of consecutive lines without the LF."""
        longest = self._config.longest_line
        parts, size, number = list[str](), 0, 1  # parts, length and number of the unfinished line
        for block in self.blocks():
            *ended, last = block.split("\n")
            if ended:
                ended[0] = "".join([*parts, ended[0]])
                for index, line in enumerate(ended if size + len(block) > longest else ()):
                    if len(line) > longest:
                        yield ended[:index]
                        self.check_length(len(line), number + index)
                yield ended
                parts, size, number = [], 0, number + len(ended)
            if last:
                parts.append(last)
                size = self.check_length(size + len(last), number)
        if parts:
            yield ["".join(parts)]


@contextlib.contextmanager
def open_text(path: Path, config: SourceConfig = PLAIN_TEXT) -> Iterator[TextFile]:
    """Opens a text file, which may be a `.gz` file."""
    with encodings.open_binary(path) as binary:
        yield TextFile(path, binary, config)


def read_lines(path: Path, config: SourceConfig = PLAIN_TEXT, *, rows: bool = False) -> Iterator[str]:
    """Yields the lines of one file (see `TextFile.lines`) and closes the file after the last line."""
    with encodings.read_errors(path), open_text(path, config) as file:
        yield from file.lines(rows=rows)


def with_line_feeds(text: str) -> str:
    """Returns the text without the CRs that precede an LF."""
    return _LINE_END.sub("\n", text) if "\r" in text else text
