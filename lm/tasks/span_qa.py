"""Extractive question answering: predict where in a text the answer to a question begins and ends (SQuAD)."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Batch, Output
from lm.config import Config, ObjectiveConfig
from lm.data.examples.answers import AnswerExamples, AnswerTokens
from lm.data.reading.inputs import QuestionInput
from lm.data.reading.readers import Question, QuestionReader
from lm.data.tokenizing.base import Tokenizer
from lm.evaluation import answers as scoring
from lm.evaluation.answers import Answer, Window
from lm.evaluation.metric import finite_or_none, names
from lm.evaluation.prediction_evaluator import Predictions, whole_examples
from lm.models.heads import AnswerSpan
from lm.objectives.losses import LossSums, span_loss, span_weights
from lm.tasks.labelled import LabelledTask
from lm.tasks.task import Refuse

ENDS_OF_ANSWER = ("", "start", "end", "start+end")
NO_ANSWER = "no answer"  # shown in the preview at the first token of a text without the answer


class Answered(Predictions):
    """The output holds an answer, its `answer_scores` and their signature, which depends on the data source."""

    label_key = "answers"
    keys = ("question", "answers", "prediction")

    def __init__(self, raw: Sequence[Question], outputs: Sequence[tuple[Answer, np.ndarray, str]]):
        super().__init__(raw, outputs)
        self._scores_E2 = np.array([scores for _, scores, _ in outputs])

    @classmethod
    def scored(cls, raw: Sequence[Question], answers: Sequence[Answer], rules: str, may_lack: bool) -> Answered:
        """Scores the predicted answers for one data source."""
        right = [[text for text, _ in each.answers] for each in raw]
        scores_E2 = scoring.answer_scores([each.text for each in answers], right, rules=rules, may_lack=may_lack)
        signature = scoring.answer_signature(rules, may_lack)
        return cls(raw, [(*each, signature) for each in zip(answers, scores_E2, strict=True)])

    @property
    def signatures(self) -> dict[str, str]:
        counts = Counter(signature for _, _, signature in self.outputs)
        if len(counts) == 1:
            return {"answers": self.outputs[0][2]}
        return {"answers": "; ".join(f"{text} ({count:,} questions)" for text, count in counts.items())}

    def metrics(self, indices_E: np.ndarray | slice = slice(None)) -> dict[str, float]:
        return scoring.answer_metrics(self._scores_E2[indices_E])

    def line(self, index: int) -> dict[str, Any]:
        """Returns a question and the predicted answer. The list of correct `answers` may be empty."""
        example, (answer, *_) = self.raw[index], self.outputs[index]
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
        rules = config.eval.answer_rules if config else "auto"
        if rules == "auto":  # `line` stores no contexts, so the answers determine the rules
            rules = scoring.rules_for(text for each in raw for text, _ in each.answers)
        return cls.scored(raw, answers, rules, may_lack=not all(each.answers for each in raw))

    def details(self, index: int) -> dict[str, Any]:
        """Returns the character offsets of the answer in the context, and the score of "no answer"."""
        answer, *_ = self.outputs[index]
        start = answer.start if answer.text else None
        end = None if start is None else start + len(answer.text)
        return {"start": start, "end": end, "no_answer_score": finite_or_none(answer.none_score)}

    def preview(self, index: int) -> dict[str, str]:
        example = self.raw[index]
        right = example.answers[0][0] if example.answers else ""
        predicted = self.outputs[index][0].text
        return {"question": example.question, "predicted": predicted or NO_ANSWER, "answer": right or NO_ANSWER}


class SpanQa(LabelledTask):
    name = "span_qa"
    doc = "find the answer to a question in a text"
    settings = frozenset({"data.context_overlap", "eval.answer_rules", "eval.bootstrap"})
    metric_names = ("loss", *names(scoring.ANSWER_METRICS))
    reader = QuestionReader
    input_reader = QuestionInput
    may_lack_answers = True
    tokens = AnswerTokens
    example_type = AnswerExamples
    predictions = Answered

    def head(self, config: Config) -> Any:
        return AnswerSpan()

    def check(self, config: Config, refuse: Refuse) -> None:
        super().check(config, refuse)
        if config.data.context_overlap >= config.data.sequence_length // 2:
            refuse("data.context_overlap", "the overlap must be less than half of data.sequence_length.")

    def unlabelled(self, config: Config, raw: Question, unanswerable: bool) -> Question:
        # An empty answer stands for an unknown answer. It marks the question as answerable but is never found.
        return dataclasses.replace(raw, answers=() if unanswerable else (("", 0),))

    def loss(self, output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
        return span_loss(output.logits, batch)

    def total_weight(self, batch: Batch) -> Array:
        return jnp.maximum(jnp.sum(span_weights(batch)), 1.0)

    def predict(self, config: Config, examples: AnswerExamples, logits: Mapping[int, Any]) -> Predictions:
        whole, every = whole_examples(examples, logits), examples.store.raw
        raw = [every[number] for number in whole]
        # The rules depend on all questions of the data source, so that eval.max_rows does not change them.
        may_lack = not all(each.answers for each in every)
        rules = config.eval.answer_rules
        if rules == "auto":
            rules = scoring.rules_for({each.context for each in every})
        answers = []
        for each, numbers in zip(raw, whole.values(), strict=True):
            windows = [
                Window(logits[i][:, 0], logits[i][:, 1], examples.offsets(i), examples.most_context(i)) for i in numbers
            ]
            answers.append(scoring.best_answer(each.context, windows, may_lack=may_lack))
        return Answered.scored(raw, answers, rules, may_lack)

    def preview_target(self, config: Config, tokenizer: Tokenizer, target: Any, position: int) -> str:
        return ENDS_OF_ANSWER[int(target)] if position else NO_ANSWER
