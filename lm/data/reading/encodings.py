"""Chooses the codec of a text file from the `encoding` setting and the first bytes of the file.

Binary files and text in a different UTF encoding raise errors that name the detected format. `TextFile` removes
byte-order marks when it reads the text. Files whose names end in `.gz` are decompressed.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm.data.reading.wording import Wording
from lm.errors import UserError

BLOCK_BYTES = 1 << 20

# The records that a zip archive can begin with: a file, the end of an empty archive, or the marker of a split archive.
ZIP_RECORDS = b"\x03\x04", b"\x05\x06", b"\x07\x08"
# The first bytes of binary files, and how the error message continues after "the file is".
SIGNATURES = (
    (b"\x1f\x8b\x08", "gzip data, but its name does not end in .gz; rename or unpack it"),
    *((b"PK" + kind, "a zip archive (or an office document); unpack it first") for kind in ZIP_RECORDS),
    (b"\xfd7zXZ\x00", "xz data; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data; unpack it first"),
    (b"\x04\x22\x4d\x18", "lz4 data; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    *((b"BZh%d1AY&SY" % level, "bzip2 data; unpack it first") for level in range(1, 10)),
    (b"PAR1\x15", "a Parquet file; choose the format parquet, or convert it to text"),
    (b"ARROW1\x00\x00", "an Arrow file; convert it to Parquet or JSON lines"),
    (b"%PDF-1.", "a PDF file; extract its text first"),
    (b"SQLite format 3\x00", "an SQLite database; export its text first"),
)
# UTF-32 is first because the mark of utf-32-le begins with the mark of utf-16-le.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
UNMARKED = "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"  # the encodings that `_by_nul_bytes` detects


def choose_codec(path: Path, head: bytes, encoding: str, wording: Wording) -> str:
    """Returns the codec for a file that begins with `head`.

    Raises UserError if `encoding` is unknown, or if `head` is not text in this encoding.
    """
    try:
        codecs.getincrementaldecoder(encoding)
        if not codecs.lookup(encoding)._is_text_encoding:  # a codec such as hex or zlib
            raise LookupError
    except (LookupError, ValueError) as error:  # ValueError: the name contains a NUL character
        setting = wording.name("encoding")
        raise UserError(f"{setting} {encoding!r} is unknown; use e.g. utf-8, cp1252 or gb18030.") from error
    name, likely = codecs.lookup(encoding).name, _by_nul_bytes(head)
    binary = "a tar archive; unpack it first" if head[257:262] == b"ustar" else ""
    if binary := next((what for start, what in SIGNATURES if head.startswith(start)), binary):
        raise UserError(f"{path}: the file {'unpacks to' if path.name.endswith('.gz') else 'is'} {binary}.")
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
    raise UserError(f"{path}: the file {problem}, but is read as {encoding}; {wording.encoding.format(right)}.")


def _by_nul_bytes(head: bytes) -> str:
    """Infers the encoding of text without a byte-order mark from its NUL bytes; returns "" if they are inconclusive.

    In UTF-16 and UTF-32, characters below U+0100, such as spaces, have NUL bytes at fixed offsets.
    """
    head = head[: min(len(head), 4096) // 4 * 4]
    if b"\0" not in head:
        return ""
    share = [4 * head[offset::4].count(0) / len(head) for offset in range(4)]  # share of NUL bytes by offset mod 4
    low, high = min(share[0::2]), min(share[1::2])
    if min(share[2:]) > 0.9 and share[0] < 0.1:
        return "utf-32-le"
    if min(share[:2]) > 0.9 and share[3] < 0.1:
        return "utf-32-be"
    if high > 0.2 and max(share[0::2]) < 0.1 * high:
        return "utf-16-le"
    return "utf-16-be" if low > 0.2 and max(share[1::2]) < 0.1 * low else ""


def byte_position(error: UnicodeDecodeError, fed: int, line: int, codec: str) -> str:
    """Describes an invalid byte in a block that begins on line `line` and ends `fed` bytes into the file."""
    line += error.object[: error.start].decode(codec, "replace").count("\n")
    byte = fed - len(error.object) + error.start
    return f"line {line:,}, byte {byte:,}: 0x{error.object[error.start]:02x} ({error.reason})"


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Converts errors raised while reading a file into UserErrors."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: the file is damaged or not a gzip file ({error}).") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def marks_in(path: Path) -> int:
    """Returns the largest number of UTF-8 byte-order marks found at the start of any line, but at most 2.

    In a `.gz` file, only the first line is checked.
    """
    mark, most, end = b"\n" + codecs.BOM_UTF8, 0, b"\n"
    with open_binary(path) as file:
        blocks = [file.read(6)] if path.name.endswith(".gz") else iter(lambda: file.read(BLOCK_BYTES), b"")
        for block in blocks:
            data = end + block
            if mark + codecs.BOM_UTF8 in data:
                return 2
            most, end = max(most, int(mark in data)), data[-6:]
    return most


def encoding_notes(paths: Sequence[Path], encoding: str) -> list[str]:
    """Returns a list with a note about lines that contain bytes above 127, which are misread if the encoding is wrong.

    The list is empty for ASCII and UTF encodings, because invalid bytes raise an error. It is also empty for encodings
    in which LF is not the byte 10, because lines cannot be counted before decoding. The encoding must already have been
    checked by `choose_codec`.
    """
    name = codecs.lookup(encoding).name
    if name == "ascii" or name.startswith("utf-") or "\n".encode(name) != b"\n":
        return []
    counts = {}
    for path in paths:
        with read_errors(path), open_binary(path) as file:
            counts[path] = sum(not line.isascii() for line in file)
    by_file = ", ".join(f"{path.name} {count:,}" for path, count in counts.items())
    files = f" ({by_file})" if 1 < len(paths) <= 4 else ""
    return [f"{sum(counts.values()):,} lines with bytes above 127 are read as {encoding}{files}"]


def refuse_unless_file(path: Path) -> None:
    """Raises UserError if the path refers to a named pipe, a socket or a device, because reading it may never end.

    Standard input and the pipes of process substitution have no path of their own, so they are accepted.
    """
    target = path.resolve()
    if target.exists() and not target.is_file() and not target.is_dir() and str(path) != "/dev/stdin":
        raise UserError(f"{path} is a named pipe, a socket or a device; copy its contents to a file and use that file.")


def open_binary(path: Path) -> Any:
    """Opens a file, which may be compressed. Raises UserError for named pipes, sockets and devices."""
    refuse_unless_file(path)
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")
