"""Base classes of formats, which read records from files, and of readers, which convert records to raw examples.

Only this module decodes text files (`TextFile`). It drops byte-order marks at the beginning of lines, and rejects files
whose lines end in CR alone. Text is read in blocks, so the longest line bounds memory use.
"""

from __future__ import annotations

import abc
import codecs
import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lm.config import SourceConfig
from lm.data.reading.encodings import (
    BLOCK_BYTES,
    MARK,
    byte_position,
    choose_codec,
    drop_marks,
    encoding_notes,
    marks_in,
    open_binary,
    read_errors,
    refuse_unless_file,
    with_line_feeds,
    without_returns,
)
from lm.data.reading.fields import Field, Record
from lm.data.reading.wording import SETTINGS, Wording, wording_of
from lm.errors import UserError
from lm.files import well_formed

T = TypeVar("T")
Refuse = Callable[[str, str], None]  # called with (setting, message); raises UserError


class ReadyField(Field):
    """A field whose name is set by the format, not by a setting. Its value is returned unchanged."""

    def value(self, record: Record, where: str) -> Any:
        return record[self.spec]

    text = value

    def texts(self, record: Record, where: str) -> tuple[str, ...]:
        return (record[self.spec],)


class Format(abc.ABC):
    """Base class for formats. Class attributes describe the format. Their defaults suit records with named fields."""

    doc: ClassVar[str]  # the description for `--help`
    endings: ClassVar[Collection[str]] = ()  # file name endings; empty if the format reads no files
    holds: ClassVar[Collection[str] | None] = None  # the supported kinds of raw examples; None means all
    # The settings that the format reads and that are empty by default.
    settings: ClassVar[Collection[str]] = ("target_field", "pair_field", "label_field")
    reads: ClassVar[Collection[str]] = ()  # format-specific settings with non-empty defaults that it reads
    # Maps a kind of raw example to a required setting and the error message if it is missing; overrides `Reader.needs`.
    needs: ClassVar[dict[str, tuple[str, str]]] = {}
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
        named = self.wording.name(setting)
        return Field(getattr(self.config, setting), named) if setting else Field(role, optional=optional)

    @abc.abstractmethod
    def records(self, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        """Yields each record and, for error messages, its position. Columns that no field needs may be omitted.

        Raises UserError at the first record that cannot be read, or if there are no records.
        """

    @abc.abstractmethod
    def identity(self) -> list[str]:
        """Returns the settings and hashes that determine the records and fields, but no file locations."""

    def notes(self) -> list[str]:
        """Returns notes for the user about the files."""
        return []


class FileFormat(Format):
    """Base class for formats that read one or more files. `read` reads a single file."""

    reads: ClassVar[Collection[str]] = ("encoding", "longest_line")
    notes_encoding: ClassVar[bool] = True  # whether `notes` counts the lines with bytes over 127
    is_text: ClassVar[bool] = True  # whether the files are opened as text

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self.files = Files(config.path)

    def records(self, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        return self.files.read_each(lambda path: self.read(path, fields))

    @abc.abstractmethod
    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        """Yields the records of one file."""

    def open(self, path: Path) -> contextlib.AbstractContextManager[TextFile]:
        """Opens one file as text."""
        return open_text(path, self.config.encoding, self.config.longest_line, self.wording)

    def lines(self, path: Path, *, rows: bool = False) -> Iterator[str]:
        """Yields the lines of one file without line endings. If `rows` is true, a CR within a line raises UserError."""
        lines = read_lines(path, self.config.encoding, self.config.longest_line, self.wording)
        return without_returns(path, lines) if rows else lines

    def options(self) -> list[str]:
        """Returns the settings that determine the records."""
        return [self.config.encoding] if self.names_fields else [self.config.field, self.config.encoding]

    def identity(self) -> list[str]:
        return [*self.options(), *self.files.hashes(is_text=self.is_text)]

    def notes(self) -> list[str]:
        return encoding_notes(self.files.found, self.config.encoding) if self.notes_encoding else []


class Reader(abc.ABC):
    """Reads the raw examples of one data source, in a fixed order."""

    kind: ClassVar[str]  # the kind of its raw examples
    # The setting that is required unless the format names the fields, and the error message if it is missing.
    needs: ClassVar[tuple[str, str]] = ("kind", "")
    settings: ClassVar[Collection[str]] = ()  # the settings that it reads and that are empty by default
    optional: ClassVar[Collection[str]] = ()  # the roles whose fields may be absent
    roles: ClassVar[Mapping[str, str]]  # maps a role to the setting that names its field, or to "" (see `Format.field`)

    def __init__(self, config: SourceConfig, source: Format):
        self.config, self.source = config, source
        self.fields = {
            role: source.field(role, setting, optional=role in self.optional) for role, setting in self.roles.items()
        }

    def iterate(self) -> Iterator[Any]:
        """Yields all raw examples. Raises UserError at the first example that cannot be read."""
        for record, where in self.source.records(list(self.fields.values())):
            if (example := self.example(record, where)) is not None:
                yield example

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
        self.path = path
        pattern = os.path.expanduser(path)
        if os.path.isfile(pattern):
            self.found = [Path(pattern)]
        elif os.path.isdir(pattern):
            raise UserError(f"{path} is a directory; select its files with a glob, e.g. {path}/*.txt")
        elif glob.has_magic(pattern):
            self.found = sorted(Path(each) for each in glob.glob(pattern, recursive=True) if os.path.isfile(each))
            if not self.found:
                raise UserError(f"{path}: no file matches this pattern (in {os.getcwd()}).")
        else:
            refuse_unless_file(Path(pattern))
            raise UserError(f"{path}: there is no such file (in {os.getcwd()}).")

    def read_each(self, read: Callable[[Path], Iterator[T]]) -> Iterator[T]:
        """Yields the items of `read(path)` for each file. Raises UserError if no file yields an item."""
        empty = True
        for path in self.found:
            with read_errors(path):
                for item in read(path):
                    empty = False
                    yield item
        if empty:
            raise UserError(f"{self.path} contains no documents (is the file empty?).")

    def hashes(self, *, is_text: bool = True) -> list[str]:
        """For each file, returns a string with a hash of its content. The string also states whether the file is
        compressed and whether it has (repeated) byte-order marks, which earlier versions treated as text."""
        hashes = []
        for path in self.found:
            with read_errors(path), path.open("rb") as file:
                marked = {0: "", 1: " without marks"}.get(marks_in(path) if is_text else 0, " without repeated marks")
                content = hashlib.file_digest(file, "sha256").hexdigest()
                hashes.append(f"{path.name.endswith('.gz')} {content}{marked}")
        return hashes


class TextFile:
    """The text of an open file. It can be read only once. Most callers need only `lines`.

    Reading raises UserError if bytes are invalid in the encoding or a line has more than `longest` characters. The
    message gives the position. Lone surrogates, which some encodings can express but UTF-8 cannot, become U+FFFD.
    """

    def __init__(self, path: Path, binary: Any, encoding: str, longest: int, wording: Wording):
        self.path, self.longest, self._binary, self._wording = path, longest, binary, wording
        self._head = binary.read(BLOCK_BYTES)
        self._encoding, self._codec = encoding, choose_codec(path, self._head, encoding, wording)
        self._with_ends = self._split()
        self.lone_returns = 0  # number of CRs so far, except those at the ends of lines

    def blocks(self) -> Iterator[str]:
        """Yields the text in blocks of bounded length. No block ends between CR and LF."""
        decoder = codecs.getincrementaldecoder(self._codec)()
        data, fed, line, held, begins_line = self._head, 0, 1, "", True
        while True:
            fed += len(data)
            try:
                text = held + decoder.decode(data, not data)
            except UnicodeDecodeError as error:
                problem = f"the text is not valid {self._encoding} at {byte_position(error, fed, line, self._codec)}"
                raise UserError(f"{self.path}: {problem}; {self._wording.unknown_encoding}.") from error
            except UnicodeError as error:
                raise UserError(f"{self.path}: the text is not valid {self._encoding} ({error}).") from error
            held = (text[len(text.rstrip("\r")) :] or text[-1:] * ("\ud800" <= text[-1:] < "\udc00")) if data else ""
            text = text.removesuffix(held)
            text = text if self._codec == "utf-8" else well_formed(text)
            text = drop_marks(text, begins_line) if MARK in text else text
            if text:
                self._count_lone_returns(text, is_first=line == 1)
                begins_line = text.endswith("\n")
                line += text.count("\n")
                yield text
            if not data:
                return
            data = self._binary.read(BLOCK_BYTES)

    def read(self) -> str:
        """Returns the whole text. Raises UserError if the text has more than `longest` characters."""
        parts, size = [], 0
        for block in self.blocks():
            parts.append(block)
            size = self.check_length(size + len(block))
        return "".join(parts)

    def __iter__(self) -> Iterator[str]:
        return self._with_ends

    def readline(self) -> str:
        return next(self._with_ends, "")

    def lines(self) -> Iterator[str]:
        """Yields the lines without LF and the CRs before it. Unlike in str.splitlines, nothing else ends a line."""
        return (line.removesuffix("\n").rstrip("\r") for line in self._with_ends)

    def check_length(self, size: int, line: int = 0) -> int:
        """Returns `size`. Raises UserError if a line (or document, if `line` is 0) of this size is too long."""
        if size <= self.longest:
            return size
        unit = "this line" if line else "a document (by default the whole file)"
        where, limit = f"{self.path}{f', line {line:,}' if line else ''}", f"{self.longest:,} characters"
        raise UserError(f"{where}: {unit} has more than {limit}; {self._wording.length}.")

    def _split(self) -> Iterator[str]:
        parts: list[str] = []
        size, number = 0, 1
        for block in self.blocks():
            *ended, last = block.split("\n")
            for line in ended:
                self.check_length(size + len(line), number)
                yield "".join([*parts, line, "\n"]) if parts else line + "\n"
                parts, size, number = [], 0, number + 1
            if last:
                parts.append(last)
                size = self.check_length(size + len(last), number)
        if parts:
            yield "".join(parts)

    def _count_lone_returns(self, text: str, *, is_first: bool) -> None:
        """Raises UserError if, in the first block, more lines seem to end in CR alone than in LF."""
        count = with_line_feeds(text).count("\r") if "\r" in text else 0
        self.lone_returns += count
        if is_first and count > text.count("\n"):
            advice = "convert the file, e.g. with: tr '\\r' '\\n' < OLD > NEW"
            raise UserError(
                f"{self.path}: the lines end in CR (carriage return) alone, which is not supported; {advice}"
            )


@contextlib.contextmanager
def open_text(
    path: Path, encoding: str, longest: int = SourceConfig.longest_line, wording: Wording = SETTINGS
) -> Iterator[TextFile]:
    """Opens a text file, which may be a `.gz` file. `wording` is the advice in error messages."""
    with open_binary(path) as binary:
        yield TextFile(path, binary, encoding, longest, wording)


def read_lines(
    path: Path, encoding: str, longest: int = SourceConfig.longest_line, wording: Wording = SETTINGS
) -> Iterator[str]:
    """Yields the lines of one file and closes the file after the last line."""
    with read_errors(path), open_text(path, encoding, longest, wording) as file:
        yield from file.lines()


def hash_of(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
