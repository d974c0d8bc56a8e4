"""Labelled examples: texts or pairs of texts with one label each, and sentences with a tag for each word.

The examples are the same in every epoch. In training, the weight of an example may depend on its label. In evaluations,
all weights are 1, so the loss is the mean over the examples.

E is the number of examples, T the number of tokens per example, C the number of labels, N the total number of tokens in
all texts, X the number of sentences, and W the total number of words in all sentences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.examples.example import Example, Examples, Joined, cut_notes
from lm.data.reading.readers import Labelled, Tagged
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.base import Tokenizer
from lm.data.tokenizing.special_tokens import SpecialTokens
from lm.errors import UserError

SHORTEST = 8  # minimum number of tokens per row: the special tokens of a pair and a few tokens of each text
TEXTS_AT_ONCE = 1024
# Scripts without spaces between words: ideographs, kana, their punctuation and full-width letters.
_UNSPACED = ((0x2E80, 0x9FFF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF))


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, stored as two flat arrays, which are cheap to send to another process."""

    flat_N: np.ndarray  # int32: all rows, concatenated
    starts: np.ndarray  # index in `flat_N` where each row starts, and the total length, int64 (rows + 1,)

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | np.ndarray]) -> Ragged:
        arrays = [np.asarray(row, np.int32) for row in rows]
        starts = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *arrays]), starts)

    @classmethod
    def encode(cls, tokenizer: Tokenizer, texts: Sequence[str]) -> Ragged:
        """Tokenises each text, without special tokens."""
        firsts = range(0, len(texts), TEXTS_AT_ONCE)
        return cls.of(row for i in firsts for row in tokenizer.encode_batch(texts[i : i + TEXTS_AT_ONCE]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat_N[self.starts[row] : self.starts[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """The length of each row, int64 (rows,)."""
        return np.diff(self.starts)


class Tokens:
    """Base class for the tokens of raw examples, which are stored in `Ragged` arrays."""

    @property
    def flat(self) -> list[np.ndarray]:
        """All tokens except special ones."""
        return [each.flat_N for each in vars(self).values() if isinstance(each, Ragged)]


class LabelledExamples(Examples):
    """Base class for the examples of all labelled tasks. The texts in the store are not pickled."""

    example_of: np.ndarray  # int64 (E,): index of the raw example from which each example is made

    def __init__(self, store: ExampleStore, config: Config, tokenizer: Tokenizer):
        self.store = store
        self.notes: list[str] = []
        self._length = config.data.sequence_length
        self._special = self.special(tokenizer)
        self._sizes = np.zeros(0, np.int64)
        if self._length < SHORTEST:
            raise UserError(
                f"config.data.sequence_length: {self._length} is too short for "
                f"objective.name='{config.objective.name}'; set it to {SHORTEST} or more."
            )

    @staticmethod
    def special(tokenizer: Tokenizer) -> SpecialTokens:
        """Returns the special tokens that are added to texts."""
        return tokenizer.special_tokens

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "store": dataclasses.replace(self.store, raw=[])}

    def __len__(self) -> int:
        return len(self.example_of)

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        return (self._sizes,)

    def _example(self, *texts: np.ndarray, targets: Any = np.int32) -> Example:
        """Returns an example of one or two texts with all weights set to 0. `targets` is the dtype of its targets."""
        tokens_T, types_T = self._special.frame(*texts)
        return Example(tokens_T, np.zeros(len(tokens_T), targets), np.zeros(len(tokens_T), np.float32), types_T)

    def _note_cut(self, number: int, total: int, what: str) -> None:
        self.notes += cut_notes(number, total, what, "sequence_length", self._length)


def label_weights(config: Config, store: ExampleStore, train: bool) -> np.ndarray:
    """Returns the weight of each label in data.labels, float32 (C,).

    The balanced weight of label c is n / (C * n_c), where n is the number of labels in the whole split and n_c the
    number of times that c occurs. If c does not occur, its weight is 1.
    """
    labels, counts = config.data.labels, store.label_counts
    if train and config.objective.class_weights:
        return np.array(config.objective.class_weights, np.float32)
    if train and config.objective.balance_classes:
        total, C = sum(counts.values()), len(labels)
        return np.array([total / (C * counts.get(label, total / C)) for label in labels], np.float32)
    return np.ones(len(labels), np.float32)


def label_numbers(labels: Sequence[str], config: Config) -> np.ndarray:
    """Returns the index of each label in data.labels, int32.

    The labels must already have been checked by `example_store.check_labels`.
    """
    numbers = {label: number for number, label in enumerate(config.data.labels)}
    return np.array([numbers[label] for label in labels], np.int32)


@dataclass(frozen=True)
class TextTokens(Tokens):
    """The tokens of texts, or of pairs of texts."""

    texts: Ragged  # E rows
    pairs: Ragged | None  # the second text of each pair, E rows

    @classmethod
    def encode(cls, examples: Sequence[Labelled], tokenizer: Tokenizer) -> TextTokens:
        texts = Ragged.encode(tokenizer, [each.text for each in examples])
        seconds = [each.pair for each in examples if each.pair is not None]
        assert len(seconds) in (0, len(examples)), "either all examples must be pairs or none"
        return cls(texts, Ragged.encode(tokenizer, seconds) if seconds else None)


class TextExamples(LabelledExamples):
    """Examples for classification or, if data.labels is empty, for regression, in which the labels are numbers.

    The label is the target of the last token if model.pooling is "last", and of the first token otherwise. A text that
    is too long is truncated at the end. If a pair is too long, tokens are removed one by one, always from the end of
    the text that is currently longer.
    """

    def __init__(self, store: ExampleStore, config: Config, tokenizer: Tokenizer, train: bool):
        super().__init__(store, config, tokenizer)
        self._tokens: TextTokens = store.tokens
        self._at_end = config.model.pooling == "last"
        first, pairs = self._tokens.texts.lengths, self._tokens.pairs
        second = np.zeros_like(first) if pairs is None else pairs.lengths
        special = (self._special.for_text if pairs is None else self._special.for_pair).num_special
        capacity = self._length - special
        self._second = np.minimum(second, np.maximum(capacity // 2, capacity - first))
        self._first = np.minimum(first, capacity - self._second)
        self._sizes = np.maximum(self._first + self._second + special, 1)
        self._note_cut(int(np.sum(self._sizes < first + second + special)), len(first), "texts are truncated")
        self.example_of = np.arange(len(first))
        labels = [example.label for example in store.raw if isinstance(example, Labelled)]
        if config.data.labels:
            self._targets = label_numbers(labels, config)
            self._weights = label_weights(config, store, train)[self._targets]
        else:
            self._targets = np.array([float(label) for label in labels], np.float32)
            self._weights = np.ones(len(labels), np.float32)

    def label_index(self, index: int) -> int:
        """Returns the index of the token that carries the label."""
        return int(self._sizes[index]) - 1 if self._at_end else 0

    def join(self, epoch: int, indices_E: np.ndarray) -> Joined | None:
        tokens = self._tokens.texts, self._tokens.pairs
        texts = [
            (each.flat_N, each.starts[indices_E], lengths[indices_E])
            for each, lengths in zip(tokens, (self._first, self._second), strict=True)
            if each is not None
        ]
        template = self._special.for_text if len(texts) == 1 else self._special.for_pair
        if not template.num_special:
            return None  # an empty text might become an empty example
        tokens_T, types_T, sizes_E = template.fill_all(*texts)
        targets_T, weights_T = np.zeros(len(tokens_T), self._targets.dtype), np.zeros(len(tokens_T), np.float32)
        at_E = np.cumsum(sizes_E) - (1 if self._at_end else sizes_E)
        targets_T[at_E], weights_T[at_E] = self._targets[indices_E], self._weights[indices_E]
        return Joined(Example(tokens_T, targets_T, weights_T, types_T), sizes_E, np.zeros(0, np.int64))

    def make(self, epoch: int, index: int) -> Example:
        texts = [self._tokens.texts[index][: self._first[index]]]
        if self._tokens.pairs is not None:
            texts.append(self._tokens.pairs[index][: self._second[index]])
        example, at = self._example(*texts, targets=self._targets.dtype), self.label_index(index)
        example.targets_T[at] = self._targets[index]
        example.weights_T[at] = self._weights[index]
        return example


@dataclass(frozen=True)
class WordTokens(Tokens):
    """The tokens of each word; no token belongs to two words."""

    words: Ragged  # W rows
    firsts_W: np.ndarray  # int32: index of the first token that contains a character of the word; -1 if none does
    starts: np.ndarray  # int64 (X + 1,): index of the first word of each sentence

    @classmethod
    def encode(cls, examples: Sequence[Tagged], tokenizer: Tokenizer) -> WordTokens:
        """Encodes each word with the space that precedes it in a text (there is none between ideographs)."""
        space = _space_before_words(tokenizer)
        known: dict[tuple[bool, str], tuple[list[int], int]] = {}
        found = []
        for example in examples:
            before = ""
            for word in example.words:
                spaced = bool(space and before and not (_unspaced(before[-1]) and _unspaced(word[:1])))
                if (spaced, word) not in known:
                    skipped = len(space) if spaced else 0
                    ids, offsets = tokenizer.encode_with_offsets(space * spaced + word)
                    firsts = (index for index, (begin, end) in enumerate(offsets) if end > max(begin, skipped))
                    known[spaced, word] = ids, next(firsts, -1)
                found.append(known[spaced, word])
                before = word or before
        starts = np.cumsum([0, *(len(each.words) for each in examples)], dtype=np.int64)
        return cls(Ragged.of(ids for ids, _ in found), np.array([first for _, first in found], np.int32), starts)


class TaggingExamples(LabelledExamples):
    """Examples for tagging. The tag of a word is the target of its first token; other tokens have weight 0.

    A sentence that is too long is split between words into several examples; a word longer than a row is truncated.
    """

    def __init__(self, store: ExampleStore, config: Config, tokenizer: Tokenizer, train: bool):
        super().__init__(store, config, tokenizer)
        self._tokens: WordTokens = store.tokens
        special = self._special.for_text.num_special
        self._capacity = self._length - special
        tags = [tag for example in store.raw if isinstance(example, Tagged) for tag in example.tags]
        self._targets_W = label_numbers(tags, config)
        self._weights_C = label_weights(config, store, train)
        self._sizes_W = np.minimum(self._tokens.words.lengths, self._capacity)
        cuts = [self._cut(*bounds) for bounds in pairwise(self._tokens.starts.tolist())]
        self.example_of = np.repeat(np.arange(len(cuts)), list(map(len, cuts)))
        self._bounds_E2 = np.array(list(chain.from_iterable(cuts)), np.int64)  # word indices [begin, end)
        ends_W = np.concatenate([[0], np.cumsum(self._sizes_W)])
        self._sizes = np.maximum(ends_W[self._bounds_E2[:, 1]] - ends_W[self._bounds_E2[:, 0]] + special, 1)
        num_words, too_long = len(self._sizes_W), int(np.sum(self._tokens.words.lengths > self._capacity))
        self._note_cut(sum(len(cut) > 1 for cut in cuts), len(cuts), "sentences are split into several examples")
        self._note_cut(too_long, num_words, "words are longer than a row and are truncated")
        if without := int(np.sum(self._tokens.firsts_W < 0)):
            counted = "count as O" if "O" in config.data.labels else "have no prediction, which counts as an error"
            self.notes.append(f"{without:,} of {num_words:,} words have no tokens; they {counted}")

    def _cut(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Splits a sentence into examples, each of which contains as many words as fit.

        Returns the word bounds of each example.
        """
        bounds, first, used = [], begin, 0
        for word in range(begin, end):
            size = int(self._sizes_W[word])
            if used + size > self._capacity:
                bounds.append((first, word))
                first, used = word, 0
            used += size
        return [*bounds, (first, end)]

    def word_indices(self, index: int) -> np.ndarray:
        """Returns the index of each word's first token, int64 (words,). The index of a word without tokens is -1."""
        begin, end = self._bounds_E2[index]
        sizes, firsts = self._sizes_W[begin:end], self._tokens.firsts_W[begin:end].astype(np.int64)
        before = self._special.for_text.num_before(0)
        return np.where((firsts >= 0) & (firsts < sizes), before + np.cumsum(sizes) - sizes + firsts, -1)

    def make(self, epoch: int, index: int) -> Example:
        begin, end = map(int, self._bounds_E2[index])
        words = [self._tokens.words[word][: self._capacity] for word in range(begin, end)]
        example = self._example(np.concatenate([np.zeros(0, np.int32), *words]))
        indices = self.word_indices(index)
        targets, indices = self._targets_W[begin:end][indices >= 0], indices[indices >= 0]
        example.targets_T[indices] = targets
        example.weights_T[indices] = self._weights_C[targets]
        return example


def _space_before_words(tokenizer: Tokenizer) -> str:
    """Returns the space to insert before words within a text, or "" if the tokenizer inserts the space itself."""
    whole, first = tokenizer.encode("b a"), tokenizer.encode("b")
    by_itself = whole != first + tokenizer.encode(" a") and whole == first + tokenizer.encode("a")
    return "" if by_itself else " "


def _unspaced(character: str) -> bool:
    return bool(character) and any(low <= ord(character) <= high for low, high in _UNSPACED)
