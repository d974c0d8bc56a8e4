"""Pieces for masked language modelling: chunks of documents, hidden in part, anew each epoch.

Shape letters: E pieces, T tokens of one of them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from lm.data import order
from lm.data.examples.chunks import Chunks, cut_documents, text_counts, text_lengths
from lm.data.examples.epochs import KeptEpochs
from lm.data.examples.example import Piece
from lm.data.storing.token_store import TokenStore
from lm.errors import UserError


class Hider(Protocol):
    """Chooses what is hidden: `lm.data.examples.masking.Masking`."""

    def number(self, texts_E: np.ndarray) -> np.ndarray:
        """How many of so many tokens of text are hidden, int64 (E,)."""
        ...

    def hide(
        self, tokens_T: np.ndarray, is_text_T: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens read, targets and weights, (T,) each; where `is_text_T` is False nothing is hidden."""
        ...


class MaskedPieces:
    """Each chunk of a document as `bos chunk eos`. Its tokens but those two are text, of which a part is hidden."""

    missing = "only hidden tokens are predicted, not the text as it was"

    def __init__(
        self, store: TokenStore, hider: Hider, length: int, bos_id: int, eos_id: int, seed: int, name: str
    ) -> None:
        self._store, self._hider, self._bos_id, self._eos_id = store, hider, bos_id, eos_id
        self._longest, self._key = length - self._specials, (seed, name)

    _specials = 2  # tokens of a piece that are not of its chunk
    _shortest = 1

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_chunks"}

    @cached_property
    def _chunks(self) -> Chunks:
        if self._longest < self._shortest:
            raise UserError(
                f"config.data.sequence_length: {self._longest + self._specials} tokens a row hold no text between the "
                "tokens around it; lengthen the rows."
            )
        return cut_documents(self._store, self._longest, self._shortest)

    @property
    def text(self) -> dict[str, int]:
        return text_counts(self._store, self._store.num_documents, whole=False)

    def __len__(self) -> int:
        return len(self._chunks.first_E)

    def hidden(self, epoch: int) -> np.ndarray:
        """How many tokens of each piece are hidden, int64 (E,); not with whole words."""
        return self._hider.number(self.sizes(epoch) - self._specials)

    def sizes(self, epoch: int) -> np.ndarray:
        """Tokens of each piece, int64 (E,); the same in each epoch."""
        return self._chunks.length_E + self._specials

    def make(self, epoch: int, index: int) -> Piece:
        """A piece with types 0; its targets are what is hidden, and 0 elsewhere."""
        return self._piece(epoch, index, [self._run(*self._place(index))])

    def _place(self, index: int) -> tuple[int, int]:
        """First token and length of a chunk."""
        return int(self._chunks.first_E[index]), int(self._chunks.length_E[index])

    def _run(self, first: int, length: int) -> np.ndarray:
        return np.asarray(self._store.tokens[first : first + length], np.int32)

    def _piece(self, epoch: int, index: int, texts: list[np.ndarray]) -> Piece:
        """`bos text eos text eos ...`, hidden in part."""
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
        return Piece(*self._hider.hide(tokens_T, is_text_T, rng), types_T)


class _Pairs(NamedTuple):
    """What is drawn for the pairs of an epoch: (E,) each."""

    follows_E: np.ndarray  # bool
    cut_E: np.ndarray  # tokens of A
    first_E: np.ndarray  # first token of B, as a place in the store
    length_E: np.ndarray  # tokens of B


class NextSentencePieces(MaskedPieces):
    """Each chunk as `bos A eos B eos`; the first token's target, without weight, is 1 if B follows A, else 0.

    Devlin 2019, section 3.1, each label with probability 1/2. A is the chunk up to a random place, and B the rest
    of it; or B is a run of tokens of another document, as long as that rest if the document has so many. Of the
    other documents' tokens each is as likely to name the one that B is taken from, so every document serves as B
    about as often in one half as in the other, and few are short (which would tell the halves apart).
    Raises UserError if there is but one document.
    """

    _specials = 3
    _shortest = 2

    def __init__(
        self, store: TokenStore, hider: Hider, length: int, bos_id: int, eos_id: int, seed: int, name: str
    ) -> None:
        super().__init__(store, hider, length, bos_id, eos_id, seed, name)
        self._kept = KeptEpochs[_Pairs]()
        if np.count_nonzero(text_lengths(store)) == 1:
            raise UserError(
                f"config.data: source {name} has one document only, and objective.next_sentence takes text of another "
                "one; set it to False, or tell the documents of the text apart (`document`)."
            )

    def sizes(self, epoch: int) -> np.ndarray:
        """Tokens of each piece, int64 (E,)."""
        pairs = self._kept.get(epoch, self._draw)
        return pairs.cut_E + pairs.length_E + self._specials

    def make(self, epoch: int, index: int) -> Piece:
        """A piece with types 0 up to the eos of A and then 1."""
        pairs = self._kept.get(epoch, self._draw)
        a = self._run(int(self._chunks.first_E[index]), int(pairs.cut_E[index]))
        piece = self._piece(epoch, index, [a, self._run(int(pairs.first_E[index]), int(pairs.length_E[index]))])
        piece.targets_T[0] = pairs.follows_E[index]
        return piece

    def _draw(self, epoch: int) -> _Pairs:
        chunk_first_E, chunk_length_E, document_E = self._chunks
        rng = order.generator("pairs", *self._key, epoch)
        follows_E = rng.random(len(document_E)) < 0.5
        cut_E = rng.integers(1, chunk_length_E)
        # The n-th token of all text but that of the piece's own document, and the document it lies in.
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
