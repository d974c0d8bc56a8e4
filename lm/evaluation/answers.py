"""Extractive question answering: finds the best answer, and scores answers by exact match and F1.

Both metrics are in percent. For SQuAD and CMRC 2018, the metrics agree with the official scripts.

E is the number of questions, T is the number of tokens per window, and A is the maximum number of tokens in an answer.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

import numpy as np
import regex

from lm.evaluation import scripts
from lm.evaluation.metric import Metric, points
from lm.evaluation.scripts import CHINESE, JAPANESE, UNSPACED, Writing
from lm.evaluation.text_metrics import EXACT_MATCH

ANSWER_METRICS = (EXACT_MATCH, Metric("f1", "F1", points, higher_is_better=True, drawn=True, recorded=True))

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
CHINESE_OR_OTHER = re.compile(r"[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+")
# The punctuation that the official script of CMRC 2018 removes. It keeps ‘ and …, for example.
CMRC_PUNCTUATION = str.maketrans("", "", "*+-/:=\\^_`~" + "，。、；：？！·’“”（）《》「」『』－～")
PUNCTUATION = regex.compile(rf"[\p{{P}}{re.escape(string.punctuation)}]")


@dataclass(frozen=True)
class Window:
    """The part of a question's context that fits into one row, and the model's scores for its tokens."""

    start_T: np.ndarray  # float32: each token's score as the start of the answer
    end_T: np.ndarray  # float32: each token's score as the end of the answer
    offsets_T2: np.ndarray  # int64: character offsets of each token in the context; (-1, -1) outside the context
    most_context_T: np.ndarray  # bool: whether no other window gives the token more context


@dataclass(frozen=True)
class Answer:
    text: str  # "" means "no answer"
    score: float  # the sum of the start and end scores; -inf if no span qualifies as an answer
    start: int = field(default=0, compare=False)  # character offset in the context; 0 if there is no answer
    none_score: float = field(default=-math.inf, compare=False)  # the score of "no answer"


def best_answer(
    context: str, windows: Sequence[Window], *, max_answer_tokens: int = 30, may_lack: bool = False
) -> Answer:
    """Finds the best answer to a question among all spans in its windows (Devlin 2019, sections 4.2 and 4.3).

    An answer must lie within one window's part of the context and have at most `max_answer_tokens` tokens. A span is
    considered only in the window that gives its first token the most context. All pairs of start and end tokens are
    tried, whereas the published code tries only the 20 best of each. Ties go to the first window, then to the earliest
    start, then to the earliest end. Whitespace around the answer is removed.

    If `may_lack` is true (SQuAD 2.0), "no answer" is returned unless an answer has a higher score. The score of "no
    answer" is the sum of the start and end scores of a window's first token, minimised over all windows.
    """
    best, where = -math.inf, (0, 0)
    for window in windows:
        score, first, last = best_span(window, max_answer_tokens)
        if score > best:
            best, where = score, (int(window.offsets_T2[first, 0]), int(window.offsets_T2[last, 1]))
    none = min(float(window.start_T[0]) + float(window.end_T[0]) for window in windows)
    if may_lack and not best > none:
        return Answer("", none, none_score=none)
    found = context[slice(*where)]
    return Answer(found.strip(), best, where[0] + len(found) - len(found.lstrip()), none)


def best_span(window: Window, max_answer_tokens: int) -> tuple[float, int, int]:
    """Returns the score, first token and last token of a window's best answer. The score is -inf if none exists."""
    inside_T, longest = window.offsets_T2[:, 0] >= 0, min(max_answer_tokens, len(window.start_T))
    start_T = np.where(inside_T & window.most_context_T, window.start_T.astype(np.float64), -np.inf)
    end_T = np.where(inside_T, window.end_T.astype(np.float64), -np.inf)
    padded = np.concatenate([end_T, np.full(longest - 1, -np.inf)])
    scores_TA = start_T[:, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)
    first, more = divmod(int(scores_TA.argmax()), longest)
    return float(scores_TA[first, more]), first, first + more


def answer_metrics(scores_E2: np.ndarray) -> dict[str, float]:
    """Returns the means of `answer_scores` in percent, summed in the same order as in the official scripts."""
    exact, overlap = 100.0 * np.add.accumulate(scores_E2, axis=0, dtype=np.float64)[-1] / len(scores_E2)
    return {"exact_match": float(exact), "f1": float(overlap)}


@dataclass(frozen=True)
class Rules:
    """The rules for comparing predictions with reference answers."""

    read: Callable[[str], tuple[str, list[str]]]  # returns a normalised text and the tokens that F1 counts
    overlap: Callable[[list[str], list[str]], int]  # counts the tokens that two lists of tokens have in common
    signature: str  # describes the normalisation and the tokens


def rules_for(contexts: Iterable[str]) -> str:
    """Returns the key in RULES that suits the main script of the contexts."""
    kinds = {CHINESE: "cmrc", JAPANESE: "characters", UNSPACED: "characters"}
    return kinds.get(Writing.of(contexts).kind, "squad")


def answer_scores(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], *, rules: str = "squad", may_lack: bool = False
) -> np.ndarray:
    """Scores each prediction against its references, float64 (E, 2).

    The columns are the highest exact match (0 or 1) and the highest F1 (0 to 1) over all references.

    `rules` is a key of RULES:

    - squad (Rajpurkar 2016): case, ASCII punctuation, the articles a, an and the, and extra whitespace are ignored.
      F1 compares the texts as bags of words.
    - cmrc, for Chinese (CMRC 2018; Cui 2019): case and `CMRC_PUNCTUATION` are ignored. F1 is based on the
      longest contiguous sequence of tokens that both texts contain. Each Chinese character is a token; NLTK's
      tokenizer splits other text into words. The official script may treat a full stop within Latin text differently,
      because it first splits the text into sentences with a model that must be downloaded.
    - characters, for other scripts without spaces, such as Japanese and Thai: case, all punctuation and whitespace
      are ignored. F1 compares bags of tokens. As in MLQA (Lewis 2020), the tokens are single characters in scripts
      without spaces, and words in all other scripts.

    If `may_lack` is true, some questions of the data set have no answer (an empty sequence), and the rules of SQuAD 2.0
    apply (Rajpurkar 2018): a prediction that is empty after normalisation means "no answer", and references that are
    empty after normalisation are ignored. In SQuAD 1.1, an empty text has an F1 of 0.
    """
    assert len(predictions) == len(answers), (len(predictions), len(answers))
    assert may_lack or all(answers), "a question has no answer"
    read = RULES[rules].read
    scores = np.zeros((len(predictions), 2), np.float64)
    for number, (prediction, several) in enumerate(zip(predictions, answers, strict=True)):
        text, words = read(prediction)
        right = [read(each) for each in several]
        if may_lack:
            right = [each for each in right if each[0]] or [("", [])]
        for right_text, right_words in right:
            f1 = 0.0
            if may_lack and not (words and right_words):
                f1 = float(words == right_words)
            elif common := RULES[rules].overlap(words, right_words):
                # With this order of operations, even the last digit agrees with the official scripts.
                precision, recall = common / len(words), common / len(right_words)
                f1 = 2 * precision * recall / (precision + recall)
            scores[number] = np.maximum(scores[number], (text == right_text, f1))
    return scores


def _read_english(text: str) -> tuple[str, list[str]]:
    words = ARTICLES.sub(" ", text.lower().translate(ASCII_PUNCTUATION)).split()
    return " ".join(words), words


def _read_chinese(text: str) -> tuple[str, list[str]]:
    from nltk.tokenize import word_tokenize  # takes a second to import

    text = text.lower().strip().translate(CMRC_PUNCTUATION)
    tokens: list[str] = []
    for part in CHINESE_OR_OTHER.findall(text):
        tokens += [part] if "\u4e00" <= part[0] <= "\u9fa5" else word_tokenize(part, preserve_line=True)
    return text, tokens


def _read_characters(text: str) -> tuple[str, list[str]]:
    tokens = scripts.tokens(PUNCTUATION.sub("", text.lower()))
    return " ".join(tokens), tokens


def _common_words(first: list[str], second: list[str]) -> int:
    return (Counter(first) & Counter(second)).total()


def _longest_run(first: list[str], second: list[str]) -> int:
    """Returns the length of the longest contiguous sequence that both lists contain."""
    return SequenceMatcher(None, first, second, autojunk=False).find_longest_match().size


RULES: dict[str, Rules] = {
    "squad": Rules(_read_english, _common_words, "ignored:case, ASCII punctuation, a, an, the|f1:words"),
    "cmrc": Rules(_read_chinese, _longest_run, "ignored:case, punctuation|f1:longest run of characters"),
    "characters": Rules(_read_characters, _common_words, "ignored:case, punctuation, spaces|f1:characters"),
}


def answer_signature(rules: str, may_lack: bool) -> str:
    missing = "|some questions without an answer (SQuAD 2.0)" if may_lack else ""
    return f"rules:{rules}|{RULES[rules].signature}{missing}"
