"""Characters as tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lm.config import TokenizerConfig
from lm.data.tokenizing.base import UNK, Offsets, VocabularyTokenizer


class CharacterTokenizer(VocabularyTokenizer):
    """The characters of the training text, sorted by code point; others become `unk_id`."""

    kind = "characters"
    doc = "those of the training text"
    file_name = "characters.json"

    def __init__(self, vocabulary: Iterable[str]):
        super().__init__(sorted(set(vocabulary)))
        codes = np.array([ord(c) for c in self.vocabulary], np.int64)
        self._ids = np.full(int(codes.max(initial=-1)) + 2, UNK, np.int32)  # the last entry is for all codes beyond
        self._ids[codes] = np.arange(4, self.base_size)

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> CharacterTokenizer:
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return cls(characters)

    def encode(self, text: str) -> list[int]:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        return self._ids[np.minimum(codes, len(self._ids) - 1)].tolist()

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def _decode(self, ids: list[int]) -> str:
        return "".join("\ufffd" if i == UNK else self._piece(i) for i in ids)
