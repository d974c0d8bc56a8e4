"""Masked language modelling (Devlin 2019, section 3.1): which tokens are masked, and what is read instead of them.

Pure NumPy. The caller supplies the random generator.

Shape letters: T tokens of an example, n of its text (without special tokens), k masked, W words.
"""

from __future__ import annotations

import numpy as np

from lm.config import ObjectiveConfig
from lm.errors import UserError

MASK, RANDOM = 0.8, 0.1  # shares of the masked tokens; the others are read as they are

MaskedText = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens read int32, targets int32, weights float32: (T,) each


class Masking:
    """Masks max(1, round(density n)) tokens of the text, a half rounded to even; never a special token.

    Each masked token, independently, is read as the mask (80 %), as a random token (10 %) or as it is (10 %).

    With `word_starts` whole words are masked, as in BERT's later release: words in random order, as long as they fit
    into the number of tokens, so it may not be reached exactly. If no word fits, one of the shortest is masked. A word
    is a token that starts one, or the first token of the text, with all tokens up to the next start. A special token
    ends no word: if [SEP] cuts a word in two, both parts are masked or neither.

    Args:
        text_ids: int32, the tokens from which random ones are drawn uniformly.
        word_starts: bool (V,), whether a token begins a word; None to mask single tokens.
    """

    def __init__(self, density: float, mask_id: int, text_ids: np.ndarray, word_starts: np.ndarray | None = None):
        self._density, self._mask_id, self._word_starts = density, mask_id, word_starts
        self._text_ids = np.asarray(text_ids, np.int32)

    def number(self, texts_E: np.ndarray) -> np.ndarray:
        """Returns how many tokens of texts of these lengths are masked, int64 (E,); a bound for whole words."""
        return np.where(texts_E > 0, np.maximum(1, np.rint(self._density * texts_E)), 0).astype(np.int64)

    def mask(self, tokens_T: np.ndarray, is_text_T: np.ndarray, rng: np.random.Generator) -> MaskedText:
        """Returns the tokens to read, targets and weights of an example; `is_text_T` is False at its special tokens.

        Targets are the masked tokens, with weight 1; elsewhere both are 0. Without text nothing is masked.
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
        kept_k = np.where(chance_k < MASK + RANDOM, random_k, tokens_k)
        read_T[masked_k] = np.where(chance_k < MASK, self._mask_id, kept_k)
        targets_T[masked_k] = tokens_k
        weights_T[masked_k] = 1.0
        return read_T, targets_T, weights_T


def choose_words(starts_n: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the tokens of random words that have at most `wanted` tokens together, bool (n,); see `Masking`.

    `starts_n` says where words begin; the first token always begins one.
    """
    begins_W = np.flatnonzero(starts_n[1:]) + 1
    begins_W = np.concatenate([[0], begins_W])
    sizes_W = np.diff(np.append(begins_W, len(starts_n)))
    order_W = rng.permutation(len(sizes_W))
    ordered_W = sizes_W[order_W]
    # Words as long as they fit, up to the first that does not; after that every word that still fits.
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
    """Returns the masking of a config; `word_starts` is used only with objective.whole_words.

    Raises UserError if the vocabulary does not mark where words begin.
    """
    text_ids = text_ids[text_ids != mask_id]
    if not objective.whole_words:
        return Masking(objective.noise_density, mask_id, text_ids)
    assert word_starts is not None, "masking whole words requires to know where they begin"
    if not word_starts.any():
        raise UserError(
            "config.objective.whole_words: no token of this vocabulary begins with white space or is marked as the "
            "beginning of a word, so words cannot be recognised; set it to False."
        )
    return Masking(objective.noise_density, mask_id, text_ids, word_starts)
