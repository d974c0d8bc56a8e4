"""Finds the best answer in a text, given a score of each token as its start and as its end.

Shape letters: T tokens of a window, A longest answer in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """A question with a part of its context, and the scores of a model."""

    start_T: np.ndarray  # float32: score of each token as the first of the answer
    end_T: np.ndarray  # float32: score of each token as the last of the answer
    offsets_T2: np.ndarray  # int64: characters of the context, first and one past the last; (-1, -1) outside of it
    most_context_T: np.ndarray  # bool: of all windows with the token, this is where it has most context


@dataclass(frozen=True)
class Answer:
    text: str  # "" for no answer
    score: float  # sum of the scores of its first and its last token; -inf if no answer was possible


def best_answer(
    context: str, windows: Sequence[Window], *, max_answer_tokens: int = 30, may_lack: bool = False
) -> Answer:
    """Returns the best of all answers in all windows of a question (Devlin 2019, sections 4.2 and 4.3).

    An answer begins and ends in the context of one window, is at most `max_answer_tokens` long, and its first token has
    most context in this window. All pairs of first and last tokens are tried; the published code tries the 20 best of
    each. Ties go to the first window, then the earliest start, then the earliest end. White space around the text is
    removed.

    Args:
        may_lack: whether there are questions without an answer (SQuAD 2.0). "No answer" scores the start and end score
            of a window's first token, the least of all windows, and wins unless an answer scores more.
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
    """Returns score, first and last token of a window's best answer; the score is -inf if there is none."""
    size = len(window.start_T)
    inside_T = window.offsets_T2[:, 0] >= 0
    start_T = np.where(inside_T & window.most_context_T, window.start_T.astype(np.float64), -np.inf)
    end_T = np.where(inside_T, window.end_T.astype(np.float64), -np.inf)
    longest = min(max_answer_tokens, size)
    padded = np.concatenate([end_T, np.full(longest - 1, -np.inf)])
    scores_TA = start_T[:, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)
    first, more = divmod(int(scores_TA.argmax()), longest)
    return float(scores_TA[first, more]), first, first + more
