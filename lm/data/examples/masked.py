"""Examples for masked language modelling: chunks of documents, some of their tokens masked, anew in each epoch.

Shape letters: E examples, T tokens of one example.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lm.data import order
from lm.data.examples.chunks import Chunks, cut_documents, text_counts, text_lengths
from lm.data.examples.epochs import KeptEpochs
from lm.data.examples.example import Example, Examples
from lm.data.examples.masking import Masking
from lm.data.storing.token_store import TokenStore
from lm.errors import UserError


class MaskedExamples(Examples):
    """Each chunk of a document as `bos chunk eos`, of which some tokens other than those two are masked.

    Args:
        length: tokens per row.
        count_masked: whether `sizes` also gives the number of masked tokens. It is not known for whole words.
    """

    missing = "only masked tokens are predicted, not the text as it was"
    _specials = 2  # tokens of an example that are not from its chunk
    _shortest = 1

    def __init__(
        self,
        store: TokenStore,
        masking: Masking,
        length: int,
        bos_id: int,
        eos_id: int,
        seed: int,
        name: str,
        *,
        count_masked: bool,
    ) -> None:
        self._store, self._masking, self._bos_id, self._eos_id = store, masking, bos_id, eos_id
        self._longest, self._key, self._count_masked = length - self._specials, (seed, name), count_masked

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_chunks"}

    @cached_property
    def _chunks(self) -> Chunks:
        if self._longest < self._shortest:
            raise UserError(
                f"config.data.sequence_length: rows of {self._longest + self._specials} tokens have no space for text "
                "beside the tokens around it; lengthen the rows."
            )
        return cut_documents(self._store, self._longest, self._shortest)

    @property
    def text(self) -> dict[str, int]:
        return text_counts(self._store, self._store.num_documents, whole=False)

    def __len__(self) -> int:
        return len(self._chunks.first_E)

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        sizes_E = self._token_counts(epoch)
        return (sizes_E, self._masking.number(sizes_E - self._specials)) if self._count_masked else (sizes_E,)

    def _token_counts(self, epoch: int) -> np.ndarray:
        return self._chunks.length_E + self._specials

    def make(self, epoch: int, index: int) -> Example:
        """Returns an example whose targets are the masked tokens, and 0 elsewhere."""
        first, length = int(self._chunks.first_E[index]), int(self._chunks.length_E[index])
        return self._example(epoch, index, [self._tokens(first, length)])

    def _tokens(self, first: int, length: int) -> np.ndarray:
        return np.asarray(self._store.tokens[first : first + length], np.int32)

    def _example(self, epoch: int, index: int, texts: list[np.ndarray]) -> Example:
        """`bos text eos text eos ...`, masked."""
        whole = [np.array([self._bos_id], np.int32)]
        for text in texts:
            whole += [text, np.array([self._eos_id], np.int32)]
        tokens_T = np.concatenate(whole)
        is_text_T, types_T = np.ones(len(tokens_T), bool), np.zeros(len(tokens_T), np.int32)
        is_text_T[0] = False
        end = 0
        for text in texts:
            types_T[end + 1 :] = int(end > 0)
            end += len(text) + 1
            is_text_T[end] = False
        rng = order.generator("mask", *self._key, epoch, index)
        return Example(*self._masking.mask(tokens_T, is_text_T, rng), types_T)


class _Pairs(NamedTuple):
    """What is drawn for the pairs of an epoch: (E,) each."""

    follows_E: np.ndarray  # bool
    cut_E: np.ndarray  # tokens of A
    first_E: np.ndarray  # first token of B, as an index into the store
    length_E: np.ndarray  # tokens of B


class NextSentenceExamples(MaskedExamples):
    """Each chunk as `bos A eos B eos`; the first token's target, without a weight, is 1 if B follows A, else 0.

    Devlin 2019, section 3.1: either label with probability 1/2. A is the chunk up to a random index, and B is either
    the rest of it or a run of tokens from another document, as long as that rest if the document has enough tokens.
    Every token of the other documents is chosen with equal probability, and B is taken from the document it lies in.
    So a document serves as B about equally often under both labels, and few Bs are short, which would reveal the
    label. Raises UserError if there is only one document.
    """

    _specials = 3
    _shortest = 2

    def __init__(self, store: TokenStore, *args: Any, **options: Any) -> None:
        super().__init__(store, *args, **options)
        self._kept = KeptEpochs[_Pairs]()
        if np.count_nonzero(text_lengths(store)) == 1:
            raise UserError(
                f"config.data: source {self._key[1]} has only one document, and objective.next_sentence needs text "
                "from another one; set it to False, or separate the documents of the text (`document`)."
            )

    def _token_counts(self, epoch: int) -> np.ndarray:
        pairs = self._kept.get(epoch, self._draw)
        return pairs.cut_E + pairs.length_E + self._specials

    def make(self, epoch: int, index: int) -> Example:
        """Returns an example with types 0 up to the eos of A and then 1."""
        pairs = self._kept.get(epoch, self._draw)
        a = self._tokens(int(self._chunks.first_E[index]), int(pairs.cut_E[index]))
        example = self._example(epoch, index, [a, self._tokens(int(pairs.first_E[index]), int(pairs.length_E[index]))])
        example.targets_T[0] = pairs.follows_E[index]
        return example

    def _draw(self, epoch: int) -> _Pairs:
        chunk_first_E, chunk_length_E, document_E = self._chunks
        rng = order.generator("pairs", *self._key, epoch)
        follows_E = rng.random(len(document_E)) < 0.5
        cut_E = rng.integers(1, chunk_length_E)
        # The n-th token of all text outside the example's own document, and the document it lies in.
        lengths = text_lengths(self._store)
        ends = np.cumsum(lengths)
        nth_E = rng.integers(0, ends[-1] - lengths[document_E])
        nth_E += np.where(nth_E >= (ends - lengths)[document_E], lengths[document_E], 0)
        other_E = np.searchsorted(ends, nth_E, side="right")
        length_E = np.minimum(chunk_length_E - cut_E, lengths[other_E])
        first_E = np.asarray(self._store.starts)[other_E] + 1 + rng.integers(0, lengths[other_E] - length_E + 1)
        return _Pairs(
            follows_E,
            cut_E,
            np.where(follows_E, chunk_first_E + cut_E, first_E),
            np.where(follows_E, chunk_length_E - cut_E, length_E),
        )
