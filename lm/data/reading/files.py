"""Files: found by name or glob, unpacked, read line by line, hashed; errors name the file and the line."""

from __future__ import annotations

import codecs
import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from lm.errors import UserError

T = TypeVar("T")


class Files:
    """One or more files, in the order of their names. Raises UserError if there is none."""

    def __init__(self, path: str):
        self.path = path
        pattern = os.path.expanduser(path)
        if os.path.isfile(pattern):
            self.found = [Path(pattern)]
        elif os.path.isdir(pattern):
            raise UserError(f"{path} is a directory; name its files with a glob, e.g. {path}/*.txt")
        elif glob.has_magic(pattern):
            self.found = sorted(Path(each) for each in glob.glob(pattern, recursive=True) if os.path.isfile(each))
            if not self.found:
                raise UserError(f"{path}: no file matches this pattern (in {os.getcwd()}).")
        else:
            raise UserError(f"{path}: there is no such file (in {os.getcwd()}).")

    def read_each(self, read: Callable[[Path], Iterator[T]]) -> Iterator[T]:
        """Yields what `read` yields for each file. Raises UserError if no file yields anything."""
        empty = True
        for path in self.found:
            with read_errors(path):
                for item in read(path):
                    empty = False
                    yield item
        if empty:
            raise UserError(f"{self.path}: there is no document in it (an empty file?).")

    def hashes(self) -> list[str]:
        """Returns a hash of each file's bytes, wherever it is."""
        hashes = []
        for path in self.found:
            with read_errors(path), open(path, "rb") as file:
                hashes.append(f"{path.name.endswith('.gz')} {hashlib.file_digest(file, 'sha256').hexdigest()}")
        return hashes


def hash_of(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turns the errors that reading a file may raise into UserErrors."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged or not a gzip file ({error}).") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error


@contextlib.contextmanager
def open_text(path: Path, encoding: str) -> Iterator[TextIO]:
    """Raises UserError, with the position of the first bad byte, if the file is not text in this encoding."""
    try:
        with _open_binary(path) as binary, io.TextIOWrapper(binary, encoding=encoding, newline="\n") as text:
            yield text
    except LookupError as error:
        raise UserError(f"encoding {encoding!r} is not known; write e.g. utf-8, cp1252 or gb18030.") from error
    except UnicodeDecodeError as error:
        raise UserError(_where_undecodable(path, encoding, error)) from error


def lines_of(file: TextIO) -> Iterator[str]:
    """Yields lines without the LF or CR LF that ends them. Unlike in str.splitlines, nothing else ends a line."""
    for line in file:
        yield line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line


def read_lines(path: Path, encoding: str) -> Iterator[str]:
    """Yields the lines of one file, which is closed after the last one."""
    with read_errors(path), open_text(path, encoding) as file:
        yield from lines_of(file)


def encoding_notes(paths: Sequence[Path], encoding: str) -> list[str]:
    """Returns a note on lines with a byte over 127, whose meaning depends on the encoding; for UTF-8 there is none."""
    try:
        if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii"):
            return []
    except LookupError:
        return []  # reading the file raises a better error
    counts = {}
    for path in paths:
        with read_errors(path), _open_binary(path) as file:
            counts[path] = sum(not line.isascii() for line in file)
    by_file = ", ".join(f"{path.name} {count:,}" for path, count in counts.items())
    files = f" ({by_file})" if 1 < len(paths) <= 4 else ""
    return [f"{sum(counts.values()):,} lines with bytes over 127, read as {encoding}{files}"]


def _open_binary(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _where_undecodable(path: Path, encoding: str, error: UnicodeDecodeError) -> str:
    """Returns the message for a file that cannot be decoded, which is read again to find the line of the bad byte."""
    offset, position = 0, ""
    with _open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as here:
                position = f" at line {number}, byte {offset + here.start}: 0x{line[here.start]:02x}"
                break
            offset += len(line)
    return (
        f"{path}: not valid {encoding}{position} ({error.reason}); set the source's encoding to that of the file "
        "(e.g. cp1252, latin-1, gb18030)."
    )
