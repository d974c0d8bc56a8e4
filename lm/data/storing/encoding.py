"""Encodes chunks of raw examples as parts of a token store. A part depends only on its chunk and on the settings.

Parts can therefore be encoded in any order, in any process and on any machine (`workers.py`, `beam.py`);
`token_store.py` joins them in order. A chunk holds consecutive raw examples, or a piece of a text that is too long for
a chunk. The first part of such a text begins its document, and the other parts continue the document.

E is the number of documents in a part, and N the number of tokens.
"""

from __future__ import annotations

import copy
import json
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.reading.readers import Pair
from lm.data.storing.splits import Cleaner, SplitSource, hash_of_bytes
from lm.data.tokenizing import restored, saved
from lm.data.tokenizing.base import Tokenizer
from lm.data.tokenizing.flat import sums_of
from lm.data.tokenizing.pieces import PIECE, pieces_of
from lm.files import parse_json

SUFFIX = ".part"
CHUNK_CHARACTERS = 1 << 19  # number of characters after which a chunk ends
# The fields that a part stores for each document. If the part continues a document, `tokens`, `bytes`, `words`,
# `unknown` and `changed` describe only the continuation, and the other fields are 0.
DOCUMENT = np.dtype(
    [
        ("tokens", "<i8"),
        ("hash", "<u8"),  # of the text (see `text_hash`)
        ("digest", "V16"),  # see `Cleaner.digest`; 0 unless repeated documents are dropped
        ("characters", "<i8"),
        ("bytes", "<i8"),
        ("words", "<i8"),
        ("unknown", "<i8"),
        ("changed", "?"),
    ]
)
_IS_SPACE = bytes(chr(byte).isspace() and byte < 128 for byte in range(256))
# All whitespace outside ASCII (see str.isspace).
_OTHER_SPACE = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


class DamagedPart(Exception):
    """The file of a part is missing, incomplete or damaged."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive raw examples of a data source, or a piece of one long text that has already been cleaned."""

    examples: Sequence[Any] = ()
    piece: str | None = None
    # For the first piece: the DOCUMENT entry of the whole text, with only `hash`, `digest` and `characters` set.
    document: np.ndarray | None = None
    is_last: bool = True  # whether the piece is the last one of its text
    joins_word: bool = False  # whether the first word of the piece begins in the previous piece
    counts: Sequence[dict[str, int]] = ({}, {})  # for the first piece: the counts from cleaning the whole text


@dataclass(frozen=True)
class Part:
    """Encoded documents, one after another, each as `[bos] tokens [eos]`."""

    tokens: np.ndarray  # uint16 or uint32 (N,)
    documents: np.ndarray  # DOCUMENT (E,)
    continues: bool = False  # whether the only entry continues the last document of the previous part
    # The counts of dropped examples by reason, and of removed stop words (see `Cleaner.take_counts`).
    counts: Sequence[dict[str, int]] = ({}, {})

    def save(self, path: Path) -> None:
        """Writes a checksum, a line of JSON and the arrays to a file, atomically. May raise OSError."""
        notes = {
            "tokens": [self.tokens.dtype.name, len(self.tokens)],
            "continues": self.continues,
            "counts": list(self.counts),
        }
        content = b"".join([json.dumps(notes).encode(), b"\n", self.tokens.tobytes(), self.documents.tobytes()])
        write_whole(path, b"%d\n%b" % (zlib.crc32(content), content))

    @classmethod
    def load(cls, path: Path) -> Part:
        """Reads a file. Raises DamagedPart if the file is missing, incomplete or damaged."""
        try:
            checksum, _, content = path.read_bytes().partition(b"\n")
            if zlib.crc32(content) != int(checksum):
                raise DamagedPart("the checksum is wrong")
            line, _, arrays = content.partition(b"\n")
            notes = parse_json(line)
            dtype, length = notes["tokens"]
            tokens = np.frombuffer(arrays, dtype, length)
            documents = np.frombuffer(arrays, DOCUMENT, offset=tokens.nbytes)
            return cls(tokens, documents, notes["continues"], notes["counts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedPart(f"{type(error).__name__}: {error}") from error


class Encoder:
    """Encodes chunks as parts. A pickled encoder keeps only what determines the parts.

    Without a `source`, the examples are texts that are already cleaned and selected.
    """

    def __init__(self, tokenizer: Tokenizer, rules: Cleaner, source: SplitSource | None = None, side: str = ""):
        self.tokenizer, self._source, self._side = tokenizer, source, side
        self._rules = copy.copy(rules)  # counts the dropped examples of one chunk at a time
        self._rules.remembers = False
        # Whether the parts hold digests, which allow repeated documents to be dropped when the parts are joined.
        self.drops_repeated = source is not None and rules.config.deduplicate and not source.keeps_all(rules)
        self.dtype = np.dtype("uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored_encoder, (saved(self.tokenizer), self._rules, self._source, self._side)

    def chunks(self, examples: Iterable[Any]) -> Iterator[Chunk]:
        """Divides raw examples into chunks. Long texts are cleaned and cut into pieces."""
        collected: list[Any] = []
        size = 0
        for example in examples:
            length = len(example) if isinstance(example, str) else sum(map(len, _texts_of(example)))
            if length > PIECE:
                if collected:
                    yield Chunk(collected)
                collected, size = [], 0
                yield from self._chunks_of_long(example)
                continue
            collected.append(example)
            size += length + 1  # so that many empty texts fill a chunk, too
            if size >= CHUNK_CHARACTERS:
                yield Chunk(collected)
                collected, size = [], 0
        if collected:
            yield Chunk(collected)

    def _chunks_of_long(self, example: Any) -> Iterator[Chunk]:
        texts, digests = self._selected([example])
        counts = self._rules.take_counts()
        if not texts:
            yield Chunk([example])  # the resulting part counts the dropped example
            return
        (text,) = texts
        document = np.zeros(1, DOCUMENT)
        document["hash"], document["characters"] = _hashes([text.encode()]), len(text)
        document["digest"] = digests
        before, pieces = "", pieces_of(self.tokenizer, text)
        piece: str | None = next(pieces)
        is_first = True
        while piece is not None:
            following = next(pieces, None)
            joins = not is_first and not (piece[:1].isspace() or before[-1:].isspace())
            of_whole = (document, counts) if is_first else (None, ({}, {}))
            yield Chunk((), piece, of_whole[0], following is None, joins, of_whole[1])
            before, piece, is_first = piece, following, False

    def _selected(self, examples: Sequence[Any]) -> tuple[Sequence[str], np.ndarray]:
        """Returns the texts of the examples that belong to the split, and their digests, V16 (E,) (see DOCUMENT)."""
        source, rules, side = self._source, self._rules, self._side
        if source is None:
            return examples, np.zeros(len(examples), "V16")
        kept = source.select_each(examples, rules)
        texts = [source.text_of(example, side) for example in kept] if side else kept
        if not self.drops_repeated:
            return texts, np.zeros(len(kept), "V16")
        digests = [rules.digest(_texts_of(example, whole=False)) for example in kept]
        return texts, np.frombuffer(b"".join(digests), "V16")

    def part(self, chunk: Chunk) -> Part:
        """Encodes a chunk. Raises UserError if a text cannot be cleaned or tokenised."""
        if chunk.piece is not None:
            return self._part_of_piece(chunk)
        texts, digests = self._selected(chunk.examples)
        ids_N, lengths_E = self.tokenizer.encode_documents(texts)
        encoded = [text.encode() for text in texts]
        documents = np.zeros(len(texts), DOCUMENT)
        documents["tokens"], documents["hash"], documents["digest"] = lengths_E, _hashes(encoded), digests
        documents["characters"] = list(map(len, texts))
        documents["bytes"] = list(map(len, encoded))
        documents["words"] = count_words_and_breaks(texts, encoded)
        if self.tokenizer.unk_id is not None and np.any(is_unknown_N := ids_N == self.tokenizer.unk_id):
            documents["unknown"] = sums_of(is_unknown_N, lengths_E)
        documents["changed"] = self.tokenizer.changed(texts, ids_N, lengths_E)
        return Part(ids_N.astype(self.dtype), documents, counts=self._rules.take_counts())

    def _part_of_piece(self, chunk: Chunk) -> Part:
        text, is_first = chunk.piece or "", chunk.document is not None
        ids_N, lengths_E = self.tokenizer.encode_documents([text])
        document = np.zeros(1, DOCUMENT) if chunk.document is None else chunk.document.copy()
        encoded = text.encode()
        document["bytes"] = len(encoded)
        document["words"] = count_words_and_breaks([text], [encoded]) - chunk.joins_word
        document["changed"] = self.tokenizer.changed([text], ids_N, lengths_E)
        if document["changed"] and not is_first:
            # Many tokenizers drop a leading space, and this piece begins with one only because the text was cut here.
            (found,) = self.tokenizer.decode_each([ids_N[1:-1].tolist()])
            document["changed"] = text.lstrip() != found.lstrip()
        tokens_N = ids_N[0 if is_first else 1 : len(ids_N) if chunk.is_last else -1].astype(self.dtype)
        document["tokens"] = len(tokens_N)
        if self.tokenizer.unk_id is not None:
            document["unknown"] = np.count_nonzero(tokens_N == self.tokenizer.unk_id)
        return Part(tokens_N, document, not is_first, chunk.counts)


def _restored_encoder(tokenizer: Any, *arguments: Any) -> Encoder:
    return Encoder(restored(*tokenizer), *arguments)


def _texts_of(example: Any, *, whole: bool = True) -> tuple[str, ...]:
    """Returns the texts of a raw example: all of them, or those that decide whether it is dropped."""
    if isinstance(example, Pair):
        return (example.source, *example.references) if whole else (example.source, example.target)
    return (example,)


def _hashes(encoded: Sequence[bytes]) -> np.ndarray:
    """Returns the hash of each UTF-8 text, uint64 (E,), computed as in `text_hash`."""
    return np.frombuffer(b"".join(hash_of_bytes(each).digest() for each in encoded), "<u8")


def count_words_and_breaks(texts: Sequence[str], encoded: Sequence[bytes]) -> np.ndarray:
    """Returns, for each text, the number of words (as in str.split) plus the number of line breaks, int64 (E,).

    `encoded` holds the texts in UTF-8. Words are counted by the bytes at their ends, without building lists of words.
    """
    joined = b"\n".join([*encoded, b""])
    is_space = np.frombuffer(joined.translate(_IS_SPACE), bool)
    word_ends = np.flatnonzero(is_space[1:] > is_space[:-1])
    text_ends = np.cumsum([len(each) + 1 for each in encoded], dtype=np.int64)
    counts_E = np.diff(np.searchsorted(word_ends, text_ends), prepend=0)
    for index, text in enumerate(texts) if not joined.isascii() else ():
        if not text.isascii() and _OTHER_SPACE.search(text):
            counts_E[index] = len(text.split())
    if joined.count(b"\n") > len(texts):
        counts_E += [text.count("\n") for text in texts]
    return counts_E


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file atomically, even if several processes write it at once, on one or more machines."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def part_name(unit: int, number: int) -> str:
    """Returns the name of the part for a chunk of a unit. The names sort alphabetically in chunk order."""
    return f"{unit:06d}-{number:06d}"


def part_path(directory: Path, name: str) -> Path:
    return directory / f"{name}{SUFFIX}"


def load_part(directory: Path, name: str) -> Part:
    """Reads a part that was just written or checked. Raises OSError if it is no longer intact."""
    try:
        return Part.load(part_path(directory, name))
    except DamagedPart as damage:
        raise OSError(f"part {name} cannot be read back: {damage}") from damage
