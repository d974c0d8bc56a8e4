"""Multiple choice: select the candidate that answers a question or continues a text (SWAG, HellaSwag, ARC, RACE).

Each candidate is combined with the question into a segment, with the special tokens of a pair of texts. All segments of
a question are in one row.

The model assigns each candidate a score, and a softmax over the candidates of a question turns the scores into
probabilities (Devlin 2019, section 4.4). Questions may have different numbers of candidates.

E is the number of questions, and N is the number of candidates per question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from lm.batch import Batch, Output
from lm.config import Config, ObjectiveConfig, SourceConfig
from lm.data.examples.example import Example
from lm.data.examples.labelled import SHORTEST, LabelledExamples, Ragged, Tokens
from lm.data.reading.fields import Record, as_list, as_text, index_of, label_text
from lm.data.reading.format import Reader
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError
from lm.evaluation.baselines.baseline import Baseline
from lm.evaluation.baselines.choices import LongestCandidate, RandomCandidate
from lm.evaluation.metric import finite_or_none
from lm.evaluation.prediction_evaluator import Predictions, whole_examples
from lm.objectives.losses import LossSums, choice_loss
from lm.tasks.labelled import LabelledTask
from lm.tasks.task import Refuse

# Bit flags in targets: CANDIDATE marks tokens that carry scores, and FIRST marks the first candidate of each question.
CANDIDATE, FIRST = 1, 2


@dataclass(frozen=True)
class Choice:
    """A raw example: a question, its candidates and the index of the correct one."""

    question: str
    candidates: tuple[str, ...]
    right: int

    labels = ()

    @property
    def key(self) -> str:
        return self.question

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.question, *self.candidates)


class ChoiceInput(Reader):
    """Reads questions and their candidates (at least two per question), but not the correct answers."""

    kind = "choices"
    needs = ("pair_field", "name the field that holds the list of candidates.")
    settings: ClassVar[tuple[str, ...]] = ("pair_field",)
    roles: ClassVar = {"question": "field", "candidates": "pair_field"}

    def example(self, record: Record, where: str) -> Choice:
        listed = self.fields["candidates"]
        values = as_list(listed.value(record, where), listed.spec, where)
        candidates = tuple(as_text(value, listed.spec, where) for value in values)
        if len(candidates) < 2:
            raise UserError(f"{where}: field {listed.spec!r} must hold at least two candidates, not {len(candidates)}.")
        return Choice(self.fields["question"].text(record, where), candidates, right=0)


class ChoiceReader(ChoiceInput):
    """Reads questions and candidates. The correct candidate is given as a zero-based index, a text or a label name."""

    needs = ("label_field", "name the field that holds the correct candidate.")
    settings = ("pair_field", "label_field")
    roles: ClassVar = {**ChoiceInput.roles, "answer": "label_field"}

    def example(self, record: Record, where: str) -> Choice:
        choice, answer = super().example(record, where), self.fields["answer"]
        value = answer.value(record, where)
        found = self._indices(value, choice.candidates, where)
        if len(found) != 1:
            raise UserError(
                f"{where}: field {answer.spec!r} is {value!r:.60}, which does not identify one of the "
                f"{len(choice.candidates)} candidates; use a zero-based index or the candidate itself, or set "
                "label_names."
            )
        return dataclasses.replace(choice, right=found.pop())

    def _indices(self, value: Any, candidates: Sequence[str], where: str) -> set[int]:
        """Returns the indices of all candidates that a value may denote; for example, "2" may be an index or a text."""
        name, found = self.fields["answer"].spec, set()
        if self.config.label_names:
            index = index_of(label_text(value, name, where), self.config.label_names)
            return set() if index is None or index >= len(candidates) else {index}
        if isinstance(value, (bytes, str)):
            text = as_text(value, name, where).strip()
            found = {index for index, candidate in enumerate(candidates) if candidate.strip() == text}
        if (label := label_text(value, name, where)).isdecimal() and int(label) < len(candidates):
            found.add(int(label))
        return found


@dataclass(frozen=True)
class ChoiceTokens(Tokens):
    questions: Ragged  # the tokens of each question
    candidates: Ragged  # the tokens of each candidate of all questions
    firsts: np.ndarray  # int64 (E + 1,): index of the first candidate of each question

    @classmethod
    def encode(cls, examples: Sequence[Choice], tokenizer: Tokenizer) -> ChoiceTokens:
        return cls(
            Ragged.encode(tokenizer, [each.question for each in examples]),
            Ragged.encode(tokenizer, [candidate for each in examples for candidate in each.candidates]),
            np.cumsum([0, *(len(each.candidates) for each in examples)], dtype=np.int64),
        )


class ChoiceExamples(LabelledExamples):
    """Questions with one segment per candidate. Only the correct candidate has a loss weight above 0.

    If a question does not fit in a row, its segments get equal shares of the row. Candidates are truncated at the end,
    and the question is truncated at the beginning. All segments contain the same part of the question.
    """

    def __init__(self, store: ExampleStore, config: Config, tokenizer: Tokenizer, train: bool):
        super().__init__(store, config, tokenizer)
        self._tokens, self._at_end = store.tokens, config.model.pooling == "last"
        self._added = tokenizer.pair_template.num_special
        self._right = np.array([each.right for each in store.raw], np.int64)
        self.example_of = np.arange(len(store.raw))
        self._sizes = np.array([sum(self.segments(index)) for index in range(len(store.raw))], np.int64)
        numbers_E = np.diff(self._tokens.firsts)
        lengths = self._tokens.candidates.lengths
        whole_E = (self._tokens.questions.lengths + self._added) * numbers_E + np.add.reduceat(
            lengths, self._tokens.firsts[:-1]
        )
        self._note_cut(int(np.sum(self._sizes < whole_E)), len(whole_E), "questions are truncated")

    def _lengths(self, index: int) -> tuple[int, np.ndarray]:
        """Returns the lengths in tokens of the question and of each candidate, (N,), after truncation."""
        first, end = self._tokens.firsts[index : index + 2]
        question, candidates_N = int(self._tokens.questions.lengths[index]), self._tokens.candidates.lengths[first:end]
        if (question + self._added) * len(candidates_N) + candidates_N.sum() <= self._length:
            return question, candidates_N
        share = self._length // len(candidates_N)
        if share < SHORTEST:
            raise UserError(
                f"config.data.sequence_length: {self._length} tokens are too few for a question with "
                f"{len(candidates_N)} candidates; set it to {SHORTEST * len(candidates_N)} or more."
            )
        candidates_N = np.minimum(candidates_N, max((share - self._added) // 2, share - self._added - question))
        return min(question, share - self._added - int(candidates_N.max())), candidates_N

    def segments(self, index: int) -> list[int]:
        """Returns the lengths of the segments of a question."""
        question, candidates_N = self._lengths(index)
        return (question + candidates_N + self._added).tolist()

    def label_indices(self, index: int) -> np.ndarray:
        """Returns the position of each candidate's score in the example, (N,)."""
        ends_N = np.cumsum(self.segments(index))
        return ends_N - 1 if self._at_end else np.concatenate([[0], ends_N[:-1]])

    def make(self, epoch: int, index: int) -> Example:
        (question, candidates_N), first = self._lengths(index), int(self._tokens.firsts[index])
        tokens = self._tokens.questions[index]
        framed_N = [
            self._special.frame(tokens[len(tokens) - question :], self._tokens.candidates[first + n][:length])
            for n, length in enumerate(candidates_N.tolist())
        ]
        tokens_T, types_T = (np.concatenate(each) for each in zip(*framed_N, strict=True))
        targets_T, weights_T = np.zeros(len(tokens_T), np.int32), np.zeros(len(tokens_T), np.float32)
        labels_N = self.label_indices(index)
        targets_T[labels_N] = CANDIDATE
        targets_T[labels_N[0]] |= FIRST
        weights_T[labels_N[self._right[index]]] = 1.0
        return Example(tokens_T, targets_T, weights_T, types_T, segments=self.segments(index))


class Chosen(Predictions):
    """The output holds the score of each candidate, (N,). The first candidate with the highest score is chosen."""

    label_key = "label"
    keys = ("question", "candidates", "label", "prediction", "scores")

    def __init__(self, raw: Sequence[Choice], scores: Sequence[np.ndarray]):
        super().__init__(raw, scores)
        self._chosen_E = np.array([each.argmax() for each in scores], np.int64)
        finite_E = np.array([np.isfinite(each).all() for each in scores])
        self._correct_E = np.where(finite_E, self._chosen_E == [each.right for each in raw], np.nan)

    def metrics(self, indices_E: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """Returns the accuracy, from 0 to 1. The accuracy is NaN if any score is not finite."""
        return {"accuracy": float(self._correct_E[indices_E].mean())}

    def line(self, index: int) -> dict[str, Any]:
        """Returns the question, candidates and scores, and the indices of the correct and the predicted candidate."""
        example, scores = self.raw[index], [finite_or_none(float(score)) for score in self.outputs[index]]
        chosen = {"label": example.right, "prediction": int(self._chosen_E[index]), "scores": scores}
        return {"question": example.question, "candidates": example.candidates, **chosen}

    @classmethod
    def read(cls, lines: Sequence[Mapping[str, Any]], config: Config | None = None) -> Chosen:
        raw = [Choice(line["question"], tuple(line["candidates"]), int(line["label"])) for line in lines]
        return cls(raw, [np.array(line["scores"], np.float64) for line in lines])  # NumPy converts None to NaN

    def details(self, index: int) -> dict[str, Any]:
        from scipy.special import softmax  # a top-level import would slow down every start

        return {"probabilities": softmax(self.outputs[index].astype(np.float64)).tolist()}

    def preview(self, index: int) -> dict[str, str]:
        example = self.raw[index]
        chosen, right = example.candidates[self._chosen_E[index]], example.candidates[example.right]
        return {"question": example.question, "predicted": chosen, "right": right}


class MultipleChoice(LabelledTask):
    name = "multiple_choice"
    doc = "choose the correct candidate from several"
    settings = frozenset({"eval.bootstrap", "model.pooling"})
    metric_names = ("loss", "accuracy")
    reader = ChoiceReader
    input_reader = ChoiceInput
    tokens = ChoiceTokens
    example_type = ChoiceExamples
    labels_texts = True
    predictions = Chosen

    def check_source(self, where: str, source: SourceConfig, config: Config, refuse: Refuse) -> None:
        super().check_source(where, source, config, refuse)
        if not source.pair_field:
            refuse(f"{where}.pair_field", "name the field that holds the list of candidates.")

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        question_BL = jnp.cumsum(batch.targets // FIRST, axis=1)
        same_BLS = (question_BL[:, :, None] == question_BL[:, None, :]) & (batch.targets[:, None, :] > 0)
        return choice_loss(output.logits[..., 0], same_BLS, batch.weights)

    def baselines(self, config: Config) -> tuple[Baseline, ...]:
        return RandomCandidate(), LongestCandidate()

    def predict(self, config: Config, examples: ChoiceExamples, logits: Mapping[int, Any]) -> Predictions:
        whole = whole_examples(examples, logits)
        scores = [logits[number][examples.label_indices(number), 0] for (number,) in whole.values()]
        return Chosen([examples.store.raw[number] for number in whole], scores)

    def preview_target(self, config: Config, tokenizer: Tokenizer, target: Any, position: int) -> str:
        return "correct"
