"""Reads and writes files of word vectors: word2vec text and binary, GloVe text and fastText .vec.

    word2vec text, fastText .vec    a header "V E", then a line "word x1 ... xE" for each word
    GloVe text                      the same without the header
    word2vec binary                 the header, then "word " and E little-endian float32 numbers for each word

When a file is read, its format is detected from its first lines. Files whose names end in `.gz` are decompressed. Files
are read word by word, and memory is never allocated on the basis of the sizes declared in a header. V is the number of
words, and E the number of values per word.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from lm.data.reading.encodings import open_binary, read_errors
from lm.errors import UserError
from lm.files import expanded

HEADER = re.compile(rb"[ \t]*(\d{1,18})[ \t]+(\d{1,18})[ \t]*\r?\n?")
LONGEST_VECTOR = 100_000  # values per word
LONGEST_WORD = 10_000  # bytes
BLOCK = 1 << 20  # bytes of a binary file that are read at a time
LONGEST_LINE = LONGEST_WORD + 64 * LONGEST_VECTOR  # bytes
ADVICE = "convert or download the file again"
FLOAT = np.dtype("<f4")
SPACES = re.compile(r"\s", re.ASCII)  # the characters that separate fields and lines


class Vectors(NamedTuple):
    """The requested words of a file and their vectors, in file order, and the total number of words that were read."""

    words: list[str]
    vectors_VE: np.ndarray  # float32
    format: str
    num_words: int  # number of words read, including those that were not requested


def read_vectors(path: Path | str, wanted: Collection[str] | None = None, limit: int = 0) -> Vectors:
    """Reads the vectors of the `wanted` words (None: of all words) among the first `limit` words (0: all words).

    Raises UserError if the file is missing, empty, truncated or not UTF-8, if a vector has the wrong dimension or a
    value that is not finite, or if a word occurs twice.
    """
    path = expanded(path)
    numbers: dict[str, int] = {}
    rows: list[np.ndarray] = []
    total = 0
    with _open(path) as file:
        kind, size, entries = _entries(path, file)
        for total, (word, vector_E, where) in enumerate(itertools.islice(entries, limit or None), start=1):
            if wanted is not None and word not in wanted:
                continue
            if word in numbers:
                raise UserError(f"{path}, {where}: the word {word[:60]!r} occurs twice (first: word {numbers[word]}).")
            if not np.isfinite(vector_E).all():
                raise UserError(f"{path}, {where}: the vector of {word[:60]!r} has a value that is not finite.")
            numbers[word] = total
            rows.append(vector_E)
    return Vectors([*numbers], np.stack(rows) if rows else np.zeros((0, size), np.float32), kind, total)


def dimension_of(path: Path | str) -> int:
    """Returns the number of values per word in a file. Raises UserError if the first lines of the file are invalid."""
    with _open(expanded(path)) as file:
        return _entries(expanded(path), file)[1]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    with read_errors(path), open_binary(path) as file:
        yield file


Entry = tuple[str, np.ndarray, str]  # a word, its vector and its position in the file, for messages


def _entries(path: Path, file: IO[bytes]) -> tuple[str, int, Iterator[Entry]]:
    """Returns the format of a file, the number of values per word, and the entries of the file."""
    first = file.readline(LONGEST_LINE).removeprefix(codecs.BOM_UTF8)
    if not first.strip():
        raise UserError(f"{path} is empty or begins with an empty line; {ADVICE}.")
    header = HEADER.fullmatch(first)
    if header is None:
        fields = _decoded(path, "line 1", first).split()
        size = sum(1 for _ in itertools.takewhile(is_number, reversed(fields[1:])))
        word = fields[: len(fields) - size]
        if not size:
            raise UserError(f"{path}, line 1: expected a word and its vector, got {first[:60]!r}; {ADVICE}.")
        if any(map(is_number, word[1:])):  # words may contain spaces, but a number here means that a value is invalid
            raise UserError(f"{path}, line 1: {word[-1][:40]!r} is not a number; {ADVICE}.")
        return "GloVe text", size, _text(path, file, size, None, [first])
    count, size = int(header[1]), int(header[2])
    if not (count and 0 < size <= LONGEST_VECTOR):
        raise UserError(f"{path}: the header declares {count:,} words of {size:,} values each; {ADVICE}.")
    second = file.readline(LONGEST_LINE)
    is_text = _is_text(second, size)
    least = count * (2 * size + 1 if is_text else FLOAT.itemsize * size + 2)
    if path.suffix != ".gz" and least > (found := path.stat().st_size):
        promise = f"the header declares {count:,} words of {size:,} values each, at least {least:,} bytes"
        raise UserError(f"{path}: {promise}, but the file has {found:,} bytes; {ADVICE}.")
    if is_text:
        return "word2vec text", size, _text(path, file, size, count, [first, second])
    return "word2vec binary", size, _binary(path, file, size, count, second)


def _is_text(line: bytes, size: int) -> bool:
    """Returns whether the line after a header is text, possibly damaged, rather than the beginning of binary data."""
    try:
        fields = line.decode("utf-8").split()[1:]
    except UnicodeDecodeError:
        return False
    is_printable = not any(byte < 32 for byte in line.rstrip(b"\r\n").replace(b"\t", b""))
    return is_printable and (any(map(is_number, fields)) or len(fields) >= size)


def _text(path: Path, file: IO[bytes], size: int, count: int | None, begun: list[bytes]) -> Iterator[Entry]:
    """Yields the entries of a text file. `begun` holds the lines already read, including the header."""
    number = done = 0
    for number, line in enumerate(itertools.chain(begun, iter(lambda: file.readline(LONGEST_LINE), b"")), start=1):
        if number == 1 and count is not None:
            continue
        where = f"line {number:,}"
        if not line.strip():
            if any(each.strip() for each in iter(lambda: file.readline(LONGEST_LINE), b"")):
                raise UserError(f"{path}, {where}: the line is empty; {ADVICE}.")
            break
        word, *numbers = _decoded(path, where, line).strip("\r\n ").replace("\t", " ").rsplit(" ", size)
        if len(numbers) < size:
            found = f"{len(numbers):,} instead of {size:,} values"
            raise UserError(
                f"{path}, {where}: the line has {found}; all vectors must have the same dimension; {ADVICE}."
            )
        if not word or (" " in word and is_number(word.rpartition(" ")[2])):
            problem = "has no word" if not word else f"has more than {size:,} values"
            raise UserError(f"{path}, {where}: the line {problem}; all vectors must have the same dimension; {ADVICE}.")
        try:
            with np.errstate(over="ignore"):  # `read_vectors` reports infinite values
                vector_E = np.array(numbers, np.float32)
        except ValueError:
            wrong = next(each for each in numbers if not is_number(each))
            raise UserError(f"{path}, {where}: {wrong[:40]!r} is not a number; {ADVICE}.") from None
        done += 1
        if count is not None and done > count:
            raise UserError(f"{path}: the header declares {count:,} words, but there are more; {ADVICE}.")
        yield word, vector_E, where
    if count is not None and done < count:
        raise UserError(f"{path}: the header declares {count:,} words, but there are {done:,}; {ADVICE}.")


def _binary(path: Path, file: IO[bytes], size: int, count: int, begun: bytes) -> Iterator[Entry]:
    """Yields the entries of a binary file. `begun` holds the bytes after the header that have already been read."""
    longest = LONGEST_WORD + size * FLOAT.itemsize + 2
    block, position = begun, 0  # bytes read from the file, and the number of them already used
    for number in range(1, count + 1):
        where = f"word {number:,} of {count:,}"
        if len(block) - position < longest:
            block, position = block[position:] + file.read(BLOCK + longest), 0
        space = block.find(b" ", position, position + LONGEST_WORD)
        end = space + 1 + size * FLOAT.itemsize
        if space < 0 and len(block) - position > LONGEST_WORD:
            raise UserError(f"{path}, {where}: the word is not terminated; {ADVICE}.")
        if space < 0 or end > len(block):
            raise UserError(f"{path}, {where}: the file ends within this entry; {ADVICE}.")
        word = _decoded(path, where, block[position:space].lstrip(b"\n"))
        if not word:
            raise UserError(f"{path}, {where}: the word is empty; {ADVICE}.")
        yield word, np.frombuffer(block[space + 1 : end], FLOAT).astype(np.float32), where
        position = end
    if (block[position:] + file.read(2)).strip(b"\n"):
        raise UserError(f"{path}: the header declares {count:,} words, but there is more data; {ADVICE}.")


def _decoded(path: Path, where: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, {where}: this is not UTF-8 text ({error.reason}); {ADVICE}.") from error


def is_number(text: str) -> bool:
    try:
        float(text)
        return True
    except ValueError:
        return False


def _write_text(file: IO[bytes], words: Sequence[str], vectors_VE: np.ndarray) -> None:
    line = " ".join(["%s", *["%.9g"] * vectors_VE.shape[1]])  # nine significant digits identify every float32
    for word, vector_E in zip(words, vectors_VE, strict=True):
        file.write((line % (word, *vector_E.tolist()) + "\n").encode())


def _write_header_and_text(file: IO[bytes], words: Sequence[str], vectors_VE: np.ndarray) -> None:
    file.write(b"%d %d\n" % vectors_VE.shape)
    _write_text(file, words, vectors_VE)


def _write_binary(file: IO[bytes], words: Sequence[str], vectors_VE: np.ndarray) -> None:
    file.write(b"%d %d\n" % vectors_VE.shape)
    for word, vector_E in zip(words, vectors_VE, strict=True):
        file.write(word.encode() + b" " + vector_E.astype(FLOAT).tobytes() + b"\n")


def write_vectors(file: IO[bytes], kind: str, words: Sequence[str], vectors_VE: np.ndarray, gz: bool) -> list[str]:
    """Writes distinct words and their vectors in the format `kind`, and returns notes about what was changed.

    No format can hold whitespace within words reliably, so it is replaced by underscores. If the resulting word
    already exists, the word with whitespace is left out.
    """
    named, notes = {word: word for word in words}, []
    if spaced := [word for word in words if SPACES.search(word)]:
        clean = {*words}
        for word in spaced:
            named[word] = SPACES.sub("_", word)
            if named[word] in clean:
                del named[word]
            else:
                clean.add(named[word])
        notes.append(f"whitespace in {len(spaced):,} of {len(words):,} words, e.g. {spaced[0][:60]!r}, is written as _")
        if left_out := len(words) - len(named):
            notes.append(f"{left_out:,} of these words are left out, because the word with _ already exists")
        kept = [number for number, word in enumerate(words) if word in named]
        words, vectors_VE = [*named.values()], vectors_VE[kept]
    with contextlib.ExitStack() as stack:
        if gz:
            file = cast(IO[bytes], stack.enter_context(gzip.GzipFile("", "wb", 6, file, mtime=0)))
        WRITERS[kind](file, words, vectors_VE)
    return notes


# The writer for each output format. Writers expect distinct words that contain no whitespace, and their vectors.
WRITERS: dict[str, Callable[[IO[bytes], Sequence[str], np.ndarray], None]] = {
    "word2vec": _write_header_and_text,  # also the format of fastText's .vec files
    "binary": _write_binary,
    "glove": _write_text,
}
