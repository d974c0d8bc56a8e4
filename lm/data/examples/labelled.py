"""Pieces that a task with labels is learnt from: `bos text eos`, or `bos A eos B eos` with types 0 and 1.

They are the same in every epoch. With `train` the weights are those of the labels (objective.class_weights or
balance_classes), else 1, so that the loss of an evaluation is that of the examples.

Shape letters: E pieces, T tokens of a piece, C labels, X examples.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.examples.example import Piece
from lm.data.examples.label_encoding import AnswerTokens, TextTokens, WordTokens
from lm.data.reading.labelled import Labelled, Question, Tagged
from lm.data.storing.label_store import LabelledStore
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError

SHORTEST = 8  # tokens: a pair's special tokens and some of each text
STARTS, ENDS = 1, 2  # targets of an answer's first and last token; 3 for both


class TaskPieces(abc.ABC):
    """Satisfies `lm.data.examples.example.Pieces`. It pickles without the texts of the store.

    Attributes: `example_of` int64 (E,), of which example of the store each piece is (a part); `notes`, what a
    person should know of how the examples were cut.
    """

    example_of: np.ndarray

    def __init__(self, store: LabelledStore, config: Config, tokenizer: Tokenizer):
        self.store = store
        self.notes: list[str] = []
        self._length = config.data.sequence_length
        self._bos, self._eos = tokenizer.bos_id, tokenizer.eos_id
        self._sizes = np.zeros(0, np.int64)
        if self._length < SHORTEST:
            raise UserError(
                f"config.data.sequence_length: {self._length} is too short for objective.name={config.objective.name}; "
                f"set it to {SHORTEST} or more."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "store": dataclasses.replace(self.store, raw=[])}

    def __len__(self) -> int:
        return len(self.example_of)

    def sizes(self, epoch: int) -> np.ndarray:
        """Tokens of each piece, int64 (E,)."""
        return self._sizes

    @abc.abstractmethod
    def make(self, epoch: int, index: int) -> Piece: ...

    def _piece(self, first: np.ndarray, second: np.ndarray | None, *, real_targets: bool = False) -> Piece:
        """Of one or two texts, nothing to predict yet."""
        parts: list[Any] = [[self._bos], first, [self._eos], *([] if second is None else [second, [self._eos]])]
        tokens_T = np.concatenate(parts).astype(np.int32)
        types_T = np.zeros(len(tokens_T), np.int32)
        types_T[len(first) + 2 :] = 1
        targets_T = np.zeros(len(tokens_T), np.float32 if real_targets else np.int32)
        return Piece(tokens_T, targets_T, np.zeros(len(tokens_T), np.float32), types_T)

    def _note_cut(self, number: int, total: int, what: str) -> None:
        if number:
            self.notes.append(f"{number:,} of {total:,} {what} (data.sequence_length={self._length})")


def label_weights(config: Config, store: LabelledStore, train: bool) -> np.ndarray:
    """float32 (C,), as data.labels. Balanced: n / (C n_c), by the labels of the whole split; 1 for one not there."""
    labels, counts = config.data.labels, store.label_counts
    if train and config.objective.class_weights:
        return np.array(config.objective.class_weights, np.float32)
    if train and config.objective.balance_classes:
        total = sum(counts.values())
        return np.array(
            [total / (len(labels) * counts.get(label, total / len(labels))) for label in labels], np.float32
        )
    return np.ones(len(labels), np.float32)


class TextPieces(TaskPieces):
    """Classification and regression. What is too long is cut at its end: of a pair the longer text, token by token."""

    def __init__(self, store: LabelledStore, config: Config, tokenizer: Tokenizer, train: bool):
        super().__init__(store, config, tokenizer)
        assert isinstance(store.tokens, TextTokens), store.tokens
        self._tokens = store.tokens
        self._at_end = config.model.pooling == "last"
        first, second = self._tokens.texts.lengths, np.zeros(len(self._tokens.texts), np.int64)
        if self._tokens.pairs is None:
            self._first = np.minimum(first, self._length - 2)
            self._second, special = second, 2
        else:
            second, special = self._tokens.pairs.lengths, 3
            room = self._length - 3
            self._second = np.minimum(second, np.maximum(room // 2, room - first))
            self._first = np.minimum(first, room - self._second)
        self._sizes = self._first + self._second + special
        self._note_cut(int(np.sum(self._sizes < first + second + special)), len(first), "texts are cut")
        self.example_of = np.arange(len(first))
        self._real = config.objective.name == "regression"
        labels = [example.label for example in store.raw if isinstance(example, Labelled)]
        if self._real:
            self._targets = np.array([float(label) for label in labels], np.float32)
            self._weights = np.ones(len(labels), np.float32)
        else:
            self._targets = _numbers_of(labels, config)
            self._weights = label_weights(config, store, train)[self._targets]

    def label_place(self, index: int) -> int:
        """The token of a piece whose logits are those of the text: the first, or with pooling=last the last."""
        return int(self._sizes[index]) - 1 if self._at_end else 0

    def make(self, epoch: int, index: int) -> Piece:
        first = self._tokens.texts[index][: self._first[index]]
        pairs = self._tokens.pairs
        second = None if pairs is None else pairs[index][: self._second[index]]
        piece = self._piece(first, second, real_targets=self._real)
        place = self.label_place(index)
        piece.targets_T[place] = self._targets[index]
        piece.weights_T[place] = self._weights[index]
        return piece


def _numbers_of(labels: list[str], config: Config) -> np.ndarray:
    """int32: the place of each label in data.labels, in which `label_store.build` has found them all."""
    numbers = {label: number for number, label in enumerate(config.data.labels)}
    return np.array([numbers[label] for label in labels], np.int32)


class WordPieces(TaskPieces):
    """Tagging: the first token of a word has its tag, the others weigh nothing.

    A sentence that is too long is several pieces, cut between words; a word that is too long itself is cut.
    """

    def __init__(self, store: LabelledStore, config: Config, tokenizer: Tokenizer, train: bool):
        super().__init__(store, config, tokenizer)
        assert isinstance(store.tokens, WordTokens), store.tokens
        self._tokens = store.tokens
        self._room = self._length - 2
        tags = [tag for example in store.raw if isinstance(example, Tagged) for tag in example.tags]
        self._targets_W = _numbers_of(tags, config)
        self._weights_C = label_weights(config, store, train)
        self._sizes_W = np.minimum(self._tokens.words.lengths, self._room)
        examples, bounds = [], []
        for example, (begin, end) in enumerate(zip(self._tokens.starts[:-1], self._tokens.starts[1:], strict=True)):
            for first, last in self._cut(int(begin), int(end)):
                examples.append(example)
                bounds.append((first, last))
        self.example_of = np.array(examples, np.int64)
        self._bounds_E2 = np.array(bounds, np.int64).reshape(-1, 2)  # first word, and the one after the last
        ends_W = np.concatenate([[0], np.cumsum(self._sizes_W)])
        self._sizes = ends_W[self._bounds_E2[:, 1]] - ends_W[self._bounds_E2[:, 0]] + 2
        several = len(np.unique(self.example_of[1:][np.diff(self.example_of) == 0]))
        self._note_cut(several, len(store.tokens.starts) - 1, "sentences are cut in several pieces")
        self._note_cut(
            int(np.sum(self._tokens.words.lengths > self._room)), len(self._sizes_W), "words are longer than a row: cut"
        )

    def _cut(self, begin: int, end: int) -> list[tuple[int, int]]:
        """As many words a piece as it can hold."""
        bounds, first, used = [], begin, 0
        for word in range(begin, end):
            size = int(self._sizes_W[word])
            if used + size > self._room:
                bounds.append((first, word))
                first, used = word, 0
            used += size
        return [*bounds, (first, end)]

    def first_word(self, index: int) -> int:
        """Number, in its sentence, of the piece's first word."""
        return int(self._bounds_E2[index, 0] - self._tokens.starts[self.example_of[index]])

    def word_places(self, index: int) -> np.ndarray:
        """int64 (words of the piece,): the place of each word's first token, -1 if it has none."""
        begin, end = self._bounds_E2[index]
        sizes, firsts = self._sizes_W[begin:end], self._tokens.firsts_W[begin:end].astype(np.int64)
        return np.where((firsts >= 0) & (firsts < sizes), 1 + np.cumsum(sizes) - sizes + firsts, -1)

    def make(self, epoch: int, index: int) -> Piece:
        begin, end = map(int, self._bounds_E2[index])
        words = [self._tokens.words[word][: self._room] for word in range(begin, end)]
        piece = self._piece(np.concatenate([np.zeros(0, np.int32), *words]), None)
        places = self.word_places(index)
        targets = self._targets_W[begin:end][places >= 0]
        piece.targets_T[places[places >= 0]] = targets
        piece.weights_T[places[places >= 0]] = self._weights_C[targets]
        return piece


class AnswerPieces(TaskPieces):
    """Questions: `bos question eos context eos`, for a long context in windows that overlap (Devlin 2019).

    A question has at most half of a row. Windows have data.context_overlap tokens in common, at most half of a
    window. A target is 1 at the answer's first token, 2 at its last, 3 where both are one, and weighs 1; that
    of a question without answer is 3 at bos in every window. An answer that is not whole in a window is not learnt
    there; with `train` such windows are left out. Of several answers the first that is where it says is learnt.
    """

    def __init__(self, store: LabelledStore, config: Config, tokenizer: Tokenizer, train: bool):
        super().__init__(store, config, tokenizer)
        assert isinstance(store.tokens, AnswerTokens), store.tokens
        self._tokens = store.tokens
        questions = self._tokens.questions
        self._question_X = np.minimum(questions.lengths, (self._length - 3) // 2)
        self._room_X = self._length - 3 - self._question_X
        self._stride_X = self._room_X - np.minimum(config.data.context_overlap, self._room_X // 2)
        self._context_X = self._tokens.contexts.lengths[self._tokens.context_of_E]
        self._windows_X = 1 + np.maximum(0, -(-(self._context_X - self._room_X) // self._stride_X))
        self._answer_X2 = np.array(
            [self._place_of(number, example) for number, example in enumerate(store.raw)], np.int64
        ).reshape(-1, 2)
        self.example_of = np.repeat(np.arange(len(questions)), self._windows_X)
        nth_E = np.arange(len(self.example_of)) - np.repeat(
            np.cumsum(self._windows_X) - self._windows_X, self._windows_X
        )
        self._start_E = nth_E * self._stride_X[self.example_of]
        self._end_E = np.minimum(self._start_E + self._room_X[self.example_of], self._context_X[self.example_of])
        first_E, last_E = self._answer_X2[self.example_of].T
        self._has_E = (first_E == UNANSWERABLE) | ((first_E >= self._start_E) & (last_E < self._end_E))
        if train:
            kept = self._has_E
            self.example_of, self._start_E, self._end_E, self._has_E = (
                each[kept] for each in (self.example_of, self._start_E, self._end_E, self._has_E)
            )
        self._sizes = self._question_X[self.example_of] + self._end_E - self._start_E + 3
        total = len(questions)
        self._note_cut(int(np.sum(questions.lengths > self._question_X)), total, "questions are cut")
        if train:
            learnt = len(np.unique(self.example_of))
            self._note_cut(total - learnt, total, "questions have no answer that is whole in a window: left out")

    def _place_of(self, number: int, example: Any) -> tuple[int, int]:
        """The first and the last token of the answer that is learnt."""
        assert isinstance(example, Question), example
        if not example.answers:
            return UNANSWERABLE, UNANSWERABLE
        _, offsets_T2 = self._tokens.context(number)
        for text, start in example.placed:
            if found := covering(offsets_T2, start, start + len(text)):
                return found
        return UNKNOWN, UNKNOWN

    def offsets(self, index: int) -> np.ndarray:
        """int64 (T, 2): the characters of the context that each token stands for, without white space at their ends.

        (-1, -1) outside of the context. An answer from token i to token j is context[offsets[i, 0] : offsets[j, 1]].
        """
        offsets_T2 = np.full((int(self._sizes[index]), 2), -1, np.int64)
        _, of_context = self._tokens.context(int(self.example_of[index]))
        offsets_T2[self._context_slice(index)] = of_context[self._start_E[index] : self._end_E[index]]
        return offsets_T2

    def most_context(self, index: int) -> np.ndarray:
        """bool (T,): whether, of all windows that hold it, this is the one where the token has most context.

        As Devlin 2019's code: the smaller of the tokens to the left and to the right, plus 0.01 times the window's
        size; the first window of equal ones. False outside of the context.
        """
        example = self.example_of[index]
        room, stride = int(self._room_X[example]), int(self._stride_X[example])
        starts = np.arange(self._windows_X[example])[:, None] * stride
        ends = np.minimum(starts + room, self._context_X[example])
        place = np.arange(self._start_E[index], self._end_E[index])[None]
        context = np.minimum(place - starts, ends - 1 - place)
        score = np.where(context >= 0, context + 0.01 * (ends - starts), -np.inf)
        best_T = np.zeros(int(self._sizes[index]), bool)
        best_T[self._context_slice(index)] = score.argmax(axis=0) == self._start_E[index] // stride
        return best_T

    def _context_slice(self, index: int) -> slice:
        """Of a piece."""
        return slice(int(self._question_X[self.example_of[index]]) + 2, int(self._sizes[index]) - 1)

    def make(self, epoch: int, index: int) -> Piece:
        example = int(self.example_of[index])
        start, end = int(self._start_E[index]), int(self._end_E[index])
        context, _ = self._tokens.context(example)
        question = self._tokens.questions[example][: self._question_X[example]]
        piece = self._piece(question, context[start:end])
        if self._has_E[index]:
            first, last = self._answer_X2[example]
            inside = len(question) + 2 - start
            first, last = (0, 0) if first == UNANSWERABLE else (first + inside, last + inside)
            piece.targets_T[first] |= STARTS
            piece.targets_T[last] |= ENDS
            piece.weights_T[[first, last]] = 1.0
        return piece


UNANSWERABLE, UNKNOWN = -1, -2  # in place of tokens: a question without answer, one whose answer is not found


def covering(offsets_T2: np.ndarray, begin: int, end: int) -> tuple[int, int] | None:
    """First and last of the tokens that hold a character from `begin` to `end`; None if there is none."""
    holds = (offsets_T2[:, 0] < end) & (offsets_T2[:, 1] > begin) & (offsets_T2[:, 0] < offsets_T2[:, 1])
    places = np.flatnonzero(holds)
    return (int(places[0]), int(places[-1])) if len(places) else None
