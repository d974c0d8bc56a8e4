"""Examples for autoencoders: the source is a text, possibly corrupted, and the target is the text itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lm.data import order
from lm.data.examples.denoising import Corrupted, Denoiser, DenoisingExamples, Sizes, ended
from lm.data.examples.example import Example
from lm.data.storing.token_store import TokenStore


class DropAndShuffle(Denoiser):
    """Deletes tokens from the source and shuffles the remaining ones locally (Hill 2016, Lample 2018, section 2.3).

    round(n * dropped) tokens are deleted, but at least one is kept. The kept tokens are sorted by i + u, where i is the
    index of the token and u is drawn uniformly from [0, distance + 1). Therefore, no token moves by more than
    `distance` positions.
    """

    def __init__(self, dropped: float, distance: int, eos_id: int):
        self._dropped, self._distance, self._eos_id = dropped, distance, eos_id

    def fits(self, lengths_E: np.ndarray, source_length: int, target_length: int) -> np.ndarray:
        return lengths_E + 1 <= min(source_length, target_length)

    def sizes(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> Sizes:
        return self._kept(lengths_E) + 1, lengths_E + 1

    def _kept(self, lengths_E: np.ndarray) -> np.ndarray:
        return np.maximum(lengths_E - np.round(lengths_E * self._dropped).astype(np.int64), 1)

    def make(self, tokens: np.ndarray, draws_D: np.ndarray, rng: np.random.Generator) -> Corrupted:
        kept = int(self._kept(np.array(len(tokens))))
        source = tokens[np.sort(rng.permutation(len(tokens))[:kept])]
        if self._distance:
            source = source[np.argsort(np.arange(kept) + rng.uniform(0, self._distance + 1, kept), kind="stable")]
        return ended(source, self._eos_id), ended(tokens, self._eos_id)


class AutoencodingExamples(DenoisingExamples):
    """Texts to encode and reconstruct. Each text occupies a whole row, since a row's latent vectors encode one text.

    Each token of the decoder's input except the first is replaced by `unknown` with probability `word_dropout`
    (Bowman 2016).
    """

    def __init__(
        self,
        store: TokenStore,
        denoiser: Denoiser,
        lengths: tuple[int, int],
        *args: Any,
        word_dropout: float,
        unknown: int,
    ):
        super().__init__(store, denoiser, lengths, *args)
        self._lengths, self._word_dropout, self._unknown = lengths, word_dropout, unknown

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        source_length, length = self._lengths
        return tuple(np.full(len(self), each, np.int64) for each in (length, source_length))

    def num_targets(self) -> int:
        return int(super().sizes(0)[0].sum())

    def make(self, epoch: int, index: int) -> Example:
        example = super().make(epoch, index)
        if not self._word_dropout:
            return example
        rng = order.generator("word dropout", *self._key, epoch, index)
        replaced_T = rng.random(len(example.tokens_T)) < self._word_dropout
        replaced_T[0] = False
        return dataclasses.replace(example, tokens_T=np.where(replaced_T, self._unknown, example.tokens_T))
