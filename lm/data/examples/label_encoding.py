"""Labelled examples as tokens, in a few flat arrays each, which cost little to send to another process.

Shape letters: E examples, U different contexts, W words of all examples, N tokens of all that an array holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lm.data.reading.labelled_base import Labelled, Question, Tagged
from lm.data.tokenizing.base import Offsets, Tokenizer

TEXTS_AT_ONCE = 1024
# Scripts that put no space between words: ideographs, kana, their punctuation and their wide letters.
_UNSPACED = ((0x2E80, 0x9FFF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF))


@dataclass(frozen=True)
class Ragged:
    """Rows of different length, one after the other."""

    flat_N: np.ndarray  # int32
    starts: np.ndarray  # int64 (rows + 1,)

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> Ragged:
        arrays = [np.asarray(row, np.int32) for row in rows]
        starts = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(each) for each in arrays], out=starts[1:])
        return cls(np.concatenate([np.zeros(0, np.int32), *arrays]), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat_N[self.starts[row] : self.starts[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 (rows,)."""
        return np.diff(self.starts)


@dataclass(frozen=True)
class TextTokens:
    """Texts, or pairs of them."""

    texts: Ragged  # E rows
    pairs: Ragged | None  # E rows

    @classmethod
    def encode(cls, examples: Sequence[Labelled], tokenizer: Tokenizer) -> TextTokens:
        texts = Ragged.of(_encode(tokenizer, [each.text for each in examples]))
        seconds = [each.pair for each in examples if each.pair is not None]
        assert len(seconds) in (0, len(examples)), "either all are pairs or none"
        return cls(texts, Ragged.of(_encode(tokenizer, seconds)) if seconds else None)

    @property
    def flat(self) -> list[np.ndarray]:
        """All tokens."""
        return [self.texts.flat_N, *([self.pairs.flat_N] if self.pairs else [])]


@dataclass(frozen=True)
class WordTokens:
    """Each word's own tokens: no token is shared by two words."""

    words: Ragged  # W rows
    firsts_W: np.ndarray  # int32: the first token that stands for a character of the word, not for space; -1 for none
    starts: np.ndarray  # int64 (E + 1,): first word of each example

    @classmethod
    def encode(cls, examples: Sequence[Tagged], tokenizer: Tokenizer) -> WordTokens:
        """With the space before a word that a text has there; between two ideographs it has none."""
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
        starts = np.zeros(len(examples) + 1, np.int64)
        np.cumsum([len(each.words) for each in examples], out=starts[1:])
        return cls(Ragged.of(ids for ids, _ in found), np.array([first for _, first in found], np.int32), starts)

    @property
    def flat(self) -> list[np.ndarray]:
        return [self.words.flat_N]


@dataclass(frozen=True)
class AnswerTokens:
    """Questions, and the texts they are about, each of which is kept once."""

    questions: Ragged  # E rows
    contexts: Ragged  # U rows
    offsets_N2: np.ndarray  # int32: of each token of all contexts its characters, without white space at the ends
    context_of_E: np.ndarray  # int64

    @classmethod
    def encode(cls, examples: Sequence[Question], tokenizer: Tokenizer) -> AnswerTokens:
        places: dict[str, int] = {}
        context_of_E = np.array([places.setdefault(each.context, len(places)) for each in examples], np.int64)
        ids: list[list[int]] = []
        offsets: Offsets = []
        for context in places:
            tokens, spans = tokenizer.encode_with_offsets(context)
            ids.append(tokens)
            offsets += (trimmed(context, *span) for span in spans)
        questions = Ragged.of(_encode(tokenizer, [each.question for each in examples]))
        return cls(questions, Ragged.of(ids), np.array(offsets, np.int32).reshape(-1, 2), context_of_E)

    @property
    def flat(self) -> list[np.ndarray]:
        return [self.questions.flat_N, self.contexts.flat_N]

    def context(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (T,) and characters (T, 2) of an example's context."""
        row = self.context_of_E[example]
        return self.contexts[row], self.offsets_N2[self.contexts.starts[row] : self.contexts.starts[row + 1]]


def trimmed(text: str, begin: int, end: int) -> tuple[int, int]:
    """A range of characters without the white space at its ends, unless there is nothing else in it."""
    part = text[begin:end]
    if not part or part.isspace():
        return begin, end
    return begin + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        yield from tokenizer.encode_batch(texts[first : first + TEXTS_AT_ONCE])


def _space_before_words(tokenizer: Tokenizer) -> str:
    """What words are encoded with so that their tokens are those they have in a text.

    Empty for a tokenizer that puts a space before every text by itself.
    """
    whole, first = tokenizer.encode("b a"), tokenizer.encode("b")
    by_itself = whole != first + tokenizer.encode(" a") and whole == first + tokenizer.encode("a")
    return "" if by_itself else " "


def _encode_word(tokenizer: Tokenizer, space: str, word: str) -> tuple[list[int], int]:
    ids, offsets = tokenizer.encode_with_offsets(space + word)
    return ids, next((place for place, (begin, end) in enumerate(offsets) if end > max(begin, len(space))), -1)


def _unspaced(character: str) -> bool:
    return bool(character) and any(low <= ord(character) <= high for low, high in _UNSPACED)
