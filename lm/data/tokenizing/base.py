"""The protocol of tokenizers: text to ids and back, saved and fingerprinted.

Every tokenizer has a token before (`bos_id`) and after (`eos_id`) a document, which `encode` does not add. Text never
becomes one of them, nor an extra id: "<s>" in a document is ordinary text. Segments and weights mark padding, never
`pad_id` alone, so a vocabulary without a padding token uses 0.
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
PAD, BOS, EOS, UNK = 0, 1, 2, 3  # of the vocabularies that are made here; bytes have no UNK


class Tokenizer(abc.ABC):
    """Immutable. The class describes the kind of tokenizer."""

    kind: ClassVar[str]  # value of data.tokenizer.kind
    doc: ClassVar[str]  # a line for `--help`
    learns: ClassVar[bool] = True  # whether `train` reads its texts
    file_type: ClassVar[str] = ""  # the kind of file that data.tokenizer.path may name; empty for none
    needs_file: ClassVar[bool] = False  # whether it always comes from a file, which may have its own mask and extra ids
    option_names: ClassVar[tuple[str, ...]] = ()  # settings that its file does not hold; also attributes
    file_name: ClassVar[str]  # of its one file, beside tokenizer_info.json
    base_size: int  # of the vocabulary without `extra_ids`
    extra_ids: int = 0  # number of tokens added behind the vocabulary, which stand for masked spans and for no text
    pad_id: int = PAD
    bos_id: int = BOS
    eos_id: int = EOS
    unk_id: int | None = None

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
        """Returns a tokenizer with the vocabulary of the texts. Raises UserError if that is impossible."""
        raise UserError(f"config.data.tokenizer.path: name the {cls.file_type}: it is loaded, not trained.")

    @property
    def vocab_size(self) -> int:
        return self.base_size + self.extra_ids

    def with_extra_ids(self, number: int) -> Tokenizer:
        """Returns the same tokenizer with this number of extra ids."""
        extended = copy.copy(self)
        extended.extra_ids = number
        return extended

    @property
    def extra_tokens(self) -> Sequence[int]:
        """The ids of <extra_id_0>, <extra_id_1>, ...; if added, the first has the last id, as in T5 (Raffel 2020)."""
        return range(self.vocab_size - 1, self.base_size - 1, -1)

    def extra_id(self, number: int) -> int:
        """Returns the id of <extra_id_`number`>. Raises UserError if there is none."""
        count = len(self.extra_tokens)
        if not 0 <= number < count:
            raise UserError(
                f"config.data.tokenizer.extra_ids: <extra_id_{number}> is needed, and the tokenizer has {count} of "
                "them; set it to more (a huggingface file that has its own gets no others)."
            )
        return self.extra_tokens[number]

    @property
    def mask_id(self) -> int:
        """The token that replaces a masked one: the file's own mask, or <extra_id_0>. Raises UserError."""
        return self.extra_id(0)

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text, without any special token."""

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_spelled(self, text: str) -> list[int]:
        """Returns the ids of a source to generate from, in which <extra_id_N> stands for that token, as in T5.

        White space before it belongs to the masked word and is dropped. Raises UserError if there is no such token.
        """
        first, *rest = EXTRA_ID.split(text)
        ids = self.encode(first)
        for number, after in zip(rest[::2], rest[1::2], strict=True):
            ids += [self.extra_id(int(number)), *self.encode(after)]
        return ids

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Returns the ids of `encode` and, for each, the characters of `text` that it stands for: [first, last + 1).

        Each of several tokens of one character stands for it. A token that stands for nothing in the text, such as a
        space that is put before it, has an empty range: (i, i).
        """

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Returns the text of ids of which none is special."""

    @abc.abstractmethod
    def _piece(self, token: int) -> str:
        """Returns the text of one ordinary token, or a visible stand-in for part of a character."""

    def _special(self) -> dict[int, str]:
        """Returns the ids that stand for no text, with visible names."""
        return {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>"}

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, ignoring padding, bos, eos and extra ids. Bytes that are not UTF-8 become U+FFFD."""
        special, extra = self._special(), self.extra_tokens
        known = (i for i in map(int, ids) if 0 <= i < self.vocab_size)
        return self._decode([i for i in known if i not in special and i not in extra])

    def decode_spelled(self, ids: Iterable[int]) -> str:
        """Returns the same text with extra ids spelled as <extra_id_N>."""
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
        """Returns a visible form of one token, for `lm.data.show`."""
        special = self._special()
        if token in special:
            return special[token]
        if token in self.extra_tokens:
            return f"<extra_id_{self.extra_tokens.index(token)}>"
        if not 0 <= token < self.vocab_size:
            return f"<{token}>"
        return self._piece(token).replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")

    def is_special(self, token: int) -> bool:
        """Returns whether the token is bos, eos or another that stands for no text (padding may be ordinary text)."""
        return token in self._special()

    @property
    def text_ids(self) -> np.ndarray:
        """The tokens that spell text, int32, ascending: no special, extra, unknown or unused ones."""
        return np.array([i for i in range(self.vocab_size) if self._is_text(i)], np.int32)

    def _is_text(self, token: int) -> bool:
        return not self.is_special(token) and token not in self.extra_tokens and token != self.unk_id

    @property
    def word_starts(self) -> np.ndarray:
        """Bool (V,): whether a token begins a new word, unless it is the first of a text, which always does.

        In most vocabularies white space belongs to the word after it, so a token that begins with white space begins a
        word. If tokens hold no white space (WordPiece), those that continue a word are marked; all others begin one.
        """
        tokens = range(self.vocab_size)
        return np.array([(self._is_text(i) or i == self.unk_id) and self._starts_word(i) for i in tokens], bool)

    def _starts_word(self, token: int) -> bool:
        return self._piece(token)[:1].isspace()

    @abc.abstractmethod
    def _content(self) -> bytes:
        """Returns the content of its file."""

    @classmethod
    def _from_content(cls, content: bytes, options: dict[str, Any]) -> Tokenizer:
        return cls(content, **options)  # type: ignore[call-arg]

    def _options(self) -> dict[str, Any]:
        # No "extra_ids" without any: fingerprints stay what they were before this setting existed.
        options = {name: getattr(self, name) for name in self.option_names}
        return options | ({"extra_ids": self.extra_ids} if self.extra_ids else {})

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides how text is tokenised."""
        head = json.dumps([self.kind, self._options()], sort_keys=True).encode()
        return hashlib.sha256(head + b"\0" + self._content()).hexdigest()

    def save(self, directory: Path | str) -> None:
        """Writes the directory atomically, in place of an old one."""
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

    target: Tokenizer  # of the targets, or of all text
    source: Tokenizer  # of the sources of pairs; the same object unless data.separate_vocabularies
