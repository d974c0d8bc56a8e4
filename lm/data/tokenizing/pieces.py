"""Encodes long texts piece by piece, so that memory depends on the length of a piece and not on that of the text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lm.data.tokenizing.base import Tokenizer

PIECE = 1 << 20  # characters
SEARCHED = 1 << 14  # characters at the end of a piece in which a gap is searched for
_GAP = re.compile(r"(?<=[^\W\d_])[ \n](?=[^\W\d_])")  # between two words
# A tokenizer for which these hold encodes words on both sides of a gap independently.
_PROBES = (("the", " end"), ("a", "\nb"), ("Ein Wort", " und"), ("мир", " и"), ("x, y", " z"))


def encode_long(tokenizer: Tokenizer, text: str) -> Iterator[tuple[list[int], bool]]:
    """Yields the ids of consecutive pieces of a text, and whether decoding them does not restore the piece.

    Together they are the ids of the text, except that a tokenizer that `cuts_anywhere` may encode a word without spaces
    in two parts once in PIECE characters. Texts of other tokenizers whose words depend on each other are one piece.
    """
    if tokenizer.cuts_anywhere:
        pieces = cut(text, anywhere=True)
    elif len(text) > PIECE and all(
        tokenizer.encode(a + b) == tokenizer.encode(a) + tokenizer.encode(b) for a, b in _PROBES
    ):
        pieces = cut(text)
    else:
        pieces = iter([text])
    for number, piece in enumerate(pieces):
        ids = tokenizer.encode(piece)
        (found,) = tokenizer.decode_each([ids])
        if number:  # many tokenizers drop a space at the beginning, which this piece has only because of the cut
            yield ids, piece.lstrip() != found.lstrip()
        else:
            yield ids, piece != found


def cut(text: str, *, anywhere: bool = False) -> Iterator[str]:
    """Yields consecutive pieces of a text, cut before the gap between two words.

    A piece has at most PIECE characters, or more if there is no gap; with `anywhere`, it is then cut regardless.
    """
    begin = 0
    while (end := begin + PIECE) < len(text):
        gaps = [match.start() for match in _GAP.finditer(text, end - SEARCHED, end)]
        if gaps:
            end = gaps[-1]
        elif not anywhere:
            match = _GAP.search(text, end)
            end = match.start() if match else len(text)
        yield text[begin:end]
        begin = end
    yield text[begin:]
