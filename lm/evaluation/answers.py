"""Answers to questions about a text against the right ones: exact match and F1 as defined by SQuAD and CMRC.

Both are in percent, and equal the results of the data sets' own scripts for the same predictions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from lm.evaluation.metric import Metric, points
from lm.evaluation.text_metrics import EXACT_MATCH

ANSWER_METRICS = (EXACT_MATCH, Metric("f1", "F1", points, higher_is_better=True, drawn=True, recorded=True))

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
CHINESE_OR_OTHER = re.compile(r"[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+")
# The punctuation that CMRC 2018 removes; not all: for example ‘ and … stay.
CMRC_PUNCTUATION = str.maketrans("", "", "*+-/:=\\^_`~" + "，。、；：？！·’“”（）《》「」『』－～")


def answer_metrics(scores_E2: np.ndarray) -> dict[str, float]:
    """Returns the means of `answer_scores` in percent, added up one by one as in the official scripts."""
    exact, overlap = 100.0 * np.add.accumulate(scores_E2, axis=0, dtype=np.float64)[-1] / len(scores_E2)
    return {"exact_match": float(exact), "f1": float(overlap)}


def answer_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]], *, chinese: bool = False) -> np.ndarray:
    """Returns exact match (0 or 1) and F1 (0 to 1) of each question, float64 (E, 2), for its best right answer.

    SQuAD (Rajpurkar 2016): texts are compared without case, ASCII punctuation, the words a, an and the, and surplus
    white space. F1 is that of their bags of words.

    Chinese, as in CMRC 2018 (Cui 2019): texts are compared without case and `CMRC_PUNCTUATION`. F1 is that of the
    longest run of tokens they have in common; each Chinese character is a token, other text is split into words by
    NLTK's tokenizer. (The official script first splits it into sentences by a model that would have to be downloaded,
    and may treat a full stop within Latin text differently.)

    If some question has no answer, which "" answers, the rules are those of SQuAD 2.0 (Rajpurkar 2018): a text of which
    nothing is left equals "", and right answers of which nothing is left do not count. In SQuAD 1.1 such a text has an
    F1 of 0.

    Args:
        answers: the right ones of each question; none if the text does not answer it.
    """
    assert len(predictions) == len(answers), (len(predictions), len(answers))
    may_lack = not all(answers)
    read = _read_chinese if chinese else _read_english
    overlap = _longest_run if chinese else _common_words
    scores = np.zeros((len(predictions), 2), np.float64)
    for number, (prediction, several) in enumerate(zip(predictions, answers, strict=True)):
        text, words = read(prediction)
        right = [read(each) for each in several]
        if may_lack:
            right = [each for each in right if each[0]] or [("", [])]
        for right_text, right_words in right:
            common = overlap(words, right_words)
            f1 = _f1(common, len(words), len(right_words))
            if may_lack and not (words and right_words):
                f1 = float(words == right_words)
            scores[number] = np.maximum(scores[number], (text == right_text, f1))
    return scores


def _f1(common: int, predicted: int, right: int) -> float:
    """Returns the harmonic mean in the official scripts' order of operations, for the same last digit."""
    if common == 0:
        return 0.0
    precision, recall = common / predicted, common / right
    return 2 * precision * recall / (precision + recall)


def _read_english(text: str) -> tuple[str, list[str]]:
    """Returns the text as it is compared as a whole, and its words."""
    words = ARTICLES.sub(" ", text.lower().translate(ASCII_PUNCTUATION)).split()
    return " ".join(words), words


def _read_chinese(text: str) -> tuple[str, list[str]]:
    """Returns the text as it is compared as a whole, and its characters and words."""
    from nltk.tokenize import word_tokenize  # takes a second to import

    text = text.lower().strip().translate(CMRC_PUNCTUATION)
    tokens: list[str] = []
    for part in CHINESE_OR_OTHER.findall(text):
        tokens += [part] if "\u4e00" <= part[0] <= "\u9fa5" else word_tokenize(part, preserve_line=True)
    return text, tokens


def _common_words(first: list[str], second: list[str]) -> int:
    return (Counter(first) & Counter(second)).total()


def _longest_run(first: list[str], second: list[str]) -> int:
    """Returns the length of the longest sequence that occurs in both without a gap."""
    return SequenceMatcher(None, first, second, autojunk=False).find_longest_match().size
