"""The tokenizer interface: encoding, decoding, saving and fingerprints.

Every tokenizer has a token that precedes a document (`bos_id`) and one that follows it (`eos_id`); `encode` adds
neither. Text is never encoded as one of these tokens or an extra id: "<s>" in a document is ordinary text. Padding is
marked by segments and weights, never by `pad_id` alone, so a tokenizer without a padding token uses 0 as `pad_id`.
"""

from __future__ import annotations

import abc
import copy
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lm.config import TokenizerConfig
from lm.errors import UserError
from lm.files import new_directory

INFO_FILE = "tokenizer_info.json"
Offsets = list[tuple[int, int]]
EXTRA_ID = re.compile(r"\s*<extra_id_([0-9]{1,9})>")
PAD, BOS, EOS, UNK = 0, 1, 2, 3  # ids in our own vocabularies; the byte tokenizer has no UNK


class Tokenizer(abc.ABC):
    """Base class of tokenizers, which are immutable. Class attributes describe the kind of tokenizer."""

    kind: ClassVar[str]  # value of data.tokenizer.kind
    doc: ClassVar[str]  # a line for `--help`
    learns: ClassVar[bool] = True  # whether `train` uses its texts
    file_type: ClassVar[str] = ""  # type of file that data.tokenizer.path may name, if any
    needs_file: ClassVar[bool] = False  # whether a file is required; the file may define its own mask and extra ids
    file_is_text: ClassVar[bool] = False  # whether that file is text
    option_names: ClassVar[tuple[str, ...]] = ()  # settings that its file does not store; also attribute names
    reads: ClassVar[tuple[str, ...]] = ()  # the kind-specific settings that it reads
    file_name: ClassVar[str]  # name of its only file besides tokenizer_info.json
    base_size: int  # vocabulary size without `extra_ids`
    extra_ids: int = 0  # number of tokens appended to the vocabulary; they stand for masked spans, not for text
    pad_id: int = PAD
    bos_id: int = BOS
    eos_id: int = EOS
    unk_id: int | None = None
    cuts_anywhere: bool = False  # whether text can be cut anywhere and encoded in parts without loss

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
        """Returns a tokenizer whose vocabulary is learnt from the texts. Raises UserError if this is impossible."""
        raise UserError(f"config.data.tokenizer.path: give the {cls.file_type} to load; this kind is not trained.")

    @property
    def vocab_size(self) -> int:
        return self.base_size + self.extra_ids

    def with_extra_ids(self, number: int) -> Tokenizer:
        """Returns a copy of the tokenizer with `number` extra ids."""
        extended = copy.copy(self)
        extended.extra_ids = number
        return extended

    @property
    def extra_tokens(self) -> Sequence[int]:
        """The ids of <extra_id_0>, <extra_id_1>, ...; by default, they descend from the last id (T5, Raffel 2020)."""
        return range(self.vocab_size - 1, self.base_size - 1, -1)

    def extra_id(self, number: int) -> int:
        """Returns the id of <extra_id_`number`>. Raises UserError if the tokenizer lacks this token."""
        count = len(self.extra_tokens)
        if not 0 <= number < count:
            raise UserError(
                f"config.data.tokenizer.extra_ids: <extra_id_{number}> is needed, but the tokenizer has {count} extra "
                "ids; increase this setting (which has no effect if a huggingface file defines its own extra ids)."
            )
        return self.extra_tokens[number]

    @property
    def mask_id(self) -> int:
        """The id of the mask token: the one in the file or else <extra_id_0>. Raises UserError if neither exists."""
        return self.extra_id(0)

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text, without special tokens."""

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_spelled(self, text: str) -> list[int]:
        """Encodes a source text in which a spelled-out <extra_id_N> stands for that token, as in T5.

        White space before <extra_id_N> belongs to the masked word and is dropped. Raises UserError if the tokenizer has
        no such token.
        """
        first, *rest = EXTRA_ID.split(text)
        ids = self.encode(first)
        for number, after in zip(rest[::2], rest[1::2], strict=True):
            ids += [self.extra_id(int(number)), *self.encode(after)]
        return ids

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Returns the ids of `encode` and, for each id, its character offsets in `text`: (begin, end), excluding end.

        If several tokens make up one character, each of them has the offsets of that character. A token that stands for
        nothing in `text`, such as a space that the tokenizer prepends, has an empty range: (i, i).
        """

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Returns the text of `ids`, which contain no special tokens."""

    def decode_each(self, batch: Sequence[list[int]]) -> Iterable[str]:
        """Decodes lists of ids that contain no special tokens. In some libraries, this is faster than `decode`."""
        return map(self._decode, batch)

    @abc.abstractmethod
    def _piece(self, token: int) -> str:
        """Returns the text of one ordinary token, or a printable placeholder for part of a character."""

    def _special(self) -> dict[int, str]:
        """Returns the printable names of the tokens that stand for no text, keyed by id."""
        return {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>"}

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, ignoring padding, BOS, EOS and extra ids. Invalid UTF-8 bytes become U+FFFD."""
        special, extra = self._special(), self.extra_tokens
        known = (i for i in map(int, ids) if 0 <= i < self.vocab_size)
        return self._decode([i for i in known if i not in special and i not in extra])

    def decode_spelled(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, with extra ids spelled out as <extra_id_N>."""
        texts: list[str] = []
        between: list[int] = []
        for token in map(int, ids):
            if token in self.extra_tokens:
                texts += [self.decode(between), self.piece(token)]
                between = []
            else:
                between.append(token)
        return "".join([*texts, self.decode(between)])

    def piece(self, token: int) -> str:
        """Returns the printable form of one token, for `lm.data.show`."""
        special = self._special()
        if token in special:
            return special[token]
        if token in self.extra_tokens:
            return f"<extra_id_{self.extra_tokens.index(token)}>"
        if not 0 <= token < self.vocab_size:
            return f"<{token}>"
        return self._piece(token).replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")

    def is_special(self, token: int) -> bool:
        """Returns whether a token stands for no text, such as BOS or EOS. (`pad_id` may be an ordinary token.)"""
        return token in self._special()

    @property
    def text_ids(self) -> np.ndarray:
        """int32, ascending: the ids of tokens that spell text, without special, extra, unknown and unused tokens."""
        return np.array([i for i in range(self.vocab_size) if self._is_text(i)], np.int32)

    def _is_text(self, token: int) -> bool:
        return not self.is_special(token) and token not in self.extra_tokens and token != self.unk_id

    @property
    def word_starts(self) -> np.ndarray:
        """bool (V,): whether a token begins a new word. (The first token of a text always does.)

        In most vocabularies, white space belongs to the word that follows it, so tokens with leading white space begin
        a word. If tokens contain no white space (WordPiece), tokens that continue a word are marked; others begin one.
        """
        tokens = range(self.vocab_size)
        return np.array([(self._is_text(i) or i == self.unk_id) and self._starts_word(i) for i in tokens], bool)

    def _starts_word(self, token: int) -> bool:
        return self._piece(token)[:1].isspace()

    @abc.abstractmethod
    def _content(self) -> bytes:
        """Returns the content of the tokenizer's file."""

    @classmethod
    def _from_content(cls, content: bytes, options: dict[str, Any]) -> Tokenizer:
        return cls(content, **options)  # type: ignore[call-arg]

    def _options(self) -> dict[str, Any]:
        # "extra_ids" is omitted if zero, so that fingerprints from before this setting existed stay valid.
        options = {name: getattr(self, name) for name in self.option_names}
        return options | ({"extra_ids": self.extra_ids} if self.extra_ids else {})

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines how text is tokenised."""
        head = json.dumps([self.kind, self._options()], sort_keys=True).encode()
        return hashlib.sha256(head + b"\0" + self._content()).hexdigest()

    def save(self, directory: Path | str) -> None:
        """Writes the tokenizer to `directory` atomically, replacing any old directory."""
        directory = Path(directory)
        with new_directory(directory) as temporary:
            (temporary / self.file_name).write_bytes(self._content())
            info = {name: getattr(self, name) for name in ("kind", "fingerprint", "vocab_size")}
            info["options"] = self._options()
            (temporary / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
            if directory.exists():
                shutil.rmtree(directory)


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of a run."""

    target: Tokenizer  # for the targets, or for all text
    source: Tokenizer  # for the sources of pairs; the same object unless data.separate_vocabularies is set
