"""Opens text files; the only place where bytes become text.

Bytes that are no content never become text: a byte-order mark at the beginning of a line is dropped, `.gz` files are
unpacked, and other compressed or binary files, text in another UTF encoding, and line ends of CR alone are refused by
name. Text is read in blocks, so memory is bounded by the longest line. Errors name the file, the line and the byte.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm.config import SourceConfig
from lm.errors import UserError
from lm.files import well_formed

BLOCK_BYTES = 1 << 20
MARK = "\ufeff"  # the byte-order mark as a character
SET_ENCODING = "set the source's encoding to {}"
UNKNOWN_ENCODING = "the file's encoding (e.g. cp1252, latin-1, gb18030)"
CONVERT = "convert it from {} to UTF-8 first"  # where no setting names an encoding

# The first bytes of files that are not text.
SIGNATURES = (
    (b"\x1f\x8b\x08", "gzip data, but its name does not end in .gz; rename or unpack it"),
    (b"PK\x03\x04", "a zip archive (or a file of an office program); unpack it first"),
    (b"\xfd7zXZ\x00", "xz data; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data; unpack it first"),
    (b"\x04\x22\x4d\x18", "lz4 data; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    *((b"BZh%d1AY&SY" % level, "bzip2 data; unpack it first") for level in range(1, 10)),
    (b"PAR1\x15", "a Parquet file; set kind to parquet"),
    (b"ARROW1\x00\x00", "an Arrow file; convert it to Parquet or JSON lines"),
    (b"%PDF-1.", "a PDF file; extract its text first"),
    (b"SQLite format 3\x00", "an SQLite database; export its text first"),
)
TAR = slice(257, 262), b"ustar"
# Byte-order marks and the encodings that they announce. That of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
UNMARKED = "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"  # encodings recognised by their NUL bytes


class TextFile:
    """The text of an open file, read once from the beginning to the end; `lines` suits most readers.

    Every method raises UserError, with the position, for bytes that are not text in the encoding and for a line of more
    than `longest` characters. Lone surrogates, which some encodings can express but UTF-8 cannot, become U+FFFD.
    """

    def __init__(self, path: Path, binary: Any, encoding: str, longest: int, remedy: str):
        self.path, self.longest = path, longest
        self._binary, self._remedy = binary, remedy
        self._head = binary.read(BLOCK_BYTES)
        self._encoding, self._codec = encoding, self._choose_codec(encoding)
        self._with_ends = self._split()

    def blocks(self) -> Iterator[str]:
        """Yields the text in blocks of bounded length. No block ends between CR and LF."""
        decoder = codecs.getincrementaldecoder(self._codec)()
        data, fed, line, held, begins_line = self._head, 0, 1, "", True
        while True:
            fed += len(data)
            try:
                text = held + decoder.decode(data, not data)
            except UnicodeDecodeError as error:
                raise UserError(self._undecodable(error, fed, line)) from error
            except UnicodeError as error:
                raise UserError(f"{self.path}: not valid {self._encoding} ({error}).") from error
            held = text[-1:] if data and (text.endswith("\r") or "\ud800" <= text[-1:] < "\udc00") else ""
            text = text.removesuffix(held)
            if self._codec != "utf-8":
                text = well_formed(text)
            if MARK in text:
                text = (text.removeprefix(MARK) if begins_line else text).replace(f"\n{MARK}", "\n")
            if text:
                if line == 1:
                    self._refuse_lone_returns(text)
                begins_line = text.endswith("\n")
                line += text.count("\n")
                yield text
            if not data:
                return
            data = self._binary.read(BLOCK_BYTES)

    def read(self) -> str:
        """Returns the whole text, which may have no more characters than the longest line."""
        parts, size = [], 0
        for block in self.blocks():
            parts.append(block)
            size = self.check_length(size + len(block))
        return "".join(parts)

    def __iter__(self) -> Iterator[str]:
        """Yields lines with their ends. Only LF ends a line."""
        return self._with_ends

    def readline(self) -> str:
        """Returns the next line with its end, or an empty string if there is none."""
        return next(self._with_ends, "")

    def lines(self) -> Iterator[str]:
        """Yields lines without the final LF or CR LF. Unlike in str.splitlines, no other character ends a line."""
        return (line.removesuffix("\n").removesuffix("\r") for line in self._with_ends)

    def check_length(self, size: int, line: int = 0) -> int:
        """Returns `size`. Raises UserError if it is above the limit; without `line`, it is the length of a document."""
        if size <= self.longest:
            return size
        unit = "this line" if line else "a document (by default the whole file)"
        raise UserError(
            f"{self.path}{f', line {line:,}' if line else ''}: {unit} has more than {self.longest:,} characters; split "
            "it (for text, see `document`), or raise the source's longest_line if there is enough memory."
        )

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

    def _choose_codec(self, encoding: str) -> str:
        """Returns the codec that decodes the file. Raises UserError if its first bytes contradict the encoding."""
        try:
            codecs.getincrementaldecoder(encoding)
            found = codecs.lookup(encoding)
            if not found._is_text_encoding:  # such as hex or zlib
                raise LookupError
        except (LookupError, ValueError) as error:  # ValueError: a NUL character
            raise UserError(f"encoding {encoding!r} is not known; write e.g. utf-8, cp1252 or gb18030.") from error
        name, head = found.name, self._head
        known = next((what for start, what in SIGNATURES if head.startswith(start)), "")
        if known or head[TAR[0]] == TAR[1]:
            unpacked = "unpacks to" if self.path.name.endswith(".gz") else "is"
            raise UserError(f"{self.path}: {unpacked} {known or 'a tar archive; unpack it first'}.")
        likely = _by_nul_bytes(head)
        if marked := next((each for mark, each in MARKS if head.startswith(mark)), ""):
            if marked == name or marked.startswith(f"{name}-") or name == f"{marked}-sig":
                return marked
            problem, right = f"begins with the byte-order mark of {marked}", marked[:6].removesuffix("-")
        elif name.startswith(("utf-16", "utf-32")) and head.isascii() and b"\0" not in head and head:
            problem, right = "is ASCII text", "utf-8"
        elif name in ("utf-16", "utf-32") and head:
            problem, right = "begins without a byte-order mark", likely or f"{name}-le or {name}-be"
        elif likely and name not in UNMARKED:
            problem, right = f"looks like {likely}", likely
        else:
            return name
        raise UserError(f"{self.path}: {problem}, but is read as {encoding}; {self._remedy.format(right)}.")

    def _refuse_lone_returns(self, text: str) -> None:
        """Raises UserError if more lines of the first block seem to end in CR alone than in LF."""
        if text.count("\r") - text.count("\r\n") > text.count("\n"):
            raise UserError(
                f"{self.path}: its lines end in CR (carriage return) alone, which does not end a line here; convert "
                "it, e.g. with: tr '\\r' '\\n' < OLD > NEW"
            )

    def _undecodable(self, error: UnicodeDecodeError, fed: int, line: int) -> str:
        """Returns the message for an invalid byte, when `fed` bytes were decoded up to and including its block."""
        line += error.object[: error.start].decode(self._codec, "replace").count("\n")
        byte = fed - len(error.object) + error.start
        value, remedy = error.object[error.start], self._remedy.format(UNKNOWN_ENCODING)
        where = f"line {line:,}, byte {byte:,}: 0x{value:02x} ({error.reason})"
        return f"{self.path}: not valid {self._encoding} at {where}; {remedy}."


def _by_nul_bytes(head: bytes) -> str:
    """Returns the encoding that text without a byte-order mark seems to have because of its NUL bytes, or "".

    Characters below 256 have their NUL bytes at the same offsets, and every text has some, such as spaces.
    """
    head = head[: min(len(head), 4096) // 4 * 4]
    if b"\0" not in head:
        return ""
    share = [4 * head[offset::4].count(0) / len(head) for offset in range(4)]
    low, high = min(share[0::2]), min(share[1::2])
    if min(share[2:]) > 0.9 and share[0] < 0.1:
        return "utf-32-le"
    if min(share[:2]) > 0.9 and share[3] < 0.1:
        return "utf-32-be"
    if high > 0.2 and max(share[0::2]) < 0.1 * high:
        return "utf-16-le"
    return "utf-16-be" if low > 0.2 and max(share[1::2]) < 0.1 * low else ""


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Converts errors raised while reading a file into UserError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged or not a gzip file ({error}).") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error


@contextlib.contextmanager
def open_text(
    path: Path, encoding: str, longest: int = SourceConfig.longest_line, remedy: str = SET_ENCODING
) -> Iterator[TextFile]:
    """Opens a text file, unpacked if its name ends in `.gz`. `remedy` is the advice for another encoding."""
    with _open_binary(path) as binary:
        yield TextFile(path, binary, encoding, longest, remedy)


def read_lines(
    path: Path, encoding: str, longest: int = SourceConfig.longest_line, remedy: str = SET_ENCODING
) -> Iterator[str]:
    """Yields the lines of one file and closes it after the last one."""
    with read_errors(path), open_text(path, encoding, longest, remedy) as file:
        yield from file.lines()


def has_mark(path: Path) -> bool:
    """Returns whether a line begins with a byte-order mark of UTF-8; of a packed file, only the first line counts."""
    if path.name.endswith(".gz"):
        with _open_binary(path) as file:
            return file.read(3) == codecs.BOM_UTF8
    with path.open("rb") as file:
        end = b"\n"
        while block := file.read(BLOCK_BYTES):
            if b"\n" + codecs.BOM_UTF8 in end + block:
                return True
            end = block[-3:]
    return False


def encoding_notes(paths: Sequence[Path], encoding: str) -> list[str]:
    """Returns a note on the lines with bytes over 127, which depend on the encoding; none for UTF-8 and ASCII."""
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
