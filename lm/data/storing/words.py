"""Cleans the words of a text: Chinese word segmentation, lower case, stop words and stemming. Punctuation is kept."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

from lm.config import CleaningConfig
from lm.config.stop_words import WORD
from lm.data.storing.stop_words import STOP_WORDS
from lm.errors import UserError
from lm.files import hash_of


def clean_words(config: CleaningConfig, text: str, removed: Counter[str] | None = None) -> str:
    """Applies the word-level steps of data.cleaning. Counts the removed words in `removed`.

    Raises UserError if a step needs a missing package.
    """
    if config.segment:
        text = segmenter()(text)
    if config.lowercase:
        text = text.lower()
    if config.stop_words:
        text = _without(words_of(config.stop_words), text, Counter() if removed is None else removed)
    if config.stem:
        stem = stemmer(config.stem)
        text = WORD.sub(lambda match: stem(match[0]), text)
    return text


def _without(stop_words: frozenset[str], text: str, removed: Counter[str]) -> str:
    """Removes stop words and any blanks that they make superfluous.

    Blanks after a removed word are dropped if whitespace or the beginning of the text precedes it. At the end of a
    line, the blanks on both sides of the word are dropped. Other whitespace remains unchanged.
    """
    parts, end = [""], 0
    for match in WORD.finditer(text):
        word = match[0].lower().replace("’", "'")
        if word in stop_words:
            removed[word] += 1
            _join(parts, text[end : match.start()], is_first=end == 0)
            end = match.end()
    _join(parts, text[end:], is_first=end == 0, is_last=True)
    return "".join(parts)


def _join(parts: list[str], part: str, is_first: bool, is_last: bool = False) -> None:
    """Appends the text between two removed words to `parts`, and drops blanks next to the first word."""
    line, line_break, others = part.partition("\n")
    rest = line.lstrip()
    ends_line = not rest and bool(line_break or is_last)
    if not is_first:
        if ends_line:
            before, break_before, last = parts[-1].rpartition("\n")
            parts[-1] = before + break_before + last.rstrip()
        if ends_line or not parts[-1] or parts[-1][-1].isspace():
            part = rest + line_break + others
    if part:
        parts.append(part)


def identity(config: CleaningConfig) -> dict[str, Any]:
    """Returns the JSON values that determine how words are cleaned, or an empty dict if no words are cleaned."""
    values: dict[str, Any] = {}
    if config.segment:
        values["segment"] = [config.segment, _jieba().__version__]
    if config.lowercase:
        values["lowercase"] = unicodedata.unidata_version
    if config.stop_words:
        values["stop_words"] = hash_of(*sorted(words_of(config.stop_words)))
    if config.stem:
        values["stem"] = [config.stem, importlib.metadata.version("nltk")]
    return values


def words_of(stop_words: str) -> frozenset[str]:
    """Returns the words of a list named in STOP_WORDS or, if the setting holds the words of a file, those words."""
    return STOP_WORDS[stop_words] if stop_words in STOP_WORDS else _words(stop_words)


@functools.cache
def _words(lines: str) -> frozenset[str]:
    return frozenset(lines.lower().replace("’", "'").split())


@functools.cache
def stemmer(language: str) -> Callable[[str], str]:
    """Returns an NLTK stemmer, which needs no downloaded data. All stemmers convert words to lower case."""
    from nltk.stem.snowball import SnowballStemmer  # takes a second to import

    stem: Callable[[str], str] = SnowballStemmer(language).stem
    return functools.lru_cache(maxsize=1 << 17)(stem)


@functools.cache
def segmenter() -> Callable[[str], str]:
    """Returns a function that puts spaces between the words of each line of a Chinese text."""
    jieba = _jieba()
    jieba.setLogLevel(logging.WARNING)

    def segmented(text: str) -> str:
        return "\n".join(" ".join(word for word in jieba.cut(line) if word.strip()) for line in text.split("\n"))

    return segmented


def _jieba() -> Any:
    try:
        import jieba
    except ImportError:
        raise UserError(
            "config.data.cleaning.segment: jieba is not installed; run `pip install -r requirements-chinese.txt`, or "
            "leave this setting empty."
        ) from None
    return jieba
