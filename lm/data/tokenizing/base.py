"""What every tokenizer is, whatever its kind: text to ids and back, saved and fingerprinted.

Every tokenizer has a token before (`bos_id`) and after (`eos_id`) a document, which `encode` does not
add. Text never turns into them, nor into an extra id: "<s>" in a document is ordinary text. Padding is
marked by segments and weights, never by `pad_id` alone, so a vocabulary without a padding piece uses 0.
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
from typing import Any

import numpy as np

from lm.errors import UserError
from lm.files import new_directory

INFO_FILE = "tokenizer_info.json"
Offsets = list[tuple[int, int]]
EXTRA_ID = re.compile(r"\s*<extra_id_([0-9]{1,9})>")
PAD, BOS, EOS, UNK = 0, 1, 2, 3  # of the vocabularies that we make; bytes have no UNK


class Tokenizer(abc.ABC):
    """Immutable; `fingerprint` is a hash of everything that decides what it does."""

    kind: str
    file_name: str  # of its one file, beside tokenizer_info.json
    base_size: int  # size of the vocabulary without what `with_extra_ids` has put behind it
    extra_ids: int = 0
    pad_id: int = 0
    bos_id: int
    eos_id: int
    unk_id: int | None = None

    @property
    def vocab_size(self) -> int:
        return self.base_size + self.extra_ids

    def with_extra_ids(self, number: int) -> Tokenizer:
        """The same with so many tokens behind the vocabulary, which stand for masked spans and for no text."""
        extended = copy.copy(self)
        extended.extra_ids = number
        return extended

    @property
    def num_extra_ids(self) -> int:
        """How many there are, in whatever way."""
        return self.extra_ids

    def extra_id(self, number: int) -> int:
        """Id of <extra_id_`number`>. As in T5 (Raffel 2020) the first one is the very last of the vocabulary.

        Raises UserError if there are not so many.
        """
        if not 0 <= number < self.num_extra_ids:
            raise UserError(
                f"config.data.tokenizer.extra_ids: <extra_id_{number}> is needed, and the tokenizer has "
                f"{self.num_extra_ids} of them; set it to more (a huggingface file that has its own gets no others)."
            )
        return self._extra_id(number)

    def _extra_id(self, number: int) -> int:
        return self.vocab_size - 1 - number

    def _extra_number(self, token: int) -> int | None:
        """The inverse of `extra_id`; None for a token that is none of them."""
        return self.vocab_size - 1 - token if self.base_size <= token < self.vocab_size else None

    @property
    def mask_id(self) -> int:
        """The token put in the place of a hidden one: <extra_id_0>, or what a file has for it. Raises UserError."""
        return self.extra_id(0)

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids, with no special tokens added."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_spelled(self, text: str) -> list[int]:
        """The ids of a text in which <extra_id_N> stands for that token, as T5's sources have it: for generation.

        White space before one is dropped: it belongs to the word after it, which is what is hidden. Raises UserError
        for a number that there is not.
        """
        first, *rest = EXTRA_ID.split(text)
        ids = self.encode(first)
        for number, after in zip(rest[::2], rest[1::2], strict=True):
            ids += [self.extra_id(int(number)), *self.encode(after)]
        return ids

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """The ids of `encode`, and of each the characters of `text` that it stands for: [first, last + 1).

        Of a character that is several tokens each has the whole; a token that stands for nothing in the text, such
        as a space that is put before it, is empty: (i, i).
        """

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Text of ids among which there is no special token."""

    @abc.abstractmethod
    def _piece(self, token: int) -> str:
        """Text of one ordinary token, or a visible stand-in for part of a character."""

    @abc.abstractmethod
    def _content(self) -> bytes:
        """What is written to the file."""

    @classmethod
    @abc.abstractmethod
    def _from_content(cls, content: bytes, options: dict[str, Any]) -> Tokenizer:
        """The inverse of `_content` and `_options`."""

    def _options(self) -> dict[str, Any]:
        """Settings of this kind that the file does not hold."""
        return {}

    def _all_options(self) -> dict[str, Any]:
        """Without extra ids it is what it was before there were any, and so is the fingerprint."""
        return self._options() | ({"extra_ids": self.extra_ids} if self.extra_ids else {})

    def _special(self) -> dict[int, str]:
        """Ids that stand for no text, with visible names."""
        return {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>"}

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids without padding, bos, eos and extra ids. Bytes that are not UTF-8 become U+FFFD."""
        special = self._special()
        known = (i for i in map(int, ids) if 0 <= i < self.vocab_size)
        return self._decode([i for i in known if i not in special and self._extra_number(i) is None])

    def decode_spelled(self, ids: Iterable[int]) -> str:
        """The same with <extra_id_N> for these."""
        texts: list[str] = []
        between: list[int] = []
        for token in map(int, ids):
            number = self._extra_number(token)
            if number is None:
                between.append(token)
            else:
                texts += [self.decode(between), f"<extra_id_{number}>"]
                between = []
        return "".join([*texts, self.decode(between)])

    def is_special(self, token: int) -> bool:
        """Whether the id stands for no text, as bos and eos do; padding too, unless it is an ordinary token."""
        return token in self._special()

    def piece(self, token: int) -> str:
        """Visible form of one token, for `lm.data.show`."""
        special = self._special()
        if token in special:
            return special[token]
        if (number := self._extra_number(token)) is not None:
            return f"<extra_id_{number}>"
        if not 0 <= token < self.vocab_size:
            return f"<{token}>"
        return self._piece(token).replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")

    @property
    def text_ids(self) -> np.ndarray:
        """The tokens that spell text, int32, in order: none that is special, extra, unknown or not in use."""
        return np.array([i for i in range(self.vocab_size) if self._is_text(i)], np.int32)

    def _is_text(self, token: int) -> bool:
        return not self.is_special(token) and self._extra_number(token) is None and token != self.unk_id

    @property
    def word_starts(self) -> np.ndarray:
        """Bool (V,): whether a token begins a new word, as the first token of a text does in any case.

        White space belongs to the word after it, as in most vocabularies of pieces: a word begins with a token
        that begins with white space, and all tokens up to the next such are part of it. Where white space is
        no part of the text (WordPiece) tokens that continue a word are marked, and all others begin one.
        """
        tokens = range(self.vocab_size)
        return np.array([(self._is_text(i) or i == self.unk_id) and self._starts_word(i) for i in tokens], bool)

    def _starts_word(self, token: int) -> bool:
        return self._piece(token)[:1].isspace()

    @property
    def fingerprint(self) -> str:
        head = json.dumps([self.kind, self._all_options()], sort_keys=True).encode()
        return hashlib.sha256(head + b"\0" + self._content()).hexdigest()

    def save(self, directory: Path | str) -> None:
        """Writes the directory atomically, in place of an old one."""
        directory = Path(directory)
        with new_directory(directory) as temporary:
            (temporary / self.file_name).write_bytes(self._content())
            info = {
                "kind": self.kind,
                "fingerprint": self.fingerprint,
                "vocab_size": self.vocab_size,
                "options": self._all_options(),
            }
            (temporary / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
            if directory.exists():
                shutil.rmtree(directory)


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of a run."""

    target: Tokenizer  # of the targets, or of all text
    source: Tokenizer  # of the sources of pairs; the same object unless data.separate_vocabularies
