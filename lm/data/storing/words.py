"""Cleans the words of a text: Chinese word segmentation, lower case, stop words and stemming.

A word consists of letters, digits and combining marks; apostrophes and hyphens may connect its parts. The English
clitics that treebank tokenisation splits off ('s, 're, ...) are words too. Punctuation is kept.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import unicodedata
from collections.abc import Callable
from typing import Any

import regex

from lm.config import CleaningConfig
from lm.data.reading.format import hash_of
from lm.data.storing.stop_words import STOP_WORDS
from lm.errors import UserError

_CHARACTERS = r"[\p{L}\p{M}\p{N}]"
WORD = regex.compile(
    rf"{_CHARACTERS}+(?:[-'’]{_CHARACTERS}+)*|(?<!{_CHARACTERS})['’](?:s|m|re|ve|d|ll)(?!{_CHARACTERS})",
    regex.IGNORECASE,
)
# Whitespace that surrounded removed words.
SPACES, AROUND_LINES = regex.compile(r"[^\S\n]{2,}"), regex.compile(r"^[^\S\n]+|[^\S\n]+$", regex.MULTILINE)


def clean_words(config: CleaningConfig, text: str) -> str:
    """Applies the word-level steps of data.cleaning. Raises UserError if a step needs a missing package."""
    if config.segment:
        text = segmenter()(text)
    if config.lowercase:
        text = text.lower()
    stop_words = words_of(config.stop_words)
    stem = stemmer(config.stem) if config.stem else str
    if stop_words or config.stem:

        def cleaned(match: regex.Match[str]) -> str:
            word = match[0].replace("’", "'")
            return "" if word.lower() in stop_words else stem(match[0])

        text = WORD.sub(cleaned, text)
    if stop_words:
        text = AROUND_LINES.sub("", SPACES.sub(" ", text))
    return text


def identity(config: CleaningConfig) -> dict[str, Any]:
    """Returns the JSON values that determine how words are cleaned, or an empty dict if they are not."""
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
    """Returns the words of a list of STOP_WORDS, or those that the resolved setting itself contains."""
    return STOP_WORDS[stop_words] if stop_words in STOP_WORDS else _words(stop_words)


@functools.cache
def _words(lines: str) -> frozenset[str]:
    return frozenset(lines.lower().replace("’", "'").split())


@functools.cache
def stemmer(language: str) -> Callable[[str], str]:
    """Returns a stemmer of NLTK, which needs no downloaded data. All stemmers convert words to lower case."""
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
