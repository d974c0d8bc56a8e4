"""Encodes texts for a token store by looking up words encoded earlier, which is faster than running SentencePiece.

The ids are the same as SentencePiece's if the model encodes each word of a line independently. A BPE model does so if
no piece extends beyond a word. In a unigram model, the sums of scores must also be exact. Otherwise, how a sum is
rounded to 32 bits depends on the text that precedes the word in its line. A word with two segmentations of almost equal
score may then be segmented differently in different lines. Sums of multiples of GRID are exact up to EXACT, so
`SentencePieceTokenizer` rounds the scores of the models that it trains to such multiples.

A word includes the spaces before it. E is the number of texts, N the number of tokens, U the number of words, and
W the number of distinct words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lm.data.tokenizing.flat import Flat, flat_of
from lm.data.tokenizing.piece_files import SPACE

if TYPE_CHECKING:
    import pyarrow

GRID = 2.0**-8  # the scores of unigram models trained by `SentencePieceTokenizer` are multiples of this
EXACT = 2.0**24 * GRID  # 32-bit floats represent all multiples of GRID up to this number exactly
REPEATS = 2  # the cache is not used if words occur less often than this in a call, on average
MOST_WORDS, MOST_BYTES = 1 << 17, 1 << 25  # limits on the cached words; 2^17 short words take about 50 MB
START, BREAK = b"\0", b"\n"  # mark the start of a text and of each subsequent line
_KINDS = bytes(1 if byte == 32 else 2 if byte in START + BREAK else 0 for byte in range(256))


class _Rows(dict[bytes, int]):
    """Maps a word to its row. A new word gets the next row and is added to `new`."""

    def __init__(self) -> None:
        self.new: list[bytes] = []

    def __missing__(self, word: bytes) -> int:
        row = self[word] = len(self)
        self.new.append(word)
        return row


class WordCache:
    """The ids of the words that have occurred so far.

    Words are UTF-8 bytes. The first word of a text begins with START, and the first word of any other line with BREAK.
    """

    def __init__(
        self,
        encode: Callable[[list[str]], list[list[int]]],
        line_break: Sequence[int],
        between: Sequence[int],
        score_V: np.ndarray | None = None,
    ):
        """Creates an empty cache.

        Args:
            encode: a function that encodes parts of lines.
            line_break: the ids of a line break.
            between: the two ids between one text and the next.
            score_V: the scores of all tokens of a unigram model; None for other models.
        """
        self._encode, self._prefixes = encode, {BREAK: list(line_break), START: list(between)}
        self._score_V = None if score_V is None else np.abs(score_V, dtype=np.float64)
        self._clear()

    def _clear(self) -> None:
        self._rows, self._num_bytes = _Rows(), 0
        self._ids = np.zeros(0, np.int32)  # the ids of all words, concatenated
        # For each word: where its ids begin, how many there are, the sum of their absolute scores, and whether the word
        # starts a line or a text.
        self._begins, self._lengths, self._scores = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        self._starts_line, self._starts_text = np.zeros(0, bool), np.zeros(0, bool)

    def encode(self, texts: Sequence[str]) -> Flat | None:
        """Returns the ids of `start text eos` for all texts, int32 (N,), and the number of ids per text, int64 (E,).

        Returns None if the words rarely repeat, if the texts contain START or SPACE, or if a line or a word is so long
        that the sums of its scores may not be exact.
        """
        joined = "\0".join(["", *texts])
        if SPACE in joined or joined.count("\0") > len(texts):
            return None
        found = _words_of(joined.encode())
        words_W, index_U = found.dictionary.to_pylist(), found.indices.to_numpy()
        if len(index_U) < REPEATS * len(words_W):
            return None
        # While SentencePiece searches within a word, a sum may exceed that of the best segmentation by this much.
        excess = 0.0 if self._score_V is None else len(max(words_W, key=len)) * self._score_V.max()
        if excess >= EXACT:
            return None
        if len(self._rows) + len(words_W) > MOST_WORDS or self._num_bytes > MOST_BYTES:
            self._clear()
        row_U = self._rows_of(words_W)[index_U]
        if self._score_V is not None:
            score_of_lines = np.add.reduceat(self._scores[row_U], np.flatnonzero(self._starts_line[row_U]))
            if score_of_lines.max() + excess >= EXACT:
                return None
        length_U = self._lengths[row_U]
        end_U = np.cumsum(length_U)
        position_N = np.repeat(self._begins[row_U] - end_U + length_U, length_U)
        position_N += np.arange(len(position_N))
        ids_N = self._ids[position_N]
        begin_E = (end_U - length_U)[self._starts_text[row_U]]
        return np.append(ids_N[1:], ids_N[:1]), np.diff(begin_E, append=len(ids_N))

    def _rows_of(self, words: list[bytes]) -> np.ndarray:
        """Returns the row of each word, int64 (W,). Encodes new words."""
        try:
            rows = np.fromiter(map(self._rows.__getitem__, words), np.int64, len(words))
            if self._rows.new:
                self._add(self._rows.new)
                self._rows.new = []
        except BaseException:
            self._clear()  # after an error such as MemoryError, the arrays may be inconsistent
            raise
        return rows

    def _add(self, words: list[bytes]) -> None:
        prefixes = [self._prefixes.get(word[:1]) for word in words]
        parts = [word if prefix is None else word[1:] for word, prefix in zip(words, prefixes, strict=True)]
        encoded = self._encode([part.decode() for part in parts])
        ids, lengths = flat_of([(prefix or []) + each for prefix, each in zip(prefixes, encoded, strict=True)])
        begins = np.cumsum(lengths) - lengths
        self._num_bytes += sum(map(len, words)) + ids.nbytes
        self._begins = np.append(self._begins, len(self._ids) + begins)
        self._ids = np.append(self._ids, ids)
        self._lengths = np.append(self._lengths, lengths)
        self._starts_line = np.append(self._starts_line, [prefix is not None for prefix in prefixes])
        self._starts_text = np.append(self._starts_text, [word[:1] == START for word in words])
        if self._score_V is not None:
            self._scores = np.append(self._scores, np.add.reduceat(self._score_V[ids], begins))


def _words_of(joined: bytes) -> pyarrow.DictionaryArray:
    """Splits texts, each of which is preceded by START, into words."""
    import pyarrow

    kinds = np.frombuffer(joined.translate(_KINDS), np.uint8)
    is_start = kinds == 2
    is_start[1:] |= kinds[1:] > kinds[:-1]  # a space that does not follow another space
    offsets = np.append(np.flatnonzero(is_start), len(joined)).astype(np.int32)
    buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(joined)]
    return pyarrow.Array.from_buffers(pyarrow.binary(), len(offsets) - 1, buffers).dictionary_encode()
