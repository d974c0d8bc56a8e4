"""How text becomes numbers and back: bytes, characters, words, SentencePiece, Hugging Face's tokenizer.json.

What all of them have in common is in `lm/data/tokenizing/base.py`.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import TokenizerConfig
from lm.data.tokenizing import sentencepiece_training
from lm.data.tokenizing.base import BOS, EOS, INFO_FILE, UNK, Offsets, Tokenizer
from lm.data.tokenizing.huggingface import HuggingFaceTokenizer
from lm.errors import UserError


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes, after three special tokens."""

    kind = "bytes"
    file_name = "bytes.txt"
    base_size = 3 + 256
    bos_id = BOS
    eos_id = EOS

    def encode(self, text: str) -> list[int]:
        return (np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) + 3).tolist()

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        return self.encode(text), [(i, i + 1) for i, character in enumerate(text) for _ in character.encode("utf-8")]

    def _decode(self, ids: list[int]) -> str:
        return bytes(i - 3 for i in ids).decode("utf-8", errors="replace")

    def _piece(self, token: int) -> str:
        value = token - 3
        return chr(value) if 32 <= value < 127 or value in (9, 10) else f"<0x{value:02X}>"

    def _starts_word(self, token: int) -> bool:
        return bytes([token - 3]).isspace()

    def _content(self) -> bytes:
        return b"id = byte + 3; 0, 1 and 2 are padding, bos and eos\n"

    @classmethod
    def _from_content(cls, content: bytes, options: dict[str, Any]) -> ByteTokenizer:
        return cls()


class CharacterTokenizer(Tokenizer):
    """The characters of the training text, sorted by code point; others become `unk_id`."""

    kind = "characters"
    file_name = "characters.json"
    bos_id = BOS
    eos_id = EOS
    unk_id = UNK

    def __init__(self, characters: Iterable[str]):
        self.characters = sorted(set(characters))
        self.base_size = 4 + len(self.characters)
        codes = np.array([ord(c) for c in self.characters], np.int64)
        self._ids = np.full(int(codes.max(initial=-1)) + 2, UNK, np.int32)  # one place more, for all beyond
        self._ids[codes] = np.arange(4, self.base_size)

    def encode(self, text: str) -> list[int]:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        return self._ids[np.minimum(codes, len(self._ids) - 1)].tolist()

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def _decode(self, ids: list[int]) -> str:
        return "".join("\ufffd" if i == UNK else self.characters[i - 4] for i in ids)

    def _piece(self, token: int) -> str:
        return "<unk>" if token == UNK else self.characters[token - 4]

    def _content(self) -> bytes:
        return json.dumps(self.characters).encode()

    @classmethod
    def _from_content(cls, content: bytes, options: dict[str, Any]) -> CharacterTokenizer:
        return cls(json.loads(content))


class WordTokenizer(Tokenizer):
    """What white space separates in the training text, the most frequent first; other words become `unk_id`.

    For artificial languages and word models. Text comes back with single spaces between its words.
    """

    kind = "words"
    file_name = "words.json"
    bos_id = BOS
    eos_id = EOS
    unk_id = UNK

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self.base_size = 4 + len(self.words)
        self._ids = {word: number for number, word in enumerate(self.words, start=4)}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> WordTokenizer:
        """Of equally frequent words the first in the order of code points."""
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            counts.update(text.split())
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ordered[: vocab_size - 4])

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, UNK) for word in text.split()]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        return self.encode(text), [match.span() for match in re.finditer(r"\S+", text)]

    def _decode(self, ids: list[int]) -> str:
        return " ".join(self._piece(token) for token in ids)

    def _piece(self, token: int) -> str:
        return "<unk>" if token == UNK else self.words[token - 4]

    def _starts_word(self, token: int) -> bool:
        return True

    def _content(self) -> bytes:
        return json.dumps(self.words).encode()

    @classmethod
    def _from_content(cls, content: bytes, options: dict[str, Any]) -> WordTokenizer:
        return cls(json.loads(content))


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model: our own, which loses nothing, or another's, which may normalise the text."""

    kind = "sentencepiece"
    file_name = "sentencepiece.model"

    def __init__(self, model: bytes):
        import sentencepiece

        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.load_from_serialized_proto(model)
        processor = self._processor
        self.base_size = processor.get_piece_size()
        self.unk_id = processor.unk_id()
        if max(processor.bos_id(), processor.eos_id()) < 0:
            raise ValueError("it has neither a bos nor an eos piece")
        self.bos_id = processor.bos_id() if processor.bos_id() >= 0 else processor.eos_id()
        self.eos_id = processor.eos_id() if processor.eos_id() >= 0 else processor.bos_id()
        self.pad_id = max(processor.pad_id(), 0)

        self._joints = self._find_joints()

    def _find_joints(self) -> dict[str, list[int]]:
        """Characters at which text can be cut and encoded apart, with their ids; empty for others' models.

        In our own models no piece holds a line end but its own, so long documents are encoded line by
        line. U+2581 is written as bytes, since SentencePiece would read it back as a space.
        """
        processor = self._processor
        newline = processor.piece_to_id("\n")
        space_symbol = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in "\u2581".encode()]
        probe = "  a\n\n  b "
        exact = newline != self.unk_id and processor.encode("\n") == [newline]
        exact = exact and self.unk_id not in space_symbol and processor.decode(processor.encode(probe)) == probe
        return {"\n": [newline], "\u2581": space_symbol} if exact else {}

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if not self._joints:
            return self._processor.encode(list(texts))
        cut = [self._cut(text) for text in texts]
        encoded = iter(self._processor.encode([part for parts in cut for part in parts[::2]]))
        batch = []
        for parts in cut:
            ids = list(next(encoded))
            for joint in parts[1::2]:
                ids += self._joints[joint]
                ids += next(encoded)
            batch.append(ids)
        return batch

    def _cut(self, text: str) -> list[str]:
        """Text and joints in turn, text at both ends."""
        return re.split("([\n\u2581])", text) if self._joints else [text]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        ids: list[int] = []
        offsets: Offsets = []
        place = 0
        for part in self._cut(text):
            joint = self._joints.get(part)
            found, spans = (joint, [(0, 1)] * len(joint)) if joint else self._part_with_offsets(part)
            ids += found
            offsets += [(place + begin, place + end) for begin, end in spans]
            place += len(part)
        return ids, offsets

    def _part_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Ids and offsets by the library, which may normalise the text.

        It gives all that a character turned into to the last of its tokens and nothing to the others: the bytes
        of one that is no piece, the letters of a ligature. They get it here too; a space put before the text not.
        """
        try:
            found = self._processor.encode(text, out_type="offset_mapping")
            ids, spans = list(found["ids"]), found["offsets"]
        except (RuntimeError, ValueError):  # an older release, which does not know of them
            of_old: Any = "immutable_proto"
            pieces = self._processor.encode(text, out_type=of_old).pieces
            ids, spans = [piece.id for piece in pieces], [(piece.begin, piece.end) for piece in pieces]
        offsets: Offsets = []
        following = len(text), len(text)
        for token, (begin, end) in zip(reversed(ids), reversed(spans), strict=True):
            if begin == end == following[0] and self._processor.id_to_piece(token) != "\u2581":
                begin, end = following
            following = begin, end
            offsets.append(following)
        return ids, offsets[::-1]

    def _decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _piece(self, token: int) -> str:
        if token == self.unk_id:
            return "<unk>"
        return self._processor.id_to_piece(token).replace("\u2581", " ")

    def _is_text(self, token: int) -> bool:
        if token < self.base_size and (self._processor.is_control(token) or self._processor.is_unused(token)):
            return False
        return super()._is_text(token)

    def _starts_word(self, token: int) -> bool:
        if self._processor.is_byte(token):
            return bytes([int(self._processor.id_to_piece(token)[1:-1], 16)]).isspace()
        return super()._starts_word(token)

    def _special(self) -> dict[int, str]:
        names = {self.bos_id: "<bos>", self.eos_id: "<eos>"}
        return names | ({self.pad_id: "<pad>"} if self._processor.pad_id() >= 0 else {})

    def _content(self) -> bytes:
        return self._model

    @classmethod
    def _from_content(cls, content: bytes, options: dict[str, Any]) -> SentencePieceTokenizer:
        return cls(content)


KINDS: dict[str, type[Tokenizer]] = {
    each.kind: each
    for each in (ByteTokenizer, CharacterTokenizer, WordTokenizer, SentencePieceTokenizer, HuggingFaceTokenizer)
}


def needs_text(config: TokenizerConfig) -> bool:
    """Whether `build_tokenizer` reads its texts."""
    return config.kind in ("characters", "words") or (config.kind == "sentencepiece" and not config.path)


def build_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Trains the tokenizer on `texts`, or loads the file that the config names. Raises UserError."""
    return _build(config, texts).with_extra_ids(config.extra_ids)


def _build(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    if config.path:
        return _from_file(config)
    if config.kind == "bytes":
        return ByteTokenizer()
    if config.kind == "characters":
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return CharacterTokenizer(characters)
    if config.kind == "words":
        return WordTokenizer.train(texts, config.vocab_size)
    return SentencePieceTokenizer(sentencepiece_training.train(config, texts))


def _from_file(config: TokenizerConfig) -> Tokenizer:
    if config.kind not in ("sentencepiece", "huggingface"):
        raise UserError(
            f"config.data.tokenizer.path: a {config.kind} tokenizer is not read from a file; leave it empty."
        )
    path = Path(config.path).expanduser()
    if not path.is_file():
        raise UserError(f"config.data.tokenizer.path: there is no file {config.path}.")
    options = {"bos_token": config.bos_token, "eos_token": config.eos_token} if config.kind == "huggingface" else {}
    try:
        return KINDS[config.kind]._from_content(path.read_bytes(), options)
    except Exception as error:  # the libraries raise plain Exception and RuntimeError for a bad file
        what = {"sentencepiece": "SentencePiece model", "huggingface": "tokenizer.json"}[config.kind]
        raise UserError(f"config.data.tokenizer.path: {config.path} is not a usable {what}: {error}.") from error


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote. Raises UserError if it is not there, or damaged."""
    directory = Path(directory)
    try:
        info = json.loads((directory / INFO_FILE).read_text(encoding="utf-8"))
        cls = KINDS[info["kind"]]
        options = dict(info["options"])
        extra_ids = options.pop("extra_ids", 0)
        tokenizer = cls._from_content((directory / cls.file_name).read_bytes(), options).with_extra_ids(extra_ids)
    except FileNotFoundError as error:
        raise UserError(f"{directory}: there is no tokenizer here ({error.filename} is missing).") from error
    except Exception as error:
        raise UserError(f"{directory}: the tokenizer cannot be read ({type(error).__name__}: {error}).") from error
    if tokenizer.fingerprint != info["fingerprint"]:
        raise UserError(f"{directory}: the tokenizer is not the one that was saved here (its file was changed).")
    return tokenizer
