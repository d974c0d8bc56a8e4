"""Examples made from pairs: a source and a target for an encoder-decoder, or two texts with similar meaning.

E is the number of examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from lm.data.examples.example import Example, Examples, Joined, cut_notes, from_pair
from lm.data.storing.token_store import PairStore, TokenStore
from lm.data.tokenizing.special_tokens import SpecialTokens


class PairExamples(Examples):
    """The pairs of a store, which are the same in every epoch. Special tokens are added to each side.

    A side that is too long for a row is truncated at the end. If `drop` is true, the pair is omitted instead.
    """

    def __init__(
        self, pairs: PairStore, source_length: int, target_length: int, special: SpecialTokens, *, drop: bool = False
    ):
        assert pairs.source.num_documents == pairs.target.num_documents, "the sides have different numbers of documents"
        self._source, self._target, self._special, self._drop = pairs.source, pairs.target, special, drop
        self._added = special.for_source.num_special, special.for_target.num_special
        self._longest = source_length - self._added[0], target_length - self._added[1]  # maximum numbers of text tokens
        fate = "are too long, so their pairs are dropped" if drop else "are truncated"
        self.notes = [
            *_count_long([pairs.source], self._longest[0], f"sources {fate}", "source_length", source_length),
            *_count_long([pairs.target], self._longest[1], f"targets {fate}", "sequence_length", target_length),
        ]

    @cached_property
    def _kept_E(self) -> np.ndarray:
        """The indices of the pairs that are kept."""
        long = (self._source.text_lengths > self._longest[0]) | (self._target.text_lengths > self._longest[1])
        return np.flatnonzero(~(long & self._drop))

    @cached_property
    def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
        sides = zip((self._source, self._target), self._longest, self._added, strict=True)
        source_sizes_E, target_sizes_E = (
            np.minimum(side.text_lengths[self._kept_E], longest) + added for side, longest, added in sides
        )
        return target_sizes_E, source_sizes_E

    @property
    def text(self) -> dict[str, int]:
        counts = self._target.counts
        whole = len(self) == counts["documents"] and np.all(self._target.text_lengths <= self._longest[1])
        text = {name: counts[name] if whole else 0 for name in ("bytes", "words")}
        return {"documents": len(self), **text, "unknown": counts["unknown"]}

    def __len__(self) -> int:
        return len(self._kept_E)

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        return self._sizes

    def num_targets(self) -> int:
        return int(self._sizes[0].sum())

    def make(self, epoch: int, index: int) -> Example:
        pair = int(self._kept_E[index])
        source, target = self._source.text(pair), self._target.text(pair)
        return from_pair(source[: self._longest[0]], target[: self._longest[1]], self._special)

    def join(self, epoch: int, indices_E: np.ndarray) -> Joined:
        kept_E, special = self._kept_E[indices_E], self._special
        texts = [
            (side.tokens, side.starts[kept_E] + 1, sizes[indices_E] - added)
            for side, sizes, added in zip((self._target, self._source), self._sizes, self._added[::-1], strict=True)
        ]
        targets_T, _, sizes_E = special.for_target.fill_all(texts[0])
        source_S, _, source_sizes_E = special.for_source.fill_all(texts[1])
        inputs_T = np.roll(targets_T, 1)
        inputs_T[np.cumsum(sizes_E) - sizes_E] = special.decoder_start
        ones_T = np.ones(len(inputs_T), np.float32)
        return Joined(Example(inputs_T, targets_T, ones_T, source_S=source_S), sizes_E, source_sizes_E)


class PairedTexts(Examples):
    """Pairs of texts with similar meaning. Special tokens are added to each text.

    A text that is too long is truncated at the end. A pair occupies a whole row of `length` tokens. In each pair, only
    the first target token has a positive weight.
    """

    def __init__(self, pairs: PairStore, length: int, special: SpecialTokens):
        self._source, self._target, self._length, self._special = pairs.source, pairs.target, length, special
        self._longest = length - special.for_text.num_special
        sides = pairs.source, pairs.target
        self.notes = _count_long(sides, self._longest, "texts are truncated", "sequence_length", length)

    @property
    def text(self) -> dict[str, int]:
        return {"documents": len(self), "bytes": 0, "words": 0, "unknown": 0}

    def __len__(self) -> int:
        return self._target.num_documents

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        whole_row_E = np.full(len(self), self._length, np.int64)
        return whole_row_E, whole_row_E

    def num_targets(self) -> int:
        return len(self)

    def make(self, epoch: int, index: int) -> Example:
        sides = self._source, self._target
        source_S, tokens_T = (self._special.frame(side.text(index)[: self._longest])[0] for side in sides)
        weights_T = np.zeros(len(tokens_T), np.float32)
        weights_T[0] = 1.0
        return Example(tokens_T, np.zeros_like(tokens_T), weights_T, source_S=source_S)


def _count_long(sides: Sequence[TokenStore], longest: int, what: str, setting: str, length: int) -> list[str]:
    """Returns a note about texts of more than `longest` tokens, which do not fit in a row of `length` tokens."""
    lengths = np.concatenate([side.text_lengths for side in sides])
    return cut_notes(int(np.sum(lengths > longest)), len(lengths), what, setting, length)
