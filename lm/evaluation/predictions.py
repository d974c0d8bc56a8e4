"""Prediction files: one JSON object per line with a source text, the model's output and the references."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.data.reading.format import read_lines
from lm.errors import UserError
from lm.evaluation.metric import finite_or_none
from lm.files import parse_json, replacing


@dataclass(frozen=True)
class Example:
    source: str
    references: tuple[str, ...]
    prediction: str
    score: float  # the score that the model gave the prediction; NaN if unknown


def write_predictions(path: Path, examples: Sequence[Example]) -> None:
    """Writes one JSON object per example. `references` is omitted if there is only one reference."""

    def line(each: Example) -> dict[str, Any]:
        several = {"references": each.references} if len(each.references) > 1 else {}
        outputs = {"prediction": each.prediction, "score": finite_or_none(each.score)}
        return {"source": each.source, "reference": each.references[0], **several, **outputs}

    write_objects(path, map(line, examples))


def write_objects(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line (UTF-8). The file is replaced atomically. May raise OSError."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for each in objects:
            file.write(json.dumps(each, ensure_ascii=False, allow_nan=False) + "\n")


def read_objects(path: Path) -> list[tuple[int, Any]]:
    """Returns (line number, parsed object) for each line that is not blank. The object is None if the JSON is invalid.

    Raises UserError if the file cannot be read or is empty.
    """
    lines = enumerate(read_lines(path), start=1)
    objects = [(number, _parsed(line)) for number, line in lines if line.strip()]
    if not objects:
        raise UserError(f"{path}: the file holds no predictions; create it with eval.py.")
    return objects


def _parsed(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None


def read_predictions(path: Path) -> list[Example]:
    """Reads a file written by `write_predictions`; `score` may be missing.

    Raises UserError if the file is invalid or empty.
    """
    return [_example(path, number, values) for number, values in read_objects(path)]


def _example(path: Path, number: int, values: Any) -> Example:
    try:
        several = values.get("references")
        if several is not None and not isinstance(several, list):  # tuple() would split a string into letters
            raise TypeError
        references = tuple(several or [values["reference"]])
        texts = (values["source"], values["prediction"], *references)
        score = values.get("score")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError
        return Example(texts[0], references, texts[1], math.nan if score is None else float(score))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path}, line {number}: expected a JSON object with the strings source, prediction and reference (or a "
            "list of strings named references); create the file again with eval.py."
        ) from None
