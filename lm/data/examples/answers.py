"""Question-answering examples, in which the answer is a span of the context (Devlin 2019).

E is the number of examples (windows), T the number of tokens per example, X the number of questions, U the number of
distinct contexts, and N the total number of tokens in all contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm.config import Config
from lm.data.examples.example import Example, numbered
from lm.data.examples.labelled import LabelledExamples, Ragged, Tokens
from lm.data.reading.readers import Question
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.base import Offsets, Tokenizer

STARTS, ENDS = 1, 2  # targets at the first and last token of an answer; 3 if the answer is a single token
UNANSWERABLE, UNKNOWN = -1, -2  # used in place of token indices if there is no answer or the answer was not found


@dataclass(frozen=True)
class AnswerTokens(Tokens):
    """The tokens of questions and of their contexts. A context shared by several questions is stored once."""

    questions: Ragged  # X rows
    contexts: Ragged  # U rows
    offsets_N2: np.ndarray  # int32: character offsets of each context token, excluding leading and trailing whitespace
    context_of_X: np.ndarray  # int64: index of each question's context

    @classmethod
    def encode(cls, examples: Sequence[Question], tokenizer: Tokenizer) -> AnswerTokens:
        numbers: dict[str, int] = {}
        context_of_X = np.array([numbers.setdefault(each.context, len(numbers)) for each in examples], np.int64)
        ids: list[list[int]] = []
        offsets: Offsets = []
        for context in numbers:
            tokens, spans = tokenizer.encode_with_offsets(context)
            ids.append(tokens)
            offsets += (trimmed(context, *span) for span in spans)
        questions = Ragged.encode(tokenizer, [each.question for each in examples])
        return cls(questions, Ragged.of(ids), np.array(offsets, np.int32).reshape(-1, 2), context_of_X)

    def context(self, question: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens (T,) of a question's context and their character offsets (T, 2)."""
        row = self.context_of_X[question]
        return self.contexts[row], self.offsets_N2[self.contexts.starts[row] : self.contexts.starts[row + 1]]


class AnswerExamples(LabelledExamples):
    """Question-answering examples. A long context is split into overlapping windows, one per example.

    A question occupies at most half of a row. Neighbouring windows overlap by data.context_overlap tokens, but by no
    more than half a window. The target is 1 at the first token of the answer and 2 at its last token, or 3 if the
    answer is a single token. A question without an answer has target 3 at the first token of every window. Targets 1, 2
    and 3 have weight 1. A window that does not contain the whole answer has no target and is omitted in training. If a
    question has several answers, the target is the first listed answer that occurs in the context.
    """

    def __init__(self, store: ExampleStore, config: Config, tokenizer: Tokenizer, train: bool):
        super().__init__(store, config, tokenizer)
        self._tokens: AnswerTokens = store.tokens
        questions, total, template = self._tokens.questions, len(store.raw), tokenizer.pair_template
        added, self._before = template.num_special, template.num_before(1)
        self._after = added - self._before
        self._question_X = np.minimum(questions.lengths, (self._length - added) // 2)
        self._capacity_X = self._length - added - self._question_X
        self._stride_X = self._capacity_X - np.minimum(config.data.context_overlap, self._capacity_X // 2)
        self._context_X = self._tokens.contexts.lengths[self._tokens.context_of_X]
        self._windows_X = 1 + np.maximum(0, -(-(self._context_X - self._capacity_X) // self._stride_X))
        self._answer_X2 = np.array(list(map(self._answer_of, range(total), store.raw)), np.int64)
        self.example_of, nth_E = numbered(self._windows_X)
        self._start_E = nth_E * self._stride_X[self.example_of]
        self._end_E = np.minimum(self._start_E + self._capacity_X[self.example_of], self._context_X[self.example_of])
        first_E, last_E = self._answer_X2[self.example_of].T
        self._has_E = (first_E == UNANSWERABLE) | ((first_E >= self._start_E) & (last_E < self._end_E))
        if train:
            every = self.example_of, self._start_E, self._end_E, self._has_E
            self.example_of, self._start_E, self._end_E, self._has_E = (each[self._has_E] for each in every)
        self._sizes = self._question_X[self.example_of] + self._end_E - self._start_E + added
        self._note_cut(int(np.sum(questions.lengths > self._question_X)), total, "questions are truncated")
        if train:
            lost = total - len(np.unique(self.example_of))
            self._note_cut(lost, total, "questions are omitted because no window contains their whole answer")

    def _answer_of(self, number: int, example: Question) -> tuple[int, int]:
        """Returns the indices of the target answer's first and last tokens, relative to the start of the context."""
        if not example.answers:
            return UNANSWERABLE, UNANSWERABLE
        _, offsets_T2 = self._tokens.context(number)
        for text, start in example.placed:
            if found := covering(offsets_T2, start, start + len(text)):
                return found
        return UNKNOWN, UNKNOWN

    def offsets(self, index: int) -> np.ndarray:
        """Returns each context token's character offsets, excluding leading and trailing whitespace, int64 (T, 2).

        Tokens outside the context have offsets (-1, -1). Tokens i to j span context[offsets[i, 0] : offsets[j, 1]].
        """
        offsets_T2 = np.full((int(self._sizes[index]), 2), -1, np.int64)
        _, of_context = self._tokens.context(int(self.example_of[index]))
        offsets_T2[self._context_slice(index)] = of_context[self._start_E[index] : self._end_E[index]]
        return offsets_T2

    def most_context(self, index: int) -> np.ndarray:
        """Returns, for each token, whether this window gives it more context than any other window does, bool (T,).

        As in BERT's code (Devlin 2019), windows are compared by a score: the number of context tokens to the left or to
        the right of the token, whichever is smaller, plus 0.01 times the size of the window. Ties go to the first
        window. The value is False for tokens outside the context.
        """
        example = self.example_of[index]
        capacity, stride = int(self._capacity_X[example]), int(self._stride_X[example])
        starts = np.arange(self._windows_X[example])[:, None] * stride
        ends = np.minimum(starts + capacity, self._context_X[example])
        token = np.arange(self._start_E[index], self._end_E[index])[None]
        context = np.minimum(token - starts, ends - 1 - token)
        score = np.where(context >= 0, context + 0.01 * (ends - starts), -np.inf)
        best_T = np.zeros(int(self._sizes[index]), bool)
        best_T[self._context_slice(index)] = score.argmax(axis=0) == self._start_E[index] // stride
        return best_T

    def _context_slice(self, index: int) -> slice:
        first = int(self._question_X[self.example_of[index]]) + self._before
        return slice(first, int(self._sizes[index]) - self._after)

    def make(self, epoch: int, index: int) -> Example:
        number = int(self.example_of[index])
        start, end = int(self._start_E[index]), int(self._end_E[index])
        context, _ = self._tokens.context(number)
        question = self._tokens.questions[number][: self._question_X[number]]
        example = self._example(question, context[start:end])
        if self._has_E[index]:
            answer_2 = self._answer_X2[number]
            first, last = (0, 0) if answer_2[0] == UNANSWERABLE else answer_2 - start + len(question) + self._before
            example.targets_T[first] |= STARTS
            example.targets_T[last] |= ENDS
            example.weights_T[[first, last]] = 1.0
        return example


def trimmed(text: str, begin: int, end: int) -> tuple[int, int]:
    """Returns the offsets of text[begin:end].strip(), or (begin, end) if text[begin:end] is only whitespace."""
    part = text[begin:end]
    if not part or part.isspace():
        return begin, end
    return begin + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


def covering(offsets_T2: np.ndarray, begin: int, end: int) -> tuple[int, int] | None:
    """Returns the indices of the first and last tokens that overlap text[begin:end], or None if there are none."""
    holds = (offsets_T2[:, 0] < end) & (offsets_T2[:, 1] > begin) & (offsets_T2[:, 0] < offsets_T2[:, 1])
    indices = np.flatnonzero(holds)
    return (int(indices[0]), int(indices[-1])) if len(indices) else None
