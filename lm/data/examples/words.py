"""Tagging examples: sentences in which the first token of each word has the word's tag as its target.

Shape letters: E examples, T tokens of one of them, C labels, W words of all sentences, X sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from lm.config import Config
from lm.data.examples.example import Example
from lm.data.examples.labelled import LabelledExamples, Ragged, label_numbers, label_weights
from lm.data.reading.raw import Tagged
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.base import Tokenizer

# Characters of scripts that put no space between words: ideographs, kana, their punctuation and full-width letters.
_UNSPACED = ((0x2E80, 0x9FFF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF))


@dataclass(frozen=True)
class WordTokens:
    """The tokens of each word; no token belongs to two words."""

    words: Ragged  # W rows
    firsts_W: np.ndarray  # int32: first token that stands for a character of the word, not for space; -1 for none
    starts: np.ndarray  # int64 (X + 1,): first word of each sentence

    @classmethod
    def encode(cls, examples: Sequence[Tagged], tokenizer: Tokenizer) -> WordTokens:
        """Encodes each word with the space that a text has before it; between ideographs there is none."""
        space = _space_before_words(tokenizer)
        known: dict[tuple[bool, str], tuple[list[int], int]] = {}
        found = []
        for example in examples:
            before = ""
            for word in example.words:
                spaced = bool(space and before and not (_unspaced(before[-1]) and _unspaced(word[:1])))
                if (spaced, word) not in known:
                    known[spaced, word] = _encode_word(tokenizer, space if spaced else "", word)
                found.append(known[spaced, word])
                before = word or before
        starts = np.cumsum([0, *(len(each.words) for each in examples)], dtype=np.int64)
        return cls(Ragged.of(ids for ids, _ in found), np.array([first for _, first in found], np.int32), starts)

    @property
    def flat(self) -> list[np.ndarray]:
        """All tokens."""
        return [self.words.flat_N]


class TaggingExamples(LabelledExamples):
    """Tokens other than the first of a word have weight 0.

    A sentence that is too long becomes several examples, cut between words; a word that is too long itself is cut.
    """

    def __init__(self, store: ExampleStore, config: Config, tokenizer: Tokenizer, train: bool):
        super().__init__(store, config, tokenizer)
        assert isinstance(store.tokens, WordTokens), store.tokens
        self._tokens = store.tokens
        self._capacity = self._length - 2
        tags = [tag for example in store.raw if isinstance(example, Tagged) for tag in example.tags]
        self._targets_W = label_numbers(tags, config)
        self._weights_C = label_weights(config, store, train)
        self._sizes_W = np.minimum(self._tokens.words.lengths, self._capacity)
        cuts = [self._cut(*bounds) for bounds in pairwise(self._tokens.starts.tolist())]
        self.example_of = np.repeat(np.arange(len(cuts)), list(map(len, cuts)))
        self._bounds_E2 = np.array(list(chain.from_iterable(cuts)), np.int64)  # first word, and the one after the last
        ends_W = np.concatenate([[0], np.cumsum(self._sizes_W)])
        self._sizes = ends_W[self._bounds_E2[:, 1]] - ends_W[self._bounds_E2[:, 0]] + 2
        several = sum(len(cut) > 1 for cut in cuts)
        self._note_cut(several, len(cuts), "sentences are cut into several examples")
        self._note_cut(
            int(np.sum(self._tokens.words.lengths > self._capacity)),
            len(self._sizes_W),
            "words are longer than a row and were cut",
        )

    def _cut(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Returns the bounds of a sentence's examples, each of which has as many words as fit."""
        bounds, first, used = [], begin, 0
        for word in range(begin, end):
            size = int(self._sizes_W[word])
            if used + size > self._capacity:
                bounds.append((first, word))
                first, used = word, 0
            used += size
        return [*bounds, (first, end)]

    def word_indices(self, index: int) -> np.ndarray:
        """Returns the index of each word's first token, int64 (words of the example,); -1 for a word without one."""
        begin, end = self._bounds_E2[index]
        sizes, firsts = self._sizes_W[begin:end], self._tokens.firsts_W[begin:end].astype(np.int64)
        return np.where((firsts >= 0) & (firsts < sizes), 1 + np.cumsum(sizes) - sizes + firsts, -1)

    def make(self, epoch: int, index: int) -> Example:
        begin, end = map(int, self._bounds_E2[index])
        words = [self._tokens.words[word][: self._capacity] for word in range(begin, end)]
        example = self._example(np.concatenate([np.zeros(0, np.int32), *words]))
        indices = self.word_indices(index)
        targets = self._targets_W[begin:end][indices >= 0]
        example.targets_T[indices[indices >= 0]] = targets
        example.weights_T[indices[indices >= 0]] = self._weights_C[targets]
        return example


def _space_before_words(tokenizer: Tokenizer) -> str:
    """Returns the text to put before words so that they get the tokens that they have within a text.

    It is empty if the tokenizer itself puts a space before every text.
    """
    whole, first = tokenizer.encode("b a"), tokenizer.encode("b")
    by_itself = whole != first + tokenizer.encode(" a") and whole == first + tokenizer.encode("a")
    return "" if by_itself else " "


def _encode_word(tokenizer: Tokenizer, space: str, word: str) -> tuple[list[int], int]:
    ids, offsets = tokenizer.encode_with_offsets(space + word)
    return ids, next((index for index, (begin, end) in enumerate(offsets) if end > max(begin, len(space))), -1)


def _unspaced(character: str) -> bool:
    return bool(character) and any(low <= ord(character) <= high for low, high in _UNSPACED)
