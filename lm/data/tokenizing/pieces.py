"""Encodes long texts piece by piece, so that memory use depends on the piece length, not the text length."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lm.data.tokenizing.base import Tokenizer

PIECE = 1 << 20  # characters
SEARCHED = 1 << 14  # number of characters at the end of a piece that are searched for a gap
_GAP = re.compile(r"(?<=[^\W\d_])[ \n](?=[^\W\d_])")  # the whitespace between two words
# A tokenizer encodes words independently if encoding the parts of each probe jointly or separately gives equal ids.
_PROBES = (("the", " end"), ("a", "\nb"), ("Ein Wort", " und"), ("мир", " и"), ("x, y", " z"))


def encode_long(tokenizer: Tokenizer, text: str) -> Iterator[tuple[list[int], bool]]:
    """Yields the ids of each piece of a text and whether decoding these ids fails to restore the piece.

    The concatenated ids equal the ids of the whole text. There is one exception: if the tokenizer `cuts_anywhere`, a
    very long word may be split after every PIECE characters. If a tokenizer neither `cuts_anywhere` nor encodes words
    independently, the whole text is one piece.
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
        if number:  # many tokenizers drop a leading space, which this piece has only because of the cut
            yield ids, piece.lstrip() != found.lstrip()
        else:
            yield ids, piece != found


def cut(text: str, *, anywhere: bool = False) -> Iterator[str]:
    """Splits a text into consecutive pieces, between two words if possible.

    A piece has at most PIECE characters if there is a gap near its end. Otherwise, the piece extends to the next gap
    or, if `anywhere` is true, has exactly PIECE characters.
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
