"""Masked language modelling (Devlin 2019, section 3.1): which tokens are hidden, and what is read in their place.

Pure NumPy. Where the randomness comes from is the caller's affair.

Shape letters: T tokens of a piece, n of its text (its tokens less the special ones), k hidden, W words.
"""

from __future__ import annotations

import numpy as np

from lm.config import ObjectiveConfig
from lm.errors import UserError

MASKED, RANDOM = 0.8, 0.1  # of the hidden tokens; the others are read as they are

Hidden = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens read int32, targets int32, weights float32: (T,) each


class Masking:
    """Hides max(1, round(density n)) tokens of the text; a half is rounded to even. Special tokens never.

    Of the hidden tokens, each for itself, 80 % are read as the mask, 10 % as a random token, 10 % as they are.

    With `word_starts` whole words are hidden, as in BERT's later release: in random order those that still fit
    into the number, so there may be a few tokens less. If none fits, one of the shortest is hidden whole. A word is
    a token that starts one, or the first of the text, with all that follow it up to the next such. A special
    token ends no word: where a word is cut in two by [SEP], both parts are hidden or neither.

    Args:
        text_ids: int32, the tokens that a random one is drawn from, each as likely.
        word_starts: bool (V,), whether a token begins a word; None to hide single tokens.
    """

    def __init__(self, density: float, mask_id: int, text_ids: np.ndarray, word_starts: np.ndarray | None = None):
        self._density, self._mask_id, self._word_starts = density, mask_id, word_starts
        self._text_ids = np.asarray(text_ids, np.int32)

    def number(self, texts_E: np.ndarray) -> np.ndarray:
        """How many of so many tokens of text are hidden, int64 (E,); with whole words it may be another number."""
        return np.where(texts_E > 0, np.maximum(1, np.rint(self._density * texts_E)), 0).astype(np.int64)

    def mask(self, tokens_T: np.ndarray, is_text_T: np.ndarray, rng: np.random.Generator) -> Hidden:
        """Tokens read, targets and weights of a piece; `is_text_T` is False at its special tokens.

        Targets are the tokens hidden, with weight 1; elsewhere both are 0. Without text nothing is hidden.
        """
        read_T = np.array(tokens_T, np.int32)
        targets_T, weights_T = np.zeros_like(read_T), np.zeros(len(read_T), np.float32)
        text_n = np.flatnonzero(is_text_T)
        if not len(text_n):
            return read_T, targets_T, weights_T
        wanted = int(self.number(np.array(len(text_n))))
        if self._word_starts is None:
            masked_k = text_n[rng.permutation(len(text_n))[:wanted]]
        else:
            masked_k = text_n[choose_words(self._word_starts[read_T[text_n]], wanted, rng)]
        tokens_k = read_T[masked_k]
        chance_k = rng.random(len(masked_k))
        random_k = self._text_ids[rng.integers(0, len(self._text_ids), len(masked_k))]
        kept_k = np.where(chance_k < MASKED + RANDOM, random_k, tokens_k)
        read_T[masked_k] = np.where(chance_k < MASKED, self._mask_id, kept_k)
        targets_T[masked_k] = tokens_k
        weights_T[masked_k] = 1.0
        return read_T, targets_T, weights_T


def choose_words(starts_n: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Bool (n,): tokens of random words that have `wanted` tokens or less in all (see `Masking`).

    `starts_n` tells where words begin; the first token begins one in any case.
    """
    begins_W = np.flatnonzero(starts_n[1:]) + 1
    begins_W = np.concatenate([[0], begins_W])
    sizes_W = np.diff(np.append(begins_W, len(starts_n)))
    order_W = rng.permutation(len(sizes_W))
    ordered_W = sizes_W[order_W]
    # Words that fit one after another, up to the first that does not; after it each that still fits.
    count = int(np.searchsorted(np.cumsum(ordered_W), wanted, side="right"))
    chosen_W = np.zeros(len(sizes_W), bool)
    chosen_W[order_W[:count]] = True
    left = wanted - int(ordered_W[:count].sum())
    while left:
        fitting = np.flatnonzero(ordered_W[count:] <= left)
        if not len(fitting):
            break
        count += int(fitting[0]) + 1
        chosen_W[order_W[count - 1]] = True
        left -= int(ordered_W[count - 1])
    if not chosen_W.any():
        chosen_W[order_W[np.argmin(ordered_W)]] = True
    return np.repeat(chosen_W, sizes_W)


def build_masking(
    objective: ObjectiveConfig, mask_id: int, text_ids: np.ndarray, word_starts: np.ndarray | None
) -> Masking:
    """The masking of a config. `word_starts` is read for objective.whole_words alone.

    Raises UserError if the vocabulary does not tell where words begin.
    """
    text_ids = text_ids[text_ids != mask_id]
    if not objective.whole_words:
        return Masking(objective.noise_density, mask_id, text_ids)
    assert word_starts is not None, "to hide whole words one must know where they begin"
    if not word_starts.any():
        raise UserError(
            "config.objective.whole_words: no token of this vocabulary begins with white space or is marked as the "
            "beginning of a word, so words cannot be told; set it to False."
        )
    return Masking(objective.noise_density, mask_id, text_ids, word_starts)
