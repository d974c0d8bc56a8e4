"""Cuts long texts into pieces, so that the memory needed for encoding depends on the piece size, not the text size."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lm.data.tokenizing.base import Tokenizer

PIECE = 1 << 20  # characters
SEARCHED = 1 << 14  # number of characters at the end of a piece that are searched for a gap
_GAP = re.compile(r"(?<=[^\W\d_])[ \n](?=[^\W\d_])")  # the whitespace between two words
# A tokenizer is taken to encode words independently if, for each probe, encoding its two parts together gives the same
# ids as encoding them separately.
_PROBES = (("the", " end"), ("a", "\nb"), ("Ein Wort", " und"), ("мир", " и"), ("x, y", " z"))


def pieces_of(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    """Divides a text into consecutive pieces that can be encoded one by one.

    The concatenated ids of the pieces equal the ids of the whole text. There is one exception: if
    `tokenizer.cuts_anywhere` is true, a very long word may be split after every PIECE characters. If it is false and
    the tokenizer does not encode words independently, the whole text is one piece.
    """
    if tokenizer.cuts_anywhere:
        return cut(text, anywhere=True)
    if len(text) > PIECE and all(
        tokenizer.encode(a + b) == tokenizer.encode(a) + tokenizer.encode(b) for a, b in _PROBES
    ):
        return cut(text)
    return iter([text])


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
