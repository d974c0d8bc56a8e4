"""From scores of where an answer begins and ends to the answer.

Shape letters: T tokens of a window, A longest answer in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """A question with a part of its context, and what a model says of it."""

    start_T: np.ndarray  # float32: score of each token as the first of the answer
    end_T: np.ndarray  # float32: as its last
    offsets_T2: np.ndarray  # int64: its characters of the context, first and behind the last; (-1, -1) outside of it
    most_context_T: np.ndarray  # bool: of all windows that hold it, this is where the token has most context


@dataclass(frozen=True)
class Answer:
    text: str  # of the context; "" for no answer
    score: float  # sum of the scores of its first and its last token; -inf if no answer was possible


def best_answer(
    context: str, windows: Sequence[Window], *, max_answer_tokens: int = 30, may_lack: bool = False
) -> Answer:
    """The best of all answers in all windows of a question (Devlin 2019, section 4.2 and 4.3).

    An answer begins and ends in the context of one window, is at most `max_answer_tokens` long, and its first
    token has most context in this window. The published code looks through the 20 best first and last tokens,
    here it is all. Of equal ones the first window's wins, then the first to begin, then the first to end.
    White space at the ends of its text is left out.

    Args:
        may_lack: there are questions without an answer (SQuAD 2.0). To have none scores what the first tokens of
            a window do, in the window where that is least, and wins unless an answer scores more.
    """
    best, where = -math.inf, (0, 0)
    for window in windows:
        score, first, last = best_span(window, max_answer_tokens)
        if score > best:
            best, where = score, (int(window.offsets_T2[first, 0]), int(window.offsets_T2[last, 1]))
    if may_lack:
        none = min(float(window.start_T[0]) + float(window.end_T[0]) for window in windows)
        if not best > none:
            return Answer("", none)
    return Answer(context[slice(*where)].strip(), best)


def best_span(window: Window, max_answer_tokens: int) -> tuple[float, int, int]:
    """Score, first and last token of a window's best answer; the score is -inf if there is none."""
    size = len(window.start_T)
    inside_T = window.offsets_T2[:, 0] >= 0
    start_T = np.where(inside_T & window.most_context_T, window.start_T.astype(np.float64), -np.inf)
    end_T = np.where(inside_T, window.end_T.astype(np.float64), -np.inf)
    longest = min(max_answer_tokens, size)
    padded = np.concatenate([end_T, np.full(longest - 1, -np.inf)])
    scores_TA = start_T[:, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)
    first, more = divmod(int(scores_TA.argmax()), longest)
    return float(scores_TA[first, more]), first, first + more
