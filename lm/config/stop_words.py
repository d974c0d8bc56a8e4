"""Reads the file given by data.cleaning.stop_words, so that a run directory contains the words themselves."""

from __future__ import annotations

import regex

from lm.config.schema import entries
from lm.errors import UserError
from lm.files import expanded, read_file

_CHARACTERS = r"[\p{L}\p{M}\p{N}]"
# A word consists of letters, digits and combining marks; apostrophes and hyphens may connect its parts. The English
# clitics that treebank tokenisation splits off ('s, 're, ...) are words too.
WORD = regex.compile(
    rf"{_CHARACTERS}+(?:[-'’]{_CHARACTERS}+)*|(?<!{_CHARACTERS})['’](?:s|m|re|ve|d|ll)(?!{_CHARACTERS})",
    regex.IGNORECASE,
)
LARGEST_FILE = 1_000_000  # bytes; a list of stop words usually has a few thousand bytes


def with_words(stop_words: str) -> str:
    """Returns the words of a file, each followed by a line break.

    The name of a built-in list, and words that have already been read, are returned unchanged. Raises UserError if the
    file is missing or is not a list of words.
    """
    if (
        not stop_words
        or "\n" in stop_words
        or stop_words in (lists := entries("lm.data.storing.stop_words.STOP_WORDS"))
    ):
        return stop_words
    where, path = f"config.data.cleaning.stop_words: {stop_words}", expanded(stop_words)
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise UserError(f"{where} has {size:,} bytes; a list of stop words has at most {LARGEST_FILE:,}.")
        text = read_file(path).decode("utf-8-sig")
    except OSError as error:
        choices = " or ".join(map(repr, lists))
        raise UserError(
            f"{where} cannot be read ({error.strerror or error}); use {choices}, or a file with one word per line."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not encoded in UTF-8 (byte {error.start:,}); convert it to UTF-8.") from None
    words = []
    for number, line in enumerate(text.split("\n"), start=1):
        if len(parts := line.split()) > 1:
            raise UserError(
                f"{where}, line {number}: {line.strip()!r:.60} is not a single word; put one word per line."
            )
        if parts and not WORD.fullmatch(parts[0]):
            raise UserError(
                f"{where}, line {number}: {parts[0]!r:.60} never occurs as a word, because words consist of letters "
                "and digits, which apostrophes and hyphens may connect; remove this line."
            )
        words += parts
    if not words:
        raise UserError(f"{where} contains no words; leave this setting empty to keep all words.")
    return "".join(f"{word}\n" for word in dict.fromkeys(words))
