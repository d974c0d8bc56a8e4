"""predictions.jsonl of a task with labels: what a model made of each example, beside the right label.

An object a line, by task:

classification  text, pair (if there is one), label, prediction, score (the probability of the prediction)
regression      text, pair, label, prediction; the last two are numbers
tagging         words, tags, prediction (as many tags)
span_qa         id, question, answers (texts, none if there is no answer), prediction, score

A number that is not finite is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm.data.reading.labelled import Labelled, Question, Tagged
from lm.evaluation.answer_search import Answer
from lm.evaluation.metrics import finite_or_none
from lm.evaluation.predictions import write_objects


def write_classified(path: Path, results: Iterable[tuple[Labelled, str, float]]) -> None:
    """Of each example the predicted label and its probability. See `write_objects`, as for all below."""
    write_objects(
        path,
        (
            {**_texts(example), "label": example.label, "prediction": prediction, "score": finite_or_none(score)}
            for example, prediction, score in results
        ),
    )


def write_regressed(path: Path, results: Iterable[tuple[Labelled, float]]) -> None:
    """Of each example the predicted number."""
    write_objects(
        path,
        (
            {**_texts(example), "label": float(example.label), "prediction": finite_or_none(prediction)}
            for example, prediction in results
        ),
    )


def write_tagged(path: Path, results: Iterable[tuple[Tagged, Sequence[str]]]) -> None:
    """Of each sentence the predicted tags of its words."""
    write_objects(
        path,
        (
            {"words": example.words, "tags": example.tags, "prediction": list(prediction)}
            for example, prediction in results
        ),
    )


def write_answered(path: Path, results: Iterable[tuple[Question, Answer]]) -> None:
    """Of each question the answer that was found."""
    write_objects(
        path,
        (
            {
                "id": example.id,
                "question": example.question,
                "answers": [text for text, _ in example.answers],
                "prediction": answer.text,
                "score": finite_or_none(answer.score),
            }
            for example, answer in results
        ),
    )


def _texts(example: Labelled) -> dict[str, Any]:
    return {"text": example.text} if example.pair is None else {"text": example.text, "pair": example.pair}
