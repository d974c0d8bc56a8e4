"""Tables of word vectors: nearest neighbours, analogies (Mikolov 2013) and word similarity (Finkelstein 2002).

All similarities are cosines. V is the number of words, E is the size of a vector, and Q is the number of questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from lm.data.tokenizing.words import words_of
from lm.data.vector_files import is_number
from lm.errors import UserError, named_errors
from lm.evaluation.evaluator import EvaluationSetup, Evaluator, Report
from lm.evaluation.metric import Metric, share
from lm.files import expanded
from lm.parallel.mesh import on_mesh

WORD_VECTOR_METRICS = (
    Metric("similarity", "rank correlation", higher_is_better=True, recorded=True),
    Metric("pair_accuracy", "pair accuracy", share, higher_is_better=True, recorded=True),
)
QUESTIONS_AT_ONCE = 256


class Score(NamedTuple):
    """A rank correlation or an accuracy, the number of items that could be scored, and the number of all items."""

    value: float
    scored: int
    total: int


class Question(NamedTuple):
    """a is to b as c is to d."""

    section: str
    words: tuple[str, str, str, str]


@dataclass(frozen=True)
class WordTable:
    """Distinct words and their vectors, float32 (V, E)."""

    words: Sequence[str]
    vectors_VE: np.ndarray

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    @cached_property
    def unit_VE(self) -> np.ndarray:
        """The vectors, scaled to length 1. Zero vectors are left unchanged."""
        norms_V1 = np.linalg.norm(self.vectors_VE, axis=1, keepdims=True)
        return self.vectors_VE / np.where(norms_V1 > 0, norms_V1, 1.0)

    def find(self, word: str) -> int | None:
        """Returns the index of a word or else of its lower-case form, or None if the table contains neither."""
        return self._index.get(word, self._index.get(word.lower()))

    def neighbours(self, word: int, count: int) -> list[tuple[str, float]]:
        """Returns the `count` other words with the highest cosine similarity to a word, and their similarities.

        If there are fewer other words, all of them are returned.
        """
        cosines_V = self.unit_VE @ self.unit_VE[word]
        nearest = [i for i in np.argsort(-cosines_V, kind="stable")[: count + 1].tolist() if i != word]
        return [(self.words[i], float(cosines_V[i])) for i in nearest[:count]]

    def known(self, pairs: Sequence[tuple[str, str, float]]) -> list[tuple[int, int, float]]:
        """Returns (index of one word, index of the other word, score) for each pair whose words are both known."""
        found = [(self.find(one), self.find(other), score) for one, other, score in pairs]
        return [(one, other, score) for one, other, score in found if one is not None and other is not None]

    def similarity(self, pairs: Sequence[tuple[str, str, float]]) -> Score:
        """Returns Spearman's rank correlation of cosines with human scores for the pairs whose words are both known.

        The correlation is NaN if fewer than two pairs are known, or if all their scores or all their cosines are equal.
        """
        from scipy.stats import spearmanr  # takes a second to import

        known = self.known(pairs)
        cosines = [float(self.unit_VE[one] @ self.unit_VE[other]) for one, other, _ in known]
        scores = [score for *_, score in known]
        defined = len(set(scores)) > 1 and len(set(cosines)) > 1
        return Score(float(spearmanr(cosines, scores)[0]) if defined else math.nan, len(known), len(pairs))

    def analogies(self, questions: Sequence[Question]) -> dict[str, Score]:
        """Returns, for each section, the share of questions for which 3CosAdd finds the fourth word.

        3CosAdd chooses the word with the highest cosine to b - a + c among all words except a, b and c. Questions with
        an unknown word are not scored.
        """
        found = [(each.section, [self.find(word) for word in each.words]) for each in questions]
        right: dict[str, list[bool]] = {each.section: [] for each in questions}
        known = [(section, ids) for section, ids in found if None not in ids]
        for begin in range(0, len(known), QUESTIONS_AT_ONCE):
            part = known[begin : begin + QUESTIONS_AT_ONCE]
            ids_Q4 = np.array([ids for _, ids in part], np.int64)
            a_QE, b_QE, c_QE = (self.unit_VE[ids_Q4[:, column]] for column in range(3))
            cosines_QV = (b_QE - a_QE + c_QE) @ self.unit_VE.T
            np.put_along_axis(cosines_QV, ids_Q4[:, :3], -np.inf, axis=1)
            for (section, _), answer, ids in zip(part, cosines_QV.argmax(axis=1), ids_Q4, strict=True):
                right[section].append(bool(answer == ids[3]))
        totals = {section: sum(each.section == section for each in questions) for section in right}
        return {
            section: Score(float(np.mean(each)) if each else math.nan, len(each), totals[section])
            for section, each in right.items()
        }

    def components(self, words: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Projects the unit vectors of the given words onto their first two principal components.

        Returns the coordinates, (len(words), 2), and the share of the variance along each component. The sign of each
        component is chosen so that the coordinate with the largest absolute value is positive.
        """
        centred = self.unit_VE[list(words)] - self.unit_VE[list(words)].mean(axis=0)
        left, values, _ = np.linalg.svd(centred, full_matrices=False)
        coordinates = np.zeros((len(words), 2))
        coordinates[:, : min(2, len(values))] = (left * values)[:, :2]
        signs = np.sign(coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]])
        total = np.sum(values**2)
        shares = np.pad(values**2, (0, 2))[:2] / (total if total > 0 else 1.0)
        return coordinates * np.where(signs == 0, 1.0, signs), shares


def _lines(path: Path) -> list[tuple[int, str]]:
    """Returns the numbered lines of a UTF-8 file, without empty lines and comments, which begin with #."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start:,}); convert it to UTF-8.") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Reads word pairs with scores, such as WordSim-353 or SimLex-999, separated by tabs, commas or spaces.

    The first two fields are the words. The score column is the first column after the words that contains a number
    in the first pair. The first line is treated as a header if it has at least three fields, but no number after the
    words. Raises UserError if any other line has no score or if there are fewer than two pairs.
    """
    pairs, column = [], None
    for index, (number, line) in enumerate(_lines(path)):
        separator = "\t" if "\t" in line else "," if "," in line else None
        fields = [each.strip() for each in line.split(separator)]
        if column is None:
            column = next((i for i, each in enumerate(fields[2:], start=2) if is_number(each)), None)
            if column is None and index == 0 and len(fields) >= 3:
                continue
        try:
            score = float(fields[column or 2])
            if not (math.isfinite(score) and fields[0] and fields[1]):
                raise ValueError
        except (ValueError, IndexError) as error:
            raise UserError(
                f"{path}, line {number}: expected two words and a score, got {line[:80]!r}; correct this line."
            ) from error
        pairs.append((fields[0], fields[1], score))
    if len(pairs) < 2:
        raise UserError(f"{path} has fewer than two pairs of words with scores; choose another file.")
    return pairs


def read_questions(path: Path) -> list[Question]:
    """Reads analogy questions in the format of questions-words.txt: four words per line, and section headings ": NAME".

    Raises UserError if a line does not have four words, or if there are no questions.
    """
    section, questions = "all", []
    for number, line in _lines(path):
        if line.startswith(":"):
            section = line[1:].strip() or "all"
            continue
        words = line.split()
        if len(words) != 4:
            raise UserError(f"{path}, line {number}: expected four words, got {line[:80]!r}; correct this line.")
        questions.append(Question(section, (words[0], words[1], words[2], words[3])))
    if not questions:
        raise UserError(f"{path} has no questions; choose a file in the format of questions-words.txt.")
    return questions


class SimilarityEvaluator(Evaluator):
    """Computes the rank correlation between cosines and human scores for the word pairs in config.eval.word_pairs."""

    def __init__(self, task: Any, setup: EvaluationSetup) -> None:
        self.name, self._task, self._config, self._tokenizer = setup.name, task, setup.config, setup.tokenizers.target
        self._mesh = setup.mesh
        with named_errors("config.eval.word_pairs"):
            self._pairs = read_pairs(expanded(setup.config.eval.word_pairs))
            words = [word for word in words_of(self._tokenizer) if word is not None]
            known = WordTable(words, np.zeros((len(words), 0), np.float32)).known(self._pairs)
            if len({score for *_, score in known}) < 2:
                file, number = setup.config.eval.word_pairs, f"{len(known):,} of {len(self._pairs):,} pairs"
                problem = f"{number} in {file} have both words in the vocabulary; the correlation needs two such pairs"
                raise UserError(f"{problem} with different scores; choose another file.")
        self._scored = Score(math.nan, 0, len(self._pairs))

    def evaluate(self, params: Any, step: int, report: Report | None = None) -> dict[str, float]:
        with on_mesh(self._mesh):
            table = self._task.word_table(self._config, self._tokenizer, _replicated(params))
        self._scored = table.similarity(self._pairs)
        return {f"{self.name}/similarity": self._scored.value}

    @property
    def signatures(self) -> dict[str, str]:
        file = Path(self._config.eval.word_pairs).name
        return {"similarity": f"Spearman, {self._scored.scored:,} of {self._scored.total:,} pairs of {file}"}


@jax.jit
def _replicated(params: Any) -> Any:
    """Returns the parameters as arrays that are replicated on all devices."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), params)
