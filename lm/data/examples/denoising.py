"""Examples for denoising: chunks of documents, corrupted anew in each epoch.

Shape letters: E examples, D numbers drawn for an example.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from lm.data import order
from lm.data.examples.chunks import Chunks, cut_documents, text_counts
from lm.data.examples.corruption import Denoiser
from lm.data.examples.epochs import KeptEpochs
from lm.data.examples.example import Example, Examples, from_pair
from lm.data.storing.token_store import TokenStore


class DenoisingExamples(Examples):
    """Documents cut into chunks of `denoiser.longest_chunk` tokens and a rest. A single token gives no example."""

    missing = "the targets are not the text as it was"

    def __init__(
        self,
        store: TokenStore,
        denoiser: Denoiser,
        source_length: int,
        target_length: int,
        bos_id: int,
        seed: int,
        name: str,
    ):
        self._store, self._denoiser, self._bos_id = store, denoiser, bos_id
        self._seed, self._name = seed, name
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

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        source_sizes_E, target_sizes_E = self._denoiser.sizes(self._chunks.length_E, self._draws(epoch))
        return target_sizes_E, source_sizes_E

    def num_targets(self) -> int:
        return int(self.sizes(0)[0].sum())

    def make(self, epoch: int, index: int) -> Example:
        first, length = int(self._chunks.first_E[index]), int(self._chunks.length_E[index])
        tokens = np.asarray(self._store.tokens[first : first + length], np.int32)
        rng = order.generator("corrupt", self._seed, self._name, epoch, index)
        source_S, target_T = self._denoiser.make(tokens, self._draws(epoch)[index], rng)
        return from_pair(source_S, target_T, self._bos_id)

    def _draws(self, epoch: int) -> np.ndarray:
        return self._kept.get(epoch, self._draw)

    def _draw(self, epoch: int) -> np.ndarray:
        return self._denoiser.draw(self._chunks.length_E, order.generator("draw", self._seed, self._name, epoch))
