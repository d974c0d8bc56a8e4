"""The parameters of an n-gram model: back-off tables in the form of a trie, one level per order.

    order_1   log_probs (V,)                    back_offs (V,)   begins (V + 1,)
    order_k   log_probs (N,)   words (N,)       back_offs (N,)   begins (N + 1,)
    order_n   log_probs (N,)   words (N,)

The n-grams that continue n-gram i of order k are begins[i] to begins[i + 1] - 1 of order k + 1, sorted by their last
token (`words`). `log_probs` holds ln p(w | h). If a word does not continue an n-gram, its probability in the next
lower order is multiplied by a factor, and `back_offs` holds the logarithm of this factor. For such words, `uniform`
(V,), if present, replaces the lower orders (add-k). An interpolated model has this form too, because p(w | h) of every
n-gram includes the contribution of the lower orders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.config.ngram import NgramSettings
from lm.models.ngram.counting import Level
from lm.models.ngram.smoothing import SMOOTHINGS, estimates

# The natural logarithm that stands for a probability of 0. In ARPA files, it is the base-10 logarithm -99.
ZERO = -99 * math.log(10)


def fitted(
    levels: Sequence[Level], settings: NgramSettings, possible: np.ndarray
) -> tuple[dict[str, Any], list[list[float]]]:
    """Returns the parameters estimated from counts, and the discounts of each order if the smoothing has any.

    `possible` (V,) marks the tokens that can be predicted. The discounts are those of the counts 1, 2 and 3 or more.
    """
    params: dict[str, Any] = {}
    discounts: list[list[float]] = []
    found = estimates(levels, settings, possible)
    for order, (level, estimate) in enumerate(zip(levels, found, strict=True), start=1):
        params[f"order_{order}"] = {"log_probs": log(estimate.probabilities)}
        if order > 1:
            params[f"order_{order}"]["words"] = level.words
            below = params[f"order_{order - 1}"]
            below |= {"back_offs": log(estimate.reserved), "begins": level.begins.astype(np.int32)}
        if estimate.discounts is not None:
            discounts.append(estimate.discounts[1:].tolist())
    if SMOOTHINGS[settings.smoothing].shares_equally:
        params["uniform"] = log(np.where(possible, 1.0 / possible.sum(), 0.0))
    return params, discounts


def log(probabilities: np.ndarray) -> np.ndarray:
    """Returns natural logarithms, float32. The logarithm of 0 is ZERO."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(probabilities), ZERO).astype(np.float32)


def shapes(order: int, vocab_size: int, sizes: Sequence[int], uniform: bool) -> dict[str, Any]:
    """Returns (shape, dtype) of each parameter. `sizes` holds the number of n-grams of each order from 2 up."""
    found: dict[str, Any] = {}
    for k, size in enumerate((vocab_size, *sizes), start=1):
        found[f"order_{k}"] = {"log_probs": ((size,), np.float32)}
        if k > 1:
            found[f"order_{k}"]["words"] = ((size,), np.int32)
        if k < order:
            found[f"order_{k}"] |= {"back_offs": ((size,), np.float32), "begins": ((size + 1,), np.int32)}
    if uniform:
        found["uniform"] = ((vocab_size,), np.float32)
    return found
