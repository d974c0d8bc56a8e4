"""Causal language modelling: every token from those before it."""

from __future__ import annotations

import numpy as np

from lm.batch import Batch


def features(tokens_RM: np.ndarray, segments_RM: np.ndarray, positions_RM: np.ndarray) -> Batch:
    """Rows of M = L + 1 stream tokens -> inputs and the targets one place later.

    A target counts only if it belongs to the same document as its input: the first token of a
    document (its begin token) is never predicted from the document before.
    """
    same_RL = (segments_RM[:, 1:] == segments_RM[:, :-1]) & (segments_RM[:, 1:] > 0)
    return Batch(
        tokens=tokens_RM[:, :-1],
        targets=np.where(same_RL, tokens_RM[:, 1:], 0).astype(np.int32),
        weights=same_RL.astype(np.float32),
        positions=positions_RM[:, :-1],
        segments=segments_RM[:, :-1],
    )
