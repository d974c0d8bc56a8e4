"""Reads the parts of a SentencePiece model file that the library does not expose, and changes the scores of pieces.

The file is a Protocol Buffers message (sentencepiece_model.proto). A field consists of a key, `number * 8 + wire type`,
and a value. The wire types are 0 (variable-length integer), 1 (8 bytes), 2 (a length and that many bytes) and 5 (4
bytes).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SPACE = "\u2581"  # represents a space in a piece
UNIGRAM, BPE = "unigram", "bpe"
ALGORITHMS = {1: UNIGRAM, 2: BPE, 3: "word", 4: "char"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # piece types
PIECE, TRAINER, NORMALIZER = 1, 2, 3  # fields of the file
TEXT, SCORE, TYPE = 1, 2, 3  # fields of a piece
MODEL_TYPE, CHARSMAP = 3, 2  # fields of the trainer and normalizer messages


@dataclass(frozen=True)
class PieceFile:
    """The content of a SentencePiece model file.

    Attributes:
        algorithm: a value of ALGORITHMS.
        scored: the pieces and their scores, in the order of their ids.
        types: the type of each piece.
        unknown: the id of the unknown piece.
        charsmap: the compiled rules for replacing characters, or b"" if there are none.
    """

    algorithm: str
    scored: list[tuple[str, float]]
    types: list[int]
    unknown: int
    charsmap: bytes

    @classmethod
    def parse(cls, content: bytes) -> PieceFile:
        """Returns the parsed content of a file. Raises ValueError if the file is damaged."""
        scored, types, specs = [], [], {TRAINER: b"", NORMALIZER: b""}
        try:
            for number, value, _ in _fields(content):
                if number == PIECE:
                    piece = {TEXT: b"", SCORE: bytes(4), TYPE: NORMAL, **_values(value)}
                    scored.append((piece[TEXT].decode("utf-8"), struct.unpack("<f", piece[SCORE])[0]))
                    types.append(piece[TYPE])
                elif number in specs:
                    specs[number] = value
            trainer, normalizer = (_values(each) for each in specs.values())
            unknown = types.index(UNKNOWN)
        except (AttributeError, TypeError, struct.error) as error:
            raise ValueError(f"it is not a SentencePiece model ({error})") from None
        algorithm = ALGORITHMS.get(trainer.get(MODEL_TYPE, 1), "unknown")
        return cls(algorithm, scored, types, unknown, bytes(normalizer.get(CHARSMAP, b"")))

    @property
    def added(self) -> list[tuple[str, bool]]:
        """The pieces that are matched before all others, each with a flag that says whether it is special."""
        return [
            (piece, kind == CONTROL)
            for (piece, _), kind in zip(self.scored, self.types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]


def with_scores(content: bytes, change: Callable[[float], float]) -> bytes:
    """Returns a copy of a model file's content in which `change` has been applied to the score of each piece."""
    changed = bytearray(content)
    for number, piece, begin in _fields(content):
        for field, score, offset in _fields(piece) if number == PIECE else ():
            if field == SCORE:
                struct.pack_into("<f", changed, begin + offset, change(*struct.unpack("<f", score)))
    return bytes(changed)


def _values(message: bytes) -> dict[int, Any]:
    return {number: value for number, value, _ in _fields(message)}


def _fields(message: bytes) -> Iterator[tuple[int, Any, int]]:
    """Yields the number and the value of each field and, unless the value is an integer, the offset of the value.

    Raises ValueError if the message is truncated.
    """
    position = 0

    def integer() -> int:
        nonlocal position
        value = shift = 0
        while True:
            if position >= len(message):
                raise ValueError("the file is truncated")
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        number, wire = divmod(integer(), 8)
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == 0:
            yield number, integer(), position
            continue
        if wire == 2:
            size = integer()
        elif wire not in (1, 5):
            raise ValueError(f"it has a field with the unknown wire type {wire}")
        if position + size > len(message):
            raise ValueError("the file is truncated")
        yield number, message[position : position + size], position
        position += size
