"""Words between white space as tokens."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence

from lm.config import TokenizerConfig
from lm.data.tokenizing.base import UNK, Offsets, VocabularyTokenizer


class WordTokenizer(VocabularyTokenizer):
    """The most frequent words of the training text, as white space separates them; others become `unk_id`.

    For artificial languages and word models. Text is decoded with single spaces between its words.
    """

    kind = "words"
    doc = "those of the training text, between white space"
    file_name = "words.json"

    def __init__(self, vocabulary: Sequence[str]):
        super().__init__(vocabulary)
        self._ids = {word: number for number, word in enumerate(self.vocabulary, start=4)}

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> WordTokenizer:
        """Equally frequent words are taken in the order of their code points."""
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            counts.update(text.split())
        return cls(sorted(counts, key=lambda word: (-counts[word], word))[: config.vocab_size - 4])

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(word, UNK) for word in text.split()]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        return self.encode(text), [match.span() for match in re.finditer(r"\S+", text)]

    def _decode(self, ids: list[int]) -> str:
        return " ".join(self._piece(token) for token in ids)

    def _starts_word(self, token: int) -> bool:
        return True
