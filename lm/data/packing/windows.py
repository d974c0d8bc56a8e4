"""Concatenate and cut: any window of a token stream as a row with segments and positions.

The documents of a source lie one after another in one stream, each as `[bos] tokens [eos]`. A row is
a window of that stream, so it can be computed from its start alone: nothing is planned or stored.

Shape letters: R rows of a call, M = L + 1 tokens of a window (L inputs and the target of the last).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Packed windows, before an objective turns them into inputs and targets. All int32."""

    tokens_RM: np.ndarray  # 0 where there is padding
    segments_RM: np.ndarray  # document within the row, from 1; 0 is padding
    positions_RM: np.ndarray  # place within the document's piece that lies in this row, from 0


def cut_rows(
    tokens: np.ndarray, starts_of_documents: np.ndarray, starts_R: np.ndarray, length: int, *, circular: bool
) -> Rows:
    """Windows of `length` tokens that begin at `starts_R`.

    `starts_of_documents` are the increasing offsets of the documents' first tokens, the first of which
    is 0. Past the end of the stream a circular window goes on at the beginning; the others are padded,
    and a start at or past the end gives a row of padding.
    """
    size = len(tokens)
    places_RM = np.asarray(starts_R, np.int64)[:, None] + np.arange(length, dtype=np.int64)[None, :]
    if circular:
        places_RM %= size
        real_RM = np.ones(places_RM.shape, bool)
    else:
        real_RM = places_RM < size
        places_RM = np.minimum(places_RM, size - 1)
    tokens_RM = np.where(real_RM, tokens[places_RM].astype(np.int32), np.int32(0))

    nearest_RM = np.searchsorted(starts_of_documents, places_RM)
    nearest_RM = np.minimum(nearest_RM, len(starts_of_documents) - 1)
    begins_RM = np.asarray(starts_of_documents)[nearest_RM] == places_RM
    begins_RM[:, 0] = True  # the window's first piece, whether or not its document begins here
    columns_RM = np.broadcast_to(np.arange(length, dtype=np.int32), begins_RM.shape)
    piece_begins_RM = np.maximum.accumulate(np.where(begins_RM, columns_RM, 0), axis=1)
    return Rows(
        tokens_RM=tokens_RM,
        segments_RM=np.where(real_RM, np.cumsum(begins_RM, axis=1, dtype=np.int32), np.int32(0)),
        positions_RM=np.where(real_RM, columns_RM - piece_begins_RM, np.int32(0)).astype(np.int32),
    )


def num_training_rows(num_tokens: int, sequence_length: int) -> int:
    """Rows an epoch: how often L targets fit into the stream. It must hold one window, L + 1 tokens."""
    assert num_tokens > sequence_length, (num_tokens, sequence_length)
    return num_tokens // sequence_length


def num_evaluation_rows(num_tokens: int, sequence_length: int, stride: int) -> int:
    """Windows that advance by `stride` until the stream's last token has been a target."""
    assert 0 < stride <= sequence_length, (stride, sequence_length)
    beyond_first = max(0, num_tokens - 1 - sequence_length)
    return 1 + -(-beyond_first // stride)


def scored_targets(row_ids: np.ndarray, sequence_length: int, stride: int) -> np.ndarray:
    """Bool (R, L): the targets that no earlier window has scored. The first window scores all of its own."""
    columns_L = np.arange(sequence_length)
    return (np.asarray(row_ids)[:, None] == 0) | (columns_L >= sequence_length - stride)[None, :]
