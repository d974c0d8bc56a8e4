"""Splits text in any script into tokens, and determines the writing system of a set of texts.

Chinese, Japanese, Thai and similar scripts have no spaces between words. In text without spaces, word-based metrics
count characters instead of words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import regex

# The scripts without spaces between words: Tibetan, and those in the line-breaking classes ID, SA, AK and AP (UAX 14).
_NAMES = "Hani Bopo Hira Kana Yiii Thai Laoo Khmr Mymr Tibt Tale Talu Lana Tavt Ahom Java Bali"
# Marks common to hiragana and katakana, such as ー.
_SHARED = r"\u3031-\u3035\u303c\u3099-\u309c\u30fc\uff70\uff9e\uff9f"
_UNSPACED = "".join(rf"\p{{sc={name}}}" for name in _NAMES.split()) + _SHARED
_LETTERS = r"[\p{L}\p{M}\p{N}]"  # combining marks, such as Hindi vowel signs, belong to words


def _pattern(text: str) -> regex.Pattern[str]:
    return regex.compile(text, regex.V1)  # version 1 of the syntax supports the set operators && and --


LETTER = _pattern(_LETTERS)
CHARACTER = _pattern(f"[{_LETTERS}&&[{_UNSPACED}]]")  # a character of a script without spaces
WORD = _pattern(f"[{_LETTERS}--[{_UNSPACED}]]+")
TOKEN = _pattern(f"{CHARACTER.pattern}|{WORD.pattern}")
KANA, IDEOGRAPH, HANGUL = map(_pattern, (rf"[\p{{sc=Hira}}\p{{sc=Kana}}{_SHARED}]", r"\p{sc=Hani}", r"\p{sc=Hang}"))

# A sentence ends after its final punctuation and any closing quotation marks and brackets that follow. Except after
# Chinese and Japanese punctuation, whitespace must follow.
SENTENCE = regex.compile(r".+?(?:[.!?…]+[\p{Pf}\p{Pe}\"']*(?=\s)|[。！？]+[\p{Pf}\p{Pe}\"']*|\n|$)", regex.DOTALL)

LEAST_KANA = 0.1  # minimum share of kana among the kana and ideographs of Japanese text
# Writing systems.
CHINESE, JAPANESE, UNSPACED, KOREAN, SPACED = "Chinese", "Japanese", "without spaces", "Korean", "with spaces"


@dataclass(frozen=True)
class Writing:
    """The writing system of a set of texts."""

    kind: str  # CHINESE, JAPANESE, UNSPACED, KOREAN or SPACED
    unspaced: float  # the share of tokens that are single characters; above one half for the first three kinds
    not_ascii: float  # the share of letters and digits that are not ASCII characters

    @property
    def has_spaces(self) -> bool:
        return self.unspaced <= 0.5

    @classmethod
    def of(cls, texts: Iterable[str]) -> Writing:
        whole = "\n".join(texts)
        letters = Counter({each: count for each, count in Counter(whole).items() if LETTER.match(each)})

        def count(pattern: regex.Pattern[str]) -> int:
            return sum(number for letter, number in letters.items() if pattern.match(letter))

        characters, kana, east_asian = count(CHARACTER), count(KANA), count(KANA) + count(IDEOGRAPH)
        unspaced = characters / max(1, characters + len(WORD.findall(whole)))
        if unspaced <= 0.5:
            kind = KOREAN if 2 * count(HANGUL) > letters.total() - characters else SPACED
        elif 2 * east_asian <= characters:
            kind = UNSPACED
        else:
            kind = JAPANESE if kana > LEAST_KANA * east_asian else CHINESE
        not_ascii = sum(number for letter, number in letters.items() if not letter.isascii())
        return cls(kind, unspaced, not_ascii / letters.total() if letters else 1.0)


def tokens(text: str) -> list[str]:
    """Splits a text into words (letters, marks and digits) and, in scripts without spaces, into single characters.

    A text without letters or digits, such as a string of emoji, is split into its visible characters.
    """
    return TOKEN.findall(text) or [each for each in text if not each.isspace()]


def sentences(text: str) -> list[str]:
    """Splits a text into sentences, which end at line breaks and after full stops, question and exclamation marks.

    Abbreviations are not recognised: "Dr. Who" is split after "Dr.".
    """
    return [found for each in SENTENCE.findall(text) if (found := each.strip())]


def spaced(text: str) -> str:
    """Puts spaces around each character that belongs to a script without spaces."""
    return CHARACTER.sub(r" \g<0> ", text)
