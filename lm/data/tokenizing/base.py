"""The tokenizer interface: encoding, decoding, saving and fingerprints.

Every tokenizer has a token that precedes each document (`start_id`) and a token that follows it (`eos_id`). `encode`
adds neither of them. Text is never encoded as a BOS token, an EOS token or an extra id: "<s>" in a document is ordinary
text. Only `encode_rendered` recognises special tokens. Padding is identified by its segments and weights, not by
`pad_id`. Therefore, a tokenizer without a padding token can use 0 as `pad_id`.
"""

from __future__ import annotations

import abc
import copy
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lm.config import TokenizerConfig
from lm.data.tokenizing.flat import Flat, flat_of, framed, rows_of
from lm.data.tokenizing.special_tokens import SpecialTokens, Template
from lm.errors import UserError
from lm.files import new_directory

INFO_FILE = "tokenizer_info.json"
Offsets = list[tuple[int, int]]
EXTRA_ID = re.compile(r"\s*<extra_id_([0-9]{1,9})>")
PAD, BOS, EOS, UNK = 0, 1, 2, 3  # ids in our own vocabularies; the byte tokenizer has no UNK


class Tokenizer(abc.ABC):
    """Base class for tokenizers, which are immutable. Class attributes describe the kind of tokenizer."""

    kind: ClassVar[str]  # the value of data.tokenizer.kind
    doc: ClassVar[str]  # the description for `--help`
    learns: ClassVar[bool] = True  # whether `train` uses its texts
    file_type: ClassVar[str] = ""  # the type of file that data.tokenizer.path may name; "" if none
    needs_file: ClassVar[bool] = False  # whether a file is required (it may define a mask token and extra ids)
    file_is_text: ClassVar[bool] = False  # whether the file named by data.tokenizer.path is text
    reads: ClassVar[tuple[str, ...]] = ()  # the kind-specific settings that the tokenizer reads
    published_class: ClassVar[str] = "PreTrainedTokenizerFast"  # the corresponding class in `transformers`
    file_name: ClassVar[str]  # name of the only file that is saved besides tokenizer_info.json
    base_size: int  # vocabulary size without the extra ids
    extra_ids: int = 0  # number of tokens appended to the vocabulary; they stand for masked spans, not for text
    special_tokens: SpecialTokens = SpecialTokens(BOS, EOS)
    pad_id: int = PAD
    unk_id: int | None = None
    cuts_anywhere: bool = False  # whether text can be cut anywhere and encoded in parts without loss

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
        """Returns a tokenizer whose vocabulary is learnt from the texts. Raises UserError if training is impossible."""
        raise UserError(
            f"config.data.tokenizer.path: give the {cls.file_type} to load; this kind of tokenizer cannot be trained."
        )

    @classmethod
    def load(cls, path: Path, content: bytes, config: TokenizerConfig) -> Tokenizer:
        """Returns a tokenizer from the content of the file named by config.path.

        Raises an error if the content is invalid.
        """
        return cls._from_content(content, {})

    @property
    def bos_id(self) -> int | None:
        """The id of the token that precedes each text, or None if texts are not preceded by a token."""
        return self.special_tokens.bos

    @property
    def eos_id(self) -> int:
        return self.special_tokens.eos

    @property
    def start_id(self) -> int:
        """The id of the token that precedes each document: BOS, or EOS if there is no BOS."""
        return self.special_tokens.start

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that end a generated text, starting with EOS."""
        return self.special_tokens.stops

    @property
    def decoder_start_id(self) -> int:
        """The id of the token that precedes the target in the decoder's input, in an encoder-decoder."""
        return self.special_tokens.decoder_start

    @property
    def forced_first_id(self) -> int | None:
        """The id of the token with which every output of an encoder-decoder begins, or None."""
        return self.special_tokens.forced_first

    @property
    def text_template(self) -> Template:
        return self.special_tokens.for_text

    @property
    def pair_template(self) -> Template:
        return self.special_tokens.for_pair

    @property
    def source_template(self) -> Template:
        return self.special_tokens.for_source

    @property
    def target_template(self) -> Template:
        return self.special_tokens.for_target

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that renders conversations for this tokenizer, or None."""
        return self.special_tokens.chat_template

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
        """The ids of <extra_id_0>, <extra_id_1>, ... By default, they count down from the last id (Raffel 2020)."""
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
        """The id of the mask token, or of <extra_id_0> if there is none. Raises UserError if neither exists."""
        return self.extra_id(0)

    @property
    def for_sources(self) -> Tokenizer:
        """The tokenizer for the sources of an encoder-decoder whose sides share one vocabulary."""
        return self

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text, without special tokens."""

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_documents(self, texts: Sequence[str]) -> Flat:
        """Returns the ids of `start text eos` for all texts, int32 (N,), and the number of ids per text, int64 (E,)."""
        return framed(*flat_of(self.encode_batch(texts)), self.start_id, self.eos_id)

    def changed(self, texts: Sequence[str], ids_N: np.ndarray, lengths_E: np.ndarray) -> np.ndarray:
        """Returns, for each text, whether decoding the result of `encode_documents` fails to restore it, bool (E,).

        If encoding loses case, whitespace or unknown words, the probability of the tokens is not the probability of the
        text.
        """
        found = self.decode_each([ids[1:-1] for ids in rows_of(ids_N, lengths_E)])
        return np.array([text != each for text, each in zip(texts, found, strict=True)], bool)

    def encode_spelled(self, text: str) -> list[int]:
        """Encodes a source text. Each <extra_id_N> in the text is encoded as the token with this name, as in T5.

        Whitespace before <extra_id_N> belongs to the masked word and is dropped. Raises UserError if the tokenizer
        lacks one of the extra ids.
        """
        first, *rest = EXTRA_ID.split(text)
        ids = self.encode(first)
        for number, after in zip(rest[::2], rest[1::2], strict=True):
            ids += [self.extra_id(int(number)), *self.encode(after)]
        return ids

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Returns the same ids as `encode` and their character offsets in `text`: (begin, end), where end is exclusive.

        If several tokens make up one character, each token has the offsets of that character. A token without a
        counterpart in `text`, such as a space that the tokenizer prepends, has an empty range: (i, i).
        """

    def encode_rendered(self, text: str) -> tuple[list[int], Offsets]:
        """Encodes a rendered chat template, in which the names of special tokens stand for the tokens themselves.

        Never pass users' text to this method, except as part of a rendered template. Returns ids and offsets as
        `encode_with_offsets` does.
        """
        special = self.special_spellings
        spellings = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        ids: list[int] = []
        offsets: Offsets = []
        begin = 0
        for part in re.split(f"({spellings})", text):
            found, spans = ([special[part]], [(0, len(part))]) if part in special else self.encode_with_offsets(part)
            ids += found
            offsets += [(begin + first, begin + end) for first, end in spans]
            begin += len(part)
        return ids, offsets

    @property
    def special_spellings(self) -> Mapping[str, int]:
        """The ids of the special tokens that `encode_rendered` recognises, keyed by their names."""
        return {name: token for token, name in self._special().items()}

    @property
    def template_variables(self) -> Mapping[str, str]:
        """The variables for special tokens that chat templates read, such as `eos_token`."""
        special, names = self._special(), self.special_tokens.names
        bos = {} if names or self.bos_id is None else {"bos_token": special[self.bos_id]}
        return {"eos_token": special[self.eos_id], **bos, **names}

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Decodes `ids`, which must not contain special tokens."""

    def decode_each(self, batch: Sequence[list[int]]) -> Iterable[str]:
        """Decodes lists of ids, which must not contain special tokens. Some libraries decode batches faster."""
        return map(self._decode, batch)

    @abc.abstractmethod
    def _piece(self, token: int) -> str:
        """Returns the text of one ordinary token, or a printable placeholder for part of a character."""

    def _special(self) -> dict[int, str]:
        """Returns the printable names of the tokens that do not represent text, keyed by id."""
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
        """Returns whether a token, such as BOS or EOS, does not represent text. (`pad_id` may be an ordinary token.)"""
        return token in self._special()

    @property
    def text_ids(self) -> np.ndarray:
        """int32: the ids of tokens that spell text, in ascending order. Special and unknown tokens are omitted."""
        return np.array([i for i in range(self.vocab_size) if self._is_text(i)], np.int32)

    def _is_text(self, token: int) -> bool:
        return not self.is_special(token) and token not in self.extra_tokens and token != self.unk_id

    @property
    def word_starts(self) -> np.ndarray:
        """bool (vocab_size,): whether each token begins a new word. The first token of a text always begins a word.

        In most vocabularies, whitespace belongs to the word that follows it, so tokens with leading whitespace begin
        a word. WordPiece tokens contain no whitespace; those without the continuation prefix begin a word.
        """
        tokens = range(self.vocab_size)
        return np.array([(self._is_text(i) or i == self.unk_id) and self._starts_word(i) for i in tokens], bool)

    def _starts_word(self, token: int) -> bool:
        return self._piece(token)[:1].isspace()

    def own_files(self) -> Mapping[str, bytes]:
        """Returns the files, if any, that the `transformers` class named by `published_class` reads."""
        return {}

    def library_parts(self, names: Mapping[int, str]) -> Mapping[str, Any]:
        """Returns the parts of a tokenizer.json file that yields the same ids as `encode` (see `library.build`).

        These are the model and, if needed, the normalizer, the pre-tokenizer, the decoder, added tokens, and the steps
        of the post-processor that add no tokens. `names` maps the ids of the special tokens to their names. Raises
        UserError with the reason if the format cannot represent the tokenizer.
        """
        raise UserError(f"tokenizer.json cannot represent a {self.kind} tokenizer.")

    @abc.abstractmethod
    def _content(self) -> bytes:
        """Returns the content of the tokenizer's file."""

    @classmethod
    def _from_content(cls, content: bytes, options: dict[str, Any]) -> Tokenizer:
        return cls(content, **options)  # type: ignore[call-arg]

    def _options(self) -> dict[str, Any]:
        """Returns the JSON values that `_from_content` needs, in addition to the file, to restore the tokenizer."""
        # "extra_ids" is omitted if it is 0, so that fingerprints from before this setting existed stay valid.
        return {"extra_ids": self.extra_ids} if self.extra_ids else {}

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines how text is tokenised."""
        head = json.dumps([self.kind, self._options()], sort_keys=True).encode()
        return hashlib.sha256(head + b"\0" + self._content()).hexdigest()

    def has_file_of(self, other: Tokenizer) -> bool:
        """Returns whether both tokenizers have the same kind and the same file content."""
        return self.kind == other.kind and self._content() == other._content()

    def save(self, directory: Path | str) -> None:
        """Writes the tokenizer to `directory` atomically, replacing any existing directory."""
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

    target: Tokenizer  # for the target texts of pairs, or for all texts
    source: Tokenizer  # for the source texts; `target.for_sources` unless data.separate_vocabularies is set
