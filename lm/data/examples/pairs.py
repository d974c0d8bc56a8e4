"""Numbered (source, target) examples of one data source, whose sizes are known before they are made.

That is what packing needs: it plans the rows of an epoch from sizes alone, and the tokens of a row are made
when the row is asked for. Whatever is drawn is drawn by key (seed, source name, epoch, and the example's
number), so every process makes the same examples, and each epoch has new ones.

Shape letters: E examples, D numbers drawn for an example.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np

from lm.data import order
from lm.data.examples.chunks import Chunks, cut_documents, text_counts, text_lengths
from lm.data.examples.epochs import KeptEpochs
from lm.data.storing.pair_store import PairStore
from lm.data.storing.token_store import TokenStore


class Examples(Protocol):
    """Picklable. Sizes count the end token and are never more than a row holds."""

    @property
    def text(self) -> dict[str, int]:
        """`documents`, `bytes`, `words` and `unknown` of the text that all targets spell (see `token_store`)."""
        ...

    @property
    def missing(self) -> str:
        """Why `bytes` and `words` are 0, or empty where they are right."""
        ...

    def __len__(self) -> int: ...

    def sizes(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of source and of target of each example, int64 (E,) and (E,)."""
        ...

    def make(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and target tokens of an example, int32, both with the end token."""
        ...


class PairExamples:
    """The pairs of a store, the same in every epoch: tokens and the end token of either side.

    Of a pair that is too long for a row, `overlong` "truncate" cuts the text and keeps the end token, and
    "drop" leaves the pair out.
    """

    def __init__(self, pairs: PairStore, source_length: int, target_length: int, overlong: str = "truncate"):
        assert pairs.source.num_documents == pairs.target.num_documents, "sides of different length"
        assert overlong in ("truncate", "drop"), overlong
        self._source, self._target = pairs.source, pairs.target
        self._source_length, self._target_length, self._drop = source_length, target_length, overlong == "drop"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_sizes", "_kept_E")}

    @cached_property
    def _kept_E(self) -> np.ndarray:
        """Numbers of the pairs that are not dropped."""
        fits = np.ones(self._source.num_documents, bool)
        if self._drop:
            fits &= text_lengths(self._source) < self._source_length
            fits &= text_lengths(self._target) < self._target_length
        return np.flatnonzero(fits)

    @cached_property
    def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
        source_sizes_E = text_lengths(self._source)[self._kept_E] + 1
        target_sizes_E = text_lengths(self._target)[self._kept_E] + 1
        return np.minimum(source_sizes_E, self._source_length), np.minimum(target_sizes_E, self._target_length)

    @property
    def text(self) -> dict[str, int]:
        return text_counts(self._target, len(self), whole=not self.missing)

    @property
    def missing(self) -> str:
        whole = len(self) == self._target.num_documents
        whole = whole and bool(np.all(text_lengths(self._target) < self._target_length))
        return "" if whole else "truncated: targets that are longer than a row are not scored whole"

    def __len__(self) -> int:
        return len(self._kept_E)

    def sizes(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return self._sizes

    def make(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        pair = int(self._kept_E[index])
        source = _cut(self._source.document(pair), self._source_length)
        return source, _cut(self._target.document(pair), self._target_length)


def _cut(document: np.ndarray, length: int) -> np.ndarray:
    """`[bos] text [eos]` without its bos, and with so much of the text that `length` tokens remain."""
    tokens = np.array(document[1 : length + 1], np.int32)
    tokens[-1] = document[-1]
    return tokens


class Denoiser(Protocol):
    """Makes an example of a chunk of text: a denoising objective (`lm/data/examples/corruption.py`)."""

    def longest_chunk(self, source_length: int, target_length: int) -> int:
        """Every example of a chunk of 2 to so many tokens fits the row, whatever is drawn."""
        ...

    def draw(self, lengths_E: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """All that is random about the sizes of the chunks' examples: (E, D)."""
        ...

    def sizes(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of source and target of each example, int64 (E,) and (E,)."""
        ...

    def make(self, tokens: np.ndarray, draws_D: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Source and target of a chunk, int32, of just those sizes."""
        ...


class DenoisingExamples:
    """Chunks of documents, corrupted anew each epoch.

    A document is cut into chunks of `longest_chunk` tokens and a rest; of one token alone no example can be made.
    """

    missing = "the targets are not the text as it was"

    def __init__(
        self, store: TokenStore, denoiser: Denoiser, source_length: int, target_length: int, seed: int, name: str
    ):
        self._store, self._denoiser, self._seed, self._name = store, denoiser, seed, name
        self._longest = denoiser.longest_chunk(source_length, target_length)
        self._kept = KeptEpochs[np.ndarray]()  # draws

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_chunks"}

    @cached_property
    def _chunks(self) -> Chunks:
        return cut_documents(self._store, self._longest, shortest=2)

    @property
    def text(self) -> dict[str, int]:
        return text_counts(self._store, self._store.num_documents, whole=False)

    def __len__(self) -> int:
        return len(self._chunks.first_E)

    def sizes(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return self._denoiser.sizes(self._chunks.length_E, self._draws(epoch))

    def make(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        first, length = int(self._chunks.first_E[index]), int(self._chunks.length_E[index])
        tokens = np.asarray(self._store.tokens[first : first + length], np.int32)
        rng = order.generator("corrupt", self._seed, self._name, epoch, index)
        return self._denoiser.make(tokens, self._draws(epoch)[index], rng)

    def _draws(self, epoch: int) -> np.ndarray:
        return self._kept.get(epoch, self._draw)

    def _draw(self, epoch: int) -> np.ndarray:
        return self._denoiser.draw(self._chunks.length_E, order.generator("draw", self._seed, self._name, epoch))
