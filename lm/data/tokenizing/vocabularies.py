"""Character and word tokenizers, whose vocabularies are taken from the training text."""

from __future__ import annotations

import collections
import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.config import TokenizerConfig
from lm.data.tokenizing import library
from lm.data.tokenizing.base import UNK, Offsets, Tokenizer
from lm.data.tokenizing.flat import Flat, framed
from lm.data.tokenizing.pieces import cut
from lm.errors import UserError
from lm.files import parse_json

WORD, WORD_OR_BREAK, LINE_BREAK = re.compile(r"\S+"), re.compile(r"\n|\S+"), r"\x{a}"


class VocabularyTokenizer(Tokenizer):
    """Base class for tokenizers whose vocabulary is four special tokens and a list of strings, saved as JSON."""

    unk_id = UNK

    def __init__(self, vocabulary: Sequence[str]):
        self.vocabulary = list(vocabulary)
        self.base_size = 4 + len(self.vocabulary)

    def _piece(self, token: int) -> str:
        return "<unk>" if token == UNK else self.vocabulary[token - 4]

    def _ids_in_library(self, names: Mapping[int, str]) -> dict[str, int]:
        special = {name: token for token, name in names.items() if token < 4}
        return special | {piece: token for token, piece in enumerate(self.vocabulary, start=4)}

    def _content(self) -> bytes:
        return json.dumps(self.vocabulary).encode()

    @classmethod
    def _from_content(cls, content: bytes, options: dict[str, Any]) -> Tokenizer:
        return cls(parse_json(content))


class CharacterTokenizer(VocabularyTokenizer):
    """Tokens are the characters of the training text, sorted by code point; other characters become `unk_id`."""

    kind = "characters"
    doc = "the characters of the training text"
    file_name = "characters.json"
    cuts_anywhere = True

    def __init__(self, vocabulary: Iterable[str]):
        super().__init__(sorted(set(vocabulary)))
        codes = np.array([ord(c) for c in self.vocabulary], np.int64)
        self._ids = np.full(
            int(codes.max(initial=-1)) + 2, UNK, np.int32
        )  # the last entry stands for all higher code points
        self._ids[codes] = np.arange(4, self.base_size)

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> CharacterTokenizer:
        return cls(itertools.chain.from_iterable(texts))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        codes = (np.frombuffer(text.encode("utf-32-le"), np.uint32) for text in texts)
        return [self._ids[np.minimum(each, len(self._ids) - 1)].tolist() for each in codes]

    def encode_documents(self, texts: Sequence[str]) -> Flat:
        codes_N = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        ids_N, lengths_E = self._ids[np.minimum(codes_N, len(self._ids) - 1)], np.array(list(map(len, texts)), np.int64)
        return framed(ids_N, lengths_E, self.start_id, self.eos_id)

    def changed(self, texts: Sequence[str], ids_N: np.ndarray, lengths_E: np.ndarray) -> np.ndarray:
        """See the base class. Unknown characters are decoded as U+FFFD, which is correct only for U+FFFD itself."""
        return super().changed(texts, ids_N, lengths_E) if np.any(ids_N == UNK) else np.zeros(len(texts), bool)

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def library_parts(self, names: Mapping[int, str]) -> dict[str, Any]:
        model = library.bpe(self._ids_in_library(names), unk_token=names[UNK])  # without merges
        return {"model": model, "decoder": {"type": "Fuse"}}

    def _decode(self, ids: list[int]) -> str:
        return "".join("\ufffd" if i == UNK else self._piece(i) for i in ids)


class WordTokenizer(VocabularyTokenizer):
    """Tokens are the most frequent words of the training text; other words become `unk_id`. Decoding inserts spaces.

    If the vocabulary contains the line break, each line break is a token. Otherwise, line breaks only separate words.
    """

    kind = "words"
    doc = "the words of the training text, split at whitespace"
    reads = ("vocab_size", "min_count", "line_breaks")
    file_name = "words.json"

    def __init__(self, vocabulary: Sequence[str]):
        super().__init__(vocabulary)
        self._ids = {word: number for number, word in enumerate(self.vocabulary, start=4)}
        self._pattern = WORD_OR_BREAK if "\n" in self._ids else WORD

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> WordTokenizer:
        """Returns a tokenizer with the most frequent words; ties are broken by code point.

        If `config.line_breaks` is set, the vocabulary includes the line break, however rare it is. Raises UserError if
        no word occurs at least `config.min_count` times, or if `config.line_breaks` is set but the text has no line
        break.
        """
        pattern = WORD_OR_BREAK if config.line_breaks else WORD
        counts = collections.Counter(word for text in texts for piece in cut(text) for word in pattern.findall(piece))
        words, breaks = [word for word in counts if word != "\n"], [word for word in counts if word == "\n"]
        if config.line_breaks and words and not breaks:
            problem = "the training text has no line breaks (perhaps each line is a document, or cleaning removes them)"
            raise UserError(f"config.data.tokenizer.line_breaks: {problem}; leave this setting at False.")
        kept = [word for word in words if counts[word] >= config.min_count]
        if words and not kept:
            most = max(counts[word] for word in words)
            raise UserError(
                f"config.data.tokenizer.min_count: no word in the training text occurs {config.min_count} or more "
                f"times; use at most {most}."
            )

        def rank(word: str) -> tuple[int, str]:
            return -counts[word], word

        kept = sorted(kept, key=rank)[: config.vocab_size - 4 - len(breaks)]
        return cls(sorted(breaks + kept, key=rank))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self._ids.get(word, UNK) for word in self._pattern.findall(text)] for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        return self.encode(text), [match.span() for match in self._pattern.finditer(text)]

    def library_parts(self, names: Mapping[int, str]) -> dict[str, Any]:
        model = {"type": "WordLevel", "vocab": self._ids_in_library(names), "unk_token": names[UNK]}
        # The library's definition of whitespace differs from Python's.
        spaces = "".join(f"\\x{{{code:x}}}" for code in range(sys.maxunicode + 1) if chr(code).isspace())
        steps = [library.split(f"[{spaces}]+", "Removed")]
        if self._pattern is WORD_OR_BREAK:
            steps = [library.split("\n"), library.split(f"[{spaces.replace(LINE_BREAK, '')}]+", "Removed")]
        return {"model": model, "pre_tokenizer": library.sequence("pretokenizers", steps)}

    def _decode(self, ids: list[int]) -> str:
        text = " ".join(self._piece(token) for token in ids)
        return re.sub(" ?\n ?", "\n", text) if self._pattern is WORD_OR_BREAK else text

    def _starts_word(self, token: int) -> bool:
        return True
