"""Extractive question answering: predict where in a text the answer to a question begins and ends (SQuAD)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.batch import Array, Batch, Output
from lm.config import Config, ObjectiveConfig
from lm.data.examples.answers import AnswerExamples, AnswerTokens
from lm.data.examples.labelled import LabelledExamples
from lm.data.reading.inputs import QuestionInput
from lm.data.reading.readers import Question, QuestionReader
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.base import Tokenizer
from lm.evaluation.answers import ANSWER_METRICS, Answer, Window, answer_metrics, answer_scores, best_answer
from lm.evaluation.metric import finite_or_none, names
from lm.evaluation.prediction_evaluator import Predictions, whole_examples
from lm.models.heads import AnswerSpan
from lm.objectives.losses import LossSums, span_loss, span_weight
from lm.tasks.labelled import LabelledTask
from lm.tasks.task import Refuse

ENDS_OF_ANSWER = ("", "start", "end", "start+end")
NO_ANSWER = "no answer"  # in the preview, below the first token if the text does not hold the answer


class SpanQa(LabelledTask):
    name = "span_qa"
    doc = "where in a text the answer to a question is"
    settings = frozenset({"data.context_overlap", "eval.bootstrap"})
    metric_names = ("loss", *names(ANSWER_METRICS))
    reader = QuestionReader
    input_reader = QuestionInput
    may_lack_answers = True
    tokens = AnswerTokens

    def head(self, config: Config) -> Any:
        return AnswerSpan()

    def check(self, config: Config, refuse: Refuse) -> None:
        super().check(config, refuse)
        if config.data.context_overlap >= config.data.sequence_length // 2:
            refuse("data.context_overlap", "must be less than half of data.sequence_length.")

    @property
    def predictions(self) -> type[Answered]:
        return Answered

    def unlabelled(self, config: Config, raw: Question, unanswerable: bool) -> Question:
        # An empty answer stands for one that is not known: it is found nowhere, but the question is not unanswerable.
        return dataclasses.replace(raw, answers=() if unanswerable else (("", 0),))

    def make_examples(self, store: ExampleStore, config: Config, tokenizer: Tokenizer, train: bool) -> LabelledExamples:
        return AnswerExamples(store, config, tokenizer, train)

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        return span_loss(output.logits, batch)

    def total_weight(self, batch: Batch) -> Array:
        return span_weight(batch)

    def predict(self, config: Config, examples: AnswerExamples, logits: Mapping[int, Any]) -> Predictions:
        whole = whole_examples(examples, logits)
        raw = [examples.store.raw[number] for number in whole]
        may_lack = not all(each.answers for each in examples.store.raw)
        answers = []
        for each, numbers in zip(raw, whole.values(), strict=True):
            windows = [
                Window(logits[i][:, 0], logits[i][:, 1], examples.offsets(i), examples.most_context(i)) for i in numbers
            ]
            answers.append(best_answer(each.context, windows, may_lack=may_lack))
        return Answered.scored(raw, answers)

    def preview_target(self, config: Config, tokenizer: Tokenizer, target: Any, position: int) -> str:
        return ENDS_OF_ANSWER[int(target)] if position else NO_ANSWER


class Answered(Predictions):
    """Answers and their `answer_scores`, which follow the rules of their data source (Chinese, missing answers)."""

    label_key = "answers"
    keys = ("question", "answers", "prediction")

    def __init__(self, raw: Sequence[Question], answers: Sequence[Answer], scores_E2: np.ndarray):
        self.raw, self._answers, self._scores_E2 = list(raw), list(answers), scores_E2

    @classmethod
    def scored(cls, raw: Sequence[Question], answers: Sequence[Answer]) -> Answered:
        """Scores the answers of one data source."""
        right = [[text for text, _ in each.answers] for each in raw]
        chinese = any("\u4e00" <= character <= "\u9fff" for each in raw[:100] for character in each.question)
        return cls(raw, answers, answer_scores([each.text for each in answers], right, chinese=chinese))

    def metrics(self, indices_E: np.ndarray | slice = slice(None)) -> dict[str, float]:
        return answer_metrics(self._scores_E2[indices_E])

    def line(self, index: int) -> dict[str, Any]:
        """Returns the id, question, answers (texts; empty if there are none), prediction and score."""
        example, answer = self.raw[index], self._answers[index]
        return {
            "id": example.id,
            "question": example.question,
            "answers": [text for text, _ in example.answers],
            "prediction": answer.text,
            "score": finite_or_none(answer.score),
        }

    @classmethod
    def read(cls, lines: Sequence[Mapping[str, Any]], config: Config | None = None) -> Answered:
        raw, answers = [], []
        for line in lines:
            right = tuple((str(text), 0) for text in line["answers"])
            raw.append(Question(line["id"], "", line["question"], "", right))
            answers.append(Answer(line["prediction"], math.nan if line["score"] is None else float(line["score"])))
        return cls.scored(raw, answers)

    def details(self, index: int) -> dict[str, Any]:
        """Returns the character offsets of the answer in the context, and the score of "no answer"."""
        answer = self._answers[index]
        start = answer.start if answer.text else None
        end = None if start is None else start + len(answer.text)
        return {"start": start, "end": end, "no_answer_score": finite_or_none(answer.none_score)}

    def joined(self, others: Sequence[Answered]) -> Answered:
        answers = [answer for each in (self, *others) for answer in each._answers]
        scores_E2 = np.concatenate([each._scores_E2 for each in (self, *others)])
        return Answered(self._all_raw(others), answers, scores_E2)

    def preview(self, index: int) -> tuple[str, ...]:
        example = self.raw[index]
        return example.question, self._answers[index].text, example.answers[0][0] if example.answers else ""
