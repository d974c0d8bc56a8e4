"""Where documents come from: files on disk, TFDS data sets, the embedded corpus.

A source gives its documents one after the other, in a fixed order, in bounded memory (a text file that
is one document is read whole, every other file piece by piece). Its fingerprint says whether the
content is still the same and does not depend on where the files are.
"""

from __future__ import annotations

import abc
import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lm.config import SourceConfig
from lm.data import embedded
from lm.data.tfds import TfdsDataSet
from lm.errors import UserError

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
    kinds: dict[str, type[Source]] = {
        "embedded": EmbeddedSource,
        "text": TextSource,
        "jsonl": JsonLinesSource,
        "tsv": TsvSource,
        "parquet": ParquetSource,
        "tfds": TfdsSource,
    }
    return kinds[config.kind](config)


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class EmbeddedSource(Source):
    def iterate(self) -> Iterator[str]:
        yield from embedded.documents()

    def describe(self) -> str:
        return "the running Python's documentation"

    def fingerprint(self) -> str:
        return _hash("embedded", embedded.fingerprint())


class FileSource(Source):
    """One or more files, in the order of their names. Each kind of file says how to read one."""

    reading_options: tuple[str, ...] = ()  # settings that decide what is read, besides the files' bytes

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        pattern = os.path.expanduser(config.path)
        if os.path.isfile(pattern):
            self.files = [Path(pattern)]
        elif os.path.isdir(pattern):
            raise UserError(f"{config.path} is a directory; name its files with a glob, e.g. {config.path}/*.txt")
        elif glob.has_magic(pattern):
            self.files = sorted(Path(each) for each in glob.glob(pattern, recursive=True) if os.path.isfile(each))
            if not self.files:
                raise UserError(f"{config.path}: no file matches this pattern (in {os.getcwd()}).")
        else:
            raise UserError(f"{config.path}: there is no such file (in {os.getcwd()}).")

    def iterate(self) -> Iterator[str]:
        empty = True
        for path in self.files:
            with _read_errors(path):
                for text in self.read(path):
                    empty = False
                    yield text
        if empty:
            raise UserError(f"{self.config.path}: there is no document in it (an empty file?).")

    @abc.abstractmethod
    def read(self, path: Path) -> Iterator[str]:
        """The documents of one file."""

    def describe(self) -> str:
        return f"{self.config.path} ({len(self.files)} file{'s' if len(self.files) > 1 else ''})"

    def fingerprint(self) -> str:
        options = [str(getattr(self.config, name)) for name in self.reading_options]
        hashes = []
        for path in self.files:
            with _read_errors(path), open(path, "rb") as file:
                hashes.append(f"{path.name.endswith('.gz')} {hashlib.file_digest(file, 'sha256').hexdigest()}")
        return _hash(self.config.kind, *options, *hashes)


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged or not a gzip file ({error}).") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _open_binary(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


@contextlib.contextmanager
def _open_text(path: Path, encoding: str) -> Iterator[TextIO]:
    """Raises UserError, with the place of the first bad byte, if the file is not text in this encoding."""
    try:
        with _open_binary(path) as binary, io.TextIOWrapper(binary, encoding=encoding, newline="\n") as text:
            yield text
    except LookupError as error:
        raise UserError(f"encoding {encoding!r} is not known; write e.g. utf-8, cp1252 or gb18030.") from error
    except UnicodeDecodeError as error:
        raise UserError(_where_undecodable(path, encoding, error)) from error


def _where_undecodable(path: Path, encoding: str, error: UnicodeDecodeError) -> str:
    """Reads once more, line by line, for the line and the offset: the decoder knows only its own buffer."""
    offset, place = 0, ""
    with _open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as here:
                place = f" at line {number}, byte {offset + here.start}: 0x{line[here.start]:02x}"
                break
            offset += len(line)
    return (
        f"{path}: not valid {encoding}{place} ({error.reason}); set the source's encoding to that of the file "
        "(e.g. cp1252, latin-1, gb18030)."
    )


def _lines(file: TextIO) -> Iterator[str]:
    """Lines ended by LF or CR LF, without their end. Nothing else ends a line, as it does in str.splitlines."""
    for line in file:
        yield line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line


class TextSource(FileSource):
    reading_options = ("document", "separator", "encoding")

    def read(self, path: Path) -> Iterator[str]:
        split = {
            "file": self._whole,
            "line": _lines,
            "paragraph": self._paragraphs,
            "separator": self._separated,
        }[self.config.document]
        with _open_text(path, self.config.encoding) as file:
            yield from split(file)

    @staticmethod
    def _whole(file: TextIO) -> Iterator[str]:
        text = file.read().replace("\r\n", "\n")
        if text:
            yield text

    @staticmethod
    def _paragraphs(file: TextIO) -> Iterator[str]:
        lines: list[str] = []
        for line in _lines(file):
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


class JsonLinesSource(FileSource):
    reading_options = ("field", "encoding")

    def read(self, path: Path) -> Iterator[str]:
        with _open_text(path, self.config.encoding) as file:
            for number, line in enumerate(_lines(file), start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}, line {number}: not valid JSON ({error}).") from error
                if not isinstance(record, dict):
                    raise UserError(f"{path}, line {number}: expected a JSON object, got {type(record).__name__}.")
                yield _text_of(record, self.config.field, f"{path}, line {number}")


class TsvSource(FileSource):
    """Tab-separated values, no quoting; the first line names the fields."""

    reading_options = ("field", "encoding")

    def read(self, path: Path) -> Iterator[str]:
        with _open_text(path, self.config.encoding) as file:
            lines = enumerate(_lines(file), start=1)
            names = next(lines, (0, ""))[1].split("\t")
            if self.config.field not in names:
                raise UserError(_missing(str(path), self.config.field, names) + " (They are read from the first line.)")
            column = names.index(self.config.field)
            for number, line in lines:
                values = line.split("\t")
                if line and column >= len(values):
                    raise UserError(f"{path}, line {number}: has {len(values)} fields, the first line {len(names)}.")
                if line:
                    yield values[column]


class ParquetSource(FileSource):
    reading_options = ("field",)

    def read(self, path: Path) -> Iterator[str]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
                names = file.schema_arrow.names
                if self.config.field not in names:
                    raise UserError(_missing(str(path), self.config.field, names))
                row = 0
                for batch in file.iter_batches(batch_size=1024, columns=[self.config.field]):
                    for value in batch.column(0).to_pylist():
                        row += 1
                        yield _as_text(value, self.config.field, f"{path}, row {row}")
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}).") from error


def _missing(where: str, field: str, present: list[str]) -> str:
    return f"{where}: there is no field {field!r}; there are {', '.join(map(repr, present)) or 'none'}."


def _text_of(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise UserError(_missing(where, field, list(record)))
    return _as_text(record[field], field, where)


def _as_text(value: Any, field: str, where: str) -> str:
    """Text with LF line ends. Lone surrogates, which JSON can spell but UTF-8 cannot, become U+FFFD."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: field {field!r} is not valid UTF-8 at byte {error.start}.") from error
    if not isinstance(value, str):
        raise UserError(f"{where}: field {field!r} should hold text and holds {type(value).__name__} {value!r:.40}.")
    if not value.isascii():
        value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value.replace("\r\n", "\n")


class TfdsSource(Source):
    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self._data_set = TfdsDataSet(config.path, config.data_dir)

    def iterate(self) -> Iterator[str]:
        where = f"tfds {self.config.path}, split {self.config.split!r}"
        data = self._data_set.open_split(self.config.split)
        if not len(data):
            raise UserError(f"{where}: there is no document in it.")
        for i in range(len(data)):
            yield _text_of(data[i], self.config.field, f"{where}, example {i}")

    def describe(self) -> str:
        return f"tfds {self._data_set.full_name}, split {self.config.split}"

    def fingerprint(self) -> str:
        return _hash("tfds", self._data_set.full_name, self.config.split, self.config.field)
