"""Masked language modelling (Devlin 2019, section 3.1): the choice of tokens to mask, and the examples.

E is the number of examples, T the number of tokens per example, n the number of tokens that are not special, k the
number of masked tokens, and W the number of words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lm.data import order
from lm.data.examples.example import ChunkExamples, Example
from lm.data.storing.token_store import TokenStore
from lm.data.tokenizing.special_tokens import SpecialTokens
from lm.errors import UserError

MASK, RANDOM = 0.8, 0.1  # fractions of the masked tokens replaced by the mask or by a random token; the others are kept

MaskedText = tuple[np.ndarray, np.ndarray, np.ndarray]  # int32 inputs, int32 targets, float32 weights, (T,) each


class Masking:
    """Masks max(1, round(density * n)) tokens of the text (halves are rounded to even), but never special tokens.

    Each masked token is independently replaced by the mask (80%) or a random token (10%), or left unchanged (10%).

    If `word_starts` is given, whole words are masked, as in BERT's later models. Words are tried in random order. A
    word is masked unless the total would exceed max(1, round(density * n)), so the total may be smaller than this
    number. If no word fits, one of the shortest words is masked. A word begins at a token for which `word_starts` is
    True, or at the first token of the text, and ends before the next such token. Special tokens do not end words: if
    [SEP] splits a word, either both parts are masked or neither is. Raises UserError if no token starts a word.

    Args:
        text_ids: the token ids from which random replacements are drawn uniformly, int32. The mask token is excluded.
        word_starts: whether each token of the vocabulary begins a word, bool (V,). If None, single tokens are masked.
    """

    def __init__(self, density: float, mask_id: int, text_ids: np.ndarray, word_starts: np.ndarray | None = None):
        if word_starts is not None and not word_starts.any():
            raise UserError(
                "config.objective.whole_words: no token of this vocabulary begins with whitespace or is marked as the "
                "beginning of a word, so words cannot be recognised; set whole_words to False."
            )
        self._density, self._mask_id, self._word_starts = density, mask_id, word_starts
        self.whole_words = word_starts is not None
        self._text_ids = np.asarray(text_ids[text_ids != mask_id], np.int32)

    def number(self, texts_E: np.ndarray) -> np.ndarray:
        """Returns the number of tokens to mask in texts of these lengths, int64 (E,).

        If whole words are masked, the number is an estimate.
        """
        return np.where(texts_E > 0, np.maximum(1, np.rint(self._density * texts_E)), 0).astype(np.int64)

    def mask(self, tokens_T: np.ndarray, is_text_T: np.ndarray, rng: np.random.Generator) -> MaskedText:
        """Masks some of the tokens for which `is_text_T` is True. The original tokens become targets of weight 1."""
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
    """Chooses random words with about `wanted` tokens in total. Returns whether each token is chosen, bool (n,)."""
    sizes_W = np.diff([0, *np.flatnonzero(starts_n[1:]) + 1, len(starts_n)])
    order_W = rng.permutation(len(sizes_W))
    chosen_W, left = np.zeros(len(sizes_W), bool), wanted
    for word, size in zip(order_W.tolist(), sizes_W[order_W].tolist(), strict=True):
        if size <= left:
            chosen_W[word] = True
            left -= size
            if not left:
                break
    if left == wanted:
        chosen_W[order_W[np.argmin(sizes_W[order_W])]] = True
    return np.repeat(chosen_W, sizes_W)


class MaskedExamples(ChunkExamples):
    """Examples that each consist of one chunk, enclosed in special tokens, with some of its tokens masked.

    An example has at most `length` tokens, including the special tokens. Unless whole words are masked, `sizes`
    includes the number of masked tokens.
    """

    _least = 1  # minimum number of tokens per chunk

    def __init__(self, store: TokenStore, masking: Masking, length: int, special: SpecialTokens, seed: int, name: str):
        self._template = special.for_text if self._least == 1 else special.for_pair
        self._added = self._template.num_special
        longest = length - self._added
        if longest < self._least:
            raise UserError(
                f"config.data.sequence_length: rows of {length} tokens are too short to hold text and special "
                "tokens; increase data.sequence_length."
            )
        super().__init__(store, longest, self._least, seed, name)
        self._masking = masking

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        sizes_E = self._token_counts(epoch)
        return (sizes_E,) if self._masking.whole_words else (sizes_E, self._masking.number(sizes_E - self._added))

    def _token_counts(self, epoch: int) -> np.ndarray:
        return self._chunks.length_E + self._added

    def make(self, epoch: int, index: int) -> Example:
        chunk = self._tokens(int(self._chunks.first_E[index]), int(self._chunks.length_E[index]))
        return self._example(epoch, index, chunk)

    def _example(self, epoch: int, index: int, *texts: np.ndarray) -> Example:
        tokens_T, types_T = self._template.fill(*texts)
        is_text_T = self._template.text_mask(*map(len, texts))
        rng = order.generator("mask", *self._key, epoch, index)
        return Example(*self._masking.mask(tokens_T, is_text_T, rng), types_T)


class _Pairs(NamedTuple):
    """The random choices of an epoch, as (E,) arrays."""

    follows_E: np.ndarray  # bool
    cut_E: np.ndarray  # number of tokens in A
    first_E: np.ndarray  # first token of B, as an index into the store
    length_E: np.ndarray  # number of tokens in B


class NextSentenceExamples(MaskedExamples):
    """Examples that each consist of two texts, A and B, to which special tokens are added.

    The first token has weight 0. Its target is 1 if B follows A and 0 otherwise; each has probability 1/2. A is the
    part of a chunk before a random index. B is either the rest of the chunk or the same number of consecutive tokens
    from another document (fewer if that document is shorter). To choose that document, a token is drawn uniformly from
    all documents except the one that contains A. Each document therefore serves as B about equally often under both
    labels, and B is rarely short enough to reveal the label. Raises UserError if there is only one document.
    """

    _least = 2

    def __init__(self, store: TokenStore, *args: Any):
        super().__init__(store, *args)
        self._kept = order.EpochCache[_Pairs]()
        if np.count_nonzero(store.text_lengths) == 1:
            raise UserError(
                f"config.data: source {self._key[1]} has only one document, but objective.next_sentence needs text "
                "from another document; set next_sentence to False, or split the text into documents (see `document`)."
            )

    def _token_counts(self, epoch: int) -> np.ndarray:
        pairs = self._kept.get(epoch, self._draw)
        return pairs.cut_E + pairs.length_E + self._added

    def make(self, epoch: int, index: int) -> Example:
        pairs = self._kept.get(epoch, self._draw)
        a = self._tokens(int(self._chunks.first_E[index]), int(pairs.cut_E[index]))
        b = self._tokens(int(pairs.first_E[index]), int(pairs.length_E[index]))
        example = self._example(epoch, index, a, b)
        example.targets_T[0] = pairs.follows_E[index]
        return example

    def _draw(self, epoch: int) -> _Pairs:
        chunk_first_E, chunk_length_E, document_E = self._chunks
        rng = order.generator("pairs", *self._key, epoch)
        follows_E = rng.random(len(document_E)) < 0.5
        cut_E = rng.integers(1, chunk_length_E)
        # Draw a token from the text outside the example's own document, and find the document that contains it.
        lengths = self.store.text_lengths
        ends = np.cumsum(lengths)
        nth_E = rng.integers(0, ends[-1] - lengths[document_E])
        nth_E += np.where(nth_E >= (ends - lengths)[document_E], lengths[document_E], 0)
        other_E = np.searchsorted(ends, nth_E, side="right")
        length_E = np.minimum(chunk_length_E - cut_E, lengths[other_E])
        first_E = np.asarray(self.store.starts)[other_E] + 1 + rng.integers(0, lengths[other_E] - length_E + 1)
        return _Pairs(
            follows_E,
            cut_E,
            np.where(follows_E, chunk_first_E + cut_E, first_E),
            np.where(follows_E, chunk_length_E - cut_E, length_E),
        )
