"""Tests whether a text is written in a script, such as LATIN or CJK (data.pairs.source_script and target_script)."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Callable

from lm.errors import UserError


@functools.cache
def script_test(name: str, setting: str) -> Callable[[str], bool]:
    """Returns a function that tests whether the Unicode names of most letters in a text begin with `name`.

    A text without letters passes the test. Raises UserError if no letter has such a name. Unicode's Script property,
    which `regex` supports, would not suffice: CJK, for example, is not a script.
    """
    prefix = name.strip().upper() + " "

    def matches(letter: str) -> bool:
        return unicodedata.name(letter, "").startswith(prefix)

    if not any(map(matches, filter(str.isalpha, map(chr, range(sys.maxunicode + 1))))):
        raise UserError(
            f"config.data.pairs.{setting}: {name!r} is not the beginning of any letter's Unicode name; "
            "use a name such as LATIN, CYRILLIC, GREEK, ARABIC, DEVANAGARI, HIRAGANA, HANGUL or CJK."
        )
    remembered = functools.cache(matches)  # because looking up Unicode names is slow

    def is_written_in(text: str) -> bool:
        letters = list(filter(str.isalpha, text))
        return not letters or 2 * sum(map(remembered, letters)) > len(letters)

    return is_written_in
